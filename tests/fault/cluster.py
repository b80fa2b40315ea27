"""Fixtures of the fault tests: a real cluster of real processes for one test, or one shared by a module's tests.

Wherever a test needs the cluster and it does not come up, the test fails with the cluster's logs. Every test ends with
no process of its cluster left, which is checked.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from musidecar.compare import compare, compare_logs
from musidecar.testbed import ClusterStatus, NodeStatus, Testbed
from musidecar.workload import encode
from tests.unit.orphans import wait_dead


def leader_of(status: ClusterStatus) -> NodeStatus:
    """The leading node."""
    assert status.leader is not None, status
    return status[status.leader]


def a_follower_of(status: ClusterStatus) -> NodeStatus:
    """The first node that follows."""
    return status.followers[0]


def another_serves(bed: Testbed, old: ClusterStatus, timeout_s: float = 20.0) -> ClusterStatus:
    """Waits until another node than in `old` leads and serves, in a later term."""

    def served(status: ClusterStatus) -> bool:
        if status.leader in (None, old.leader) or status.term <= old.term:
            return False
        new = status[status.leader or ""]  # it may have led before
        return new.moment_us("served_us") >= new.moment_us("opened_us") > 0

    return bed.wait_status("another node serves", served, timeout_s)


def follows(status: ClusterStatus, node: str) -> bool:
    """The node follows, and its clients are served."""
    return status[node].role == "follower" and bool(status[node].more.get("serving"))


def kill_and_wait(bed: Testbed, node: NodeStatus) -> None:
    """kill -9 of a node's sidecar. Afterwards it is dead: it acknowledges nothing any more."""
    pidfd = os.pidfd_open(node.pid)
    try:
        bed.kill(node)
        wait_dead(pidfd)
    finally:
        os.close(pidfd)


def send(node: NodeStatus, *words: bytes) -> socket.socket:
    """One request on a connection of its own."""
    connection = socket.create_connection(node.client_address, timeout=30)
    connection.sendall(encode(words))
    return connection


def last_words(connection: socket.socket) -> bytes:
    """What the other side still says until it closes the connection. TimeoutError when it does not."""
    got = b""
    with contextlib.closing(connection), contextlib.suppress(ConnectionResetError):
        while data := connection.recv(1 << 16):
            got += data
    return got


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
