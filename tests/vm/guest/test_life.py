"""The life of a node over verbs: it begins anew, the cluster grows and shrinks, all is stopped and one is chosen.

Four hosts; the fourth one's node joins later."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

import pytest

from musidecar import membership, recovery
from musidecar.reinit import reinit
from musidecar.testbed import TestbedError
from tests.fault.clients import Crowd
from tests.vm.hosts_cluster import POLL_S, START_S, HostsBed, siege

TIME_LIMIT_S = 600

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TIME_LIMIT_S)]


@pytest.fixture(scope="module")
def host_count() -> int:
    return 4


@pytest.fixture(scope="module")
def joining() -> Sequence[int]:
    return (4,)


def end(bed: HostsBed, nodes: Sequence[int], number: signal.Signals = signal.SIGTERM) -> None:
    """Ends them, and waits until they have ended."""
    for node in nodes:
        os.kill(bed.pids[node], number)
    deadline = time.monotonic() + START_S
    while any(bed.alive(node) for node in nodes):
        if time.monotonic() > deadline:
            raise TestbedError(f"nodes {nodes} do not end\n{bed.logs()}")
        time.sleep(POLL_S)


def test_a_node_begins_anew_and_another_joins_and_leaves(bed: HostsBed, crowd: Crowd) -> None:
    """Under load: a follower forgets its memory and its data; a fourth node becomes a member; it is removed, and with
    the leader dead the other two are a majority of three."""
    with siege(bed, crowd, 31) as s:
        leader = s.leader()
        follower = next(host for host in bed.hosts if host != leader)
        before = bed.says(follower)["incarnation"]
        s.note(f"node {follower} is to begin anew")
        assert reinit(bed.config, follower) != before
        s.well(follower)
        s.note("node 4 joins")
        bed.revive(4)
        s.well(4)
        members = bed.says(leader)["members"]
        assert isinstance(members, dict) and len(members) == 4
        s.progress(set(), 20, START_S)
        membership.remove(bed.config, 4)
        s.note("node 4 is removed")
        end(bed, [4])
        s.dead.add(4)
        s.note(f"SIGKILL of the leader, node {leader}")
        os.kill(bed.pids[leader], signal.SIGKILL)
        s.dead.add(leader)
        s.served_again(leader)


def test_the_operator_chooses_with_whose_data_it_begins(bed: HostsBed) -> None:
    """Two nodes are stopped in order and the third is killed: nobody can know who had everything."""
    with bed.client(bed.status()["1"]) as client:
        for i in range(20):
            assert client.set(f"key {i}", i)
    deadline = time.monotonic() + START_S
    while len({bed.says(host).get("backend_offset") for host in bed.hosts}) > 1:
        assert time.monotonic() < deadline, bed.logs()
        time.sleep(POLL_S)
    end(bed, [3], signal.SIGKILL)
    end(bed, [1, 2])
    for host in bed.hosts:
        bed.revive(host)
    while not all(bed.says(host).get("undecided") for host in bed.hosts):
        assert time.monotonic() < deadline + START_S, bed.logs()
        time.sleep(POLL_S)
    with pytest.raises(recovery.Refused, match="node 3 was not stopped in order"):
        recovery.plan(recovery.look(bed.config), bed.config.seed, None, False)
    plan = recovery.plan(recovery.look(bed.config), bed.config.seed, 2, False)
    assert any("node 3" in line for line in plan.losses)
    recovery.carry_out(bed.config, plan, START_S)
    status = bed.wait_ready()
    with bed.client(status["1"]) as client:
        assert [client.get(f"key {i}") for i in range(20)] == [b"%d" % i for i in range(20)]
