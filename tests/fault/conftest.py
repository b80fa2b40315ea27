"""The clusters that fault tests share: see also tests/fault/cluster.py."""

from collections.abc import Iterator

import pytest

from tests.fault.cluster import bed, node, shared_bed
from tests.fault.nursery import Cradle, Nursery

__all__ = ["bed", "cradle", "node", "nursery", "shared_bed"]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as one:
        yield one


@pytest.fixture
def cradle(nursery: Nursery) -> Iterator[Cradle]:
    """Three nodes whose lives the test begins and ends."""
    with Cradle(nursery, 3) as bed:
        yield bed
    assert bed.leftovers() == []
