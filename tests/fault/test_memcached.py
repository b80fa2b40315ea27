"""A cluster of memcached under load: nodes and servers die, come back, and nothing that was acknowledged is missing."""

from __future__ import annotations

import os
import signal

import pytest

from musidecar.protocols.memcached.connection import Connection
from musidecar.testbed import ClusterStatus, NodeStatus, Testbed, is_alive, musidecar, wait_until
from tests.fault.memcached_load import Load, assert_same, backends, client_of


def leader_of(status: ClusterStatus) -> NodeStatus:
    assert status.leader is not None
    return status[status.leader]


def judge(bed: Testbed, load: Load) -> None:
    """Read through every node, and behind every sidecar's back."""
    assert_same(bed)
    status = bed.status()
    for reader in (*(client_of(node) for node in status.alive), *backends(status).values()):
        load.judge(reader)


def test_a_killed_leader_under_load_and_its_return() -> None:
    with Testbed(backend="memcached") as bed:
        before = bed.status()
        killed = leader_of(before)
        with Load([client_of(node) for node in before.nodes]) as load:
            load.wait_for(500)
            bed.kill(killed)
            after = bed.wait_status(
                "another node leads", lambda s: s.leader not in (None, killed.id) and s.term > before.term
            )
            load.wait_for(500)
            bed.start_again(killed)
            bed.wait_status("it counts again", lambda s: s[killed.id].is_well, 60)
            load.wait_for(500)
        assert sum(outcome.swapped for outcome in load.outcomes) > 50 and after.leader != killed.id
        judge(bed, load)
    assert bed.leftovers() == []


@pytest.mark.parametrize("role", ["leader", "follower"])
def test_a_server_that_dies_is_started_again_and_filled(role: str) -> None:
    with Testbed(backend="memcached") as bed:
        before = bed.status()
        victim = leader_of(before) if role == "leader" else before.followers[0]
        with Load([client_of(node) for node in before.nodes]) as load:
            load.wait_for(500)
            os.kill(victim.backend_pid, signal.SIGKILL)
            bed.wait_status(
                "another server is filled",
                lambda s: s[victim.id].is_well and s[victim.id].backend_pid not in (0, victim.backend_pid),
                60,
            )
            load.wait_for(500)
        judge(bed, load)


def test_three_leaders_killed_one_after_another() -> None:
    with Testbed(backend="memcached") as bed:
        with Load([client_of(node) for node in bed.status().nodes]) as load:
            for _ in range(3):
                load.wait_for(300)
                status = bed.wait_status("all are well", lambda s: s.is_whole, 60)
                killed = leader_of(status)
                bed.kill(killed)
                bed.wait_status("another leads", lambda s, k=killed.id: s.leader not in (None, k))  # type: ignore[misc]
                load.wait_for(100)
                bed.start_again(killed)
            bed.wait_status("all are well", lambda s: all(node.is_well for node in s.nodes), 60)
        judge(bed, load)


def test_a_cluster_that_was_stopped_begins_empty_and_says_so() -> None:
    with Testbed(backend="memcached") as bed:
        nodes = bed.status().nodes
        with Connection(client_of(nodes[0])) as connection:
            assert connection.ask(b"set k 0 0 1\r\nx") == b"STORED"
        for node in nodes:
            os.kill(node.pid, signal.SIGTERM)
        for node in nodes:
            wait_until("it has ended", lambda pid=node.pid: not is_alive(pid), 20)  # type: ignore[misc]
        for node in nodes:
            bed.start_again(node)
        bed.wait_status("all are well", lambda s: all(node.is_well for node in s.nodes), 60)
        with Connection(client_of(nodes[0])) as connection:
            assert connection.ask(b"get k") == b"END"
            assert connection.ask(b"set k 0 0 1\r\ny") == b"STORED"
        assert assert_same(bed) == 1
        told = (bed.dir / "1.log").read_text()
        assert "memcached keeps nothing" in told and "the cluster begins empty" in told


def test_evictions_are_shown_and_logged() -> None:
    with Testbed(backend="memcached") as bed:
        leader = leader_of(bed.status())
        with Connection(client_of(leader), 30) as connection:
            for i in range(120):
                assert connection.ask(b"set k%d 0 0 1000000\r\n%b" % (i, bytes(1_000_000))) == b"STORED"
        seen = bed.wait_status("it is told", lambda s: any(node.more.get("alarm") for node in s.nodes))
        node = next(node for node in seen.nodes if node.more.get("alarm"))
        assert node.more["backend_evictions"] > 0 and "for want of memory" in node.more["alarm"]
        done = musidecar("status", "--dir", str(bed.dir))
        assert done.returncode == 1 and "memory_bytes" in done.stdout.replace("\n", " ")
        assert "gave up" in (bed.dir / f"{node.id}.log").read_text()


def test_the_demo_holds_what_it_claims() -> None:
    done = musidecar("demo", "--backend", "memcached", timeout_s=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("  held  ") == 6 and "FAILED" not in done.stdout
