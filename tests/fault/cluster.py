"""Fixtures of the fault tests: a real cluster of real processes for one test, or one shared by a module's tests.

Wherever a test needs the cluster and it does not come up, the test fails with the cluster's logs. Every test ends with
no process of its cluster left, which is checked.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from musidecar.compare import compare, compare_logs
from musidecar.testbed import ClusterStatus, NodeStatus, Testbed


def leader_of(status: ClusterStatus) -> NodeStatus:
    """The leading node."""
    assert status.leader is not None, status
    return status[status.leader]


def a_follower_of(status: ClusterStatus) -> NodeStatus:
    """The first node that follows."""
    return status.followers[0]


def assert_same_data(bed: Testbed, status: ClusterStatus | None = None) -> int:
    """All nodes alive hold the same data and the same log; returns the number of keys."""
    status = status or bed.status()
    result = compare(bed.backends(status))
    assert result.equal, result.differences
    assert compare_logs(bed.status) == []
    return result.keys


def _running() -> Iterator[Testbed]:
    bed = Testbed()
    with bed:
        yield bed
    assert bed.leftovers() == []
    assert not bed.root.exists()


@pytest.fixture
def bed() -> Iterator[Testbed]:
    """A cluster that the test may break."""
    yield from _running()


@pytest.fixture(scope="module")
def shared_bed() -> Iterator[Testbed]:
    """A cluster for all tests of a module that leave it as they found it."""
    yield from _running()


@pytest.fixture(params=["leader", "follower"])
def node(request: pytest.FixtureRequest, shared_bed: Testbed) -> NodeStatus:
    """The shared cluster's leader, then one of its followers: what a client sees must not depend on it."""
    status = shared_bed.status()
    return leader_of(status) if request.param == "leader" else a_follower_of(status)
