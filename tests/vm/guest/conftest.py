"""Fixtures of the guest."""

import pytest

from tests.vm import hosts


@pytest.fixture(scope="session")
def rxe0() -> str:
    """The name of a soft-RoCE device on 10.9.1.1, alone on its network. The agent has made it."""
    return hosts.DEVICE
