"""A Redis that outlived its sidecar, or kept what it had at an orderly stop, gets what it lacks, and nothing else; but
only where the log vouches for what it holds (R15)."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from musidecar.config import load
from musidecar.switchover import switchover
from musidecar.testbed import NodeStatus, open_backend, wait_until
from musidecar.workload import Load, spread, verify
from tests.fault.cluster import assert_same_data, leader_of
from tests.fault.nursery import Cradle, Nursery
from tests.fault.test_rejoin import REJOIN_S, rejoined

VOUCHED, REFILLED = "the log vouches for what the backend holds", "taking the data from node"


class OwnServers(Cradle):
    """Nodes in front of servers that are there before them, and outlive them."""

    def configure(self) -> None:
        super().configure()
        assert self._local is not None
        path = self._local.config_file
        path.write_text(path.read_text().replace(", spawn = true", ""))
        self._local.config = load(path)
        self._servers = [
            subprocess.Popen(
                ["redis-server", "--port", "0", "--save", "", "--unixsocket", str(self.dir / f"redis-{node.id}.sock")],
                cwd=self.dir,
                stdout=subprocess.DEVNULL,
            )
            for node in self.config.nodes
        ]
        for node in self.config.nodes:
            wait_until("its server listens", (self.dir / f"redis-{node.id}.sock").exists, 10)

    def close(self) -> None:
        for server in getattr(self, "_servers", []):
            server.kill()
            server.wait()
        super().close()


@pytest.fixture
def own(nursery: Nursery) -> Iterator[OwnServers]:
    with OwnServers(nursery, 3) as bed:
        yield bed
    assert bed.leftovers() == []


def kill(bed: Cradle, node: NodeStatus) -> None:
    """kill -9 of the sidecar alone."""
    os.kill(bed.pids[int(node.id)], signal.SIGKILL)
    wait_until("it is gone", lambda: not bed.alive(int(node.id)), 5)
    bed.wait_status("another serves", lambda s: s.leader not in (None, node.id))


def back(bed: Cradle, node: NodeStatus) -> NodeStatus:
    """Its next life, complete."""
    bed.revive(int(node.id))
    return bed.wait_status("it is a member again", rejoined, REJOIN_S)[node.id]


def said(bed: Cradle, node: NodeStatus, words: str) -> int:
    """How often its log has them."""
    return (bed.dir / f"{node.id}.log").read_text().count(words)


def how(node: NodeStatus) -> tuple[int, int]:
    """How often its Redis went on where it was, and was filled."""
    return node.more["continued"], node.more["refilled"]


def write(bed: Cradle, count: int, value: str = "x") -> None:
    with bed.client(leader_of(bed.status())) as client:
        for i in range(count):
            assert client.set(f"key {i}", value)


@pytest.mark.parametrize("role", ["leader", "follower"])
def test_rule_15_killed_and_started_again_it_gets_only_what_it_lacks(own: OwnServers, role: str) -> None:
    before = own.status()
    victim = leader_of(before) if role == "leader" else before.followers[0]
    write(own, 100, "before")
    kill(own, victim)
    filled = said(own, victim, REFILLED)
    write(own, 200, "meanwhile")
    after = back(own, victim)
    assert how(after) == (1, 0)
    assert after.more["incarnation"] > victim.more["incarnation"]
    assert (said(own, victim, VOUCHED), said(own, victim, REFILLED)) == (1, filled)
    assert said(own, victim, "of changes from node") == 1
    assert_same_data(own)
    # Soon after, too, with less to get, or nothing.
    kill(own, after)
    assert how(back(own, after)) == (1, 0)
    assert said(own, victim, REFILLED) == filled
    assert_same_data(own)


def test_rule_15_under_load_and_killed_on_the_way(own: OwnServers) -> None:
    """A follower at every stage of it; then with other leaders than the one whose history it goes by."""
    status = own.status()
    victim, third = status.followers
    with Load(spread([node.client_address for node in status.nodes if node is not victim], 2)) as load_:
        load_.wait_for(300)
        for stage in (VOUCHED, "of changes from node", "where it was"):
            kill(own, victim)
            load_.wait_for(100)
            seen = said(own, victim, stage)
            own.revive(int(victim.id))
            wait_until(stage, lambda stage=stage, seen=seen: said(own, victim, stage) > seen, 20)  # type: ignore[misc]
        filled = said(own, victim, REFILLED)
        kill(own, victim)
        load_.wait_for(100)
        assert how(back(own, victim)) == (1, 0)
        assert said(own, victim, REFILLED) == filled
        switchover(own.config, int(third.id))
        own.wait_status("the former leader follows", rejoined)
        load_.wait_for(100)
        for node in (victim, leader_of(status)):
            kill(own, node)
            load_.wait_for(100)
            assert how(back(own, node)) == (1, 0), own.logs(80)
        history = load_.finish()
    assert_same_data(own)
    for node in status.nodes:
        verdict = verify(history, own.client(node))
        assert not verdict.lost and not verdict.doubled, verdict.troubles


@pytest.mark.parametrize("role", ["leader", "follower"])
def test_rule_15_a_write_of_its_own_meanwhile_has_it_filled(own: OwnServers, role: str) -> None:
    before = own.status()
    victim = leader_of(before) if role == "leader" else before.followers[0]
    write(own, 100)
    kill(own, victim)
    with open_backend(victim.backend) as backend:
        if role == "follower":
            backend.replicaof("NO", "ONE")
        backend.set("key 0", "its own")
        offset = backend.info("replication")["master_repl_offset"]
        write(own, 100, "longer than what was written there")  # equal offsets prove nothing
        assert leader_of(own.status()).more["effect_offset"] > offset
        after = back(own, victim)
        assert backend.get("key 0") == b"longer than what was written there"
    assert how(after) == (0, 1)
    why = "it has done what the log does not know" if role == "leader" else "its history is none of the log's"
    assert said(own, victim, f"the backend is not taken up where it was, and will be filled: {why}") == 1
    assert_same_data(own)


def test_what_no_other_node_has_any_more_is_filled(own: OwnServers) -> None:
    victim, third = own.status().followers
    kill(own, victim)
    for node in (leader_of(own.status()), third):
        with open_backend(node.backend) as backend:
            backend.config_set("repl-backlog-size", 1 << 14)
    write(own, 100, "x" * 1000)
    after = back(own, victim)
    assert how(after) == (0, 1)
    assert said(own, victim, "no other node has what it lacks any more") == 1
    assert_same_data(own)


def test_stopped_in_order_it_goes_on_from_what_it_kept(cradle: Cradle) -> None:
    """Its server ended with it: another one has loaded what was saved."""
    victim = cradle.status().followers[0]
    write(cradle, 100, "before")
    os.kill(cradle.pids[int(victim.id)], signal.SIGTERM)
    wait_until("it has ended", lambda: not cradle.alive(int(victim.id)), 30)
    write(cradle, 100, "meanwhile")
    filled = said(cradle, victim, REFILLED)
    after = back(cradle, victim)
    assert how(after) == (1, 0) and said(cradle, victim, REFILLED) == filled
    assert_same_data(cradle)
    # Killed it keeps nothing: what was saved before that life is not taken for what it had.
    kill(cradle, after)
    assert how(back(cradle, after)) == (0, 1)
    assert_same_data(cradle)
