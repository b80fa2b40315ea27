"""Leadership handed over by plan: no request fails, nothing is run again, and where it cannot be done the old leader
goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import redis

from musidecar.bench.failover import Run as Outcome
from musidecar.bench.failover import await_traffic, check_data
from musidecar.testbed import ClusterStatus, NodeStatus, Testbed, musidecar, stop_processes
from musidecar.workload import History, Load, spread
from tests.fault import plants
from tests.fault.cluster import assert_same_data, follows, leader_of


def hand_over(bed: Testbed, *options: str) -> subprocess.CompletedProcess[str]:
    return musidecar("switchover", "--dir", str(bed.dir), *options)


def all_follow(bed: Testbed) -> ClusterStatus:
    """Once every node but the leader follows, and all of them may lead."""

    def ready(status: ClusterStatus) -> bool:
        rest = [n.id for n in status.nodes if n.id != status.leader]
        return status.leader is not None and all(follows(status, n) and status[n].more["eligible"] for n in rest)

    return bed.wait_status("all nodes serve", ready)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process stands still for as long as the context lasts."""
    stop_processes([pid])
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def assert_nothing_failed(bed: Testbed, history: History) -> None:
    """Every write was acknowledged, is there, and once; all nodes hold the same."""
    assert (history.unknown, history.refused, history.broken) == (0, 0, 0), history.errors
    outcome = Outcome({}, 0.0, history.acknowledged)
    check_data(bed, all_follow(bed), history, outcome)
    assert outcome.sound, outcome.troubles


@pytest.mark.parametrize("where", ["everywhere", "at the leader"])
def test_rule_20_a_planned_hand_over_leaves_nothing_to_run_again(bed: Testbed, where: str) -> None:
    """To a node by name, to whom the leader chooses, by name again; with clients at every node, or many at the first
    leader's only, where something is always under way."""
    before = all_follow(bed)
    plan = spread([n.client_address for n in before.nodes], 2, timeout_s=5)
    if where != "everywhere":
        plan = replace(plan, writers=(before.nodes.index(leader_of(before)),) * 4, depth=100)
    nodes = sorted(set(plan.writers))
    pauses = []
    with Load(plan) as load:
        load.wait_for(200)
        for chosen in (-1, None, 0) if where == "everywhere" else (0, None, 0, None):
            old = all_follow(bed)
            to = old.leader if chosen is None else old.followers[chosen].id
            done = hand_over(bed, *([] if chosen is None else ["--to", to or ""]))
            assert done.returncode == 0, done.stderr + bed.logs()
            new = bed.status()
            assert new.term == old.term + 1 and (new.leader == to) == (chosen is not None)
            assert done.stdout.startswith(f"node {new.leader} leads, node {old.leader} follows: ")
            pauses.append(new[old.leader or ""].more["handover_pause_us"] / 1000)
            await_traffic(load, nodes, 100)
        history = load.finish()
    assert_nothing_failed(bed, history)
    after = bed.status()
    for counter, more in (("rerun", 0), ("closed_unknown", 0), ("handovers", len(pauses))):
        assert sum(n.more[counter] for n in after.nodes) == sum(n.more[counter] for n in before.nodes) + more, counter
    print(f"{where}: {', '.join(f'{p:.1f}' for p in pauses)} ms without acknowledgements")


def transfers(bed: Testbed, node: NodeStatus) -> int:
    """How often a node has fetched its data from another one."""
    return (bed.dir / f"{node.id}.log").read_text().count("transfer: taking the data")


def test_a_node_that_led_goes_on_without_a_resync(shared_bed: Testbed) -> None:
    """Its server did nothing beyond the log: it goes on as a replica from where it stands."""
    bed = shared_bed
    leader = leader_of(all_follow(bed))
    taken = transfers(bed, leader)
    bed.client(leader).set("key", "x" * 1000)
    done = hand_over(bed)
    assert done.returncode == 0, done.stderr + bed.logs()
    after = all_follow(bed)
    bed.client(leader_of(after)).set("more", 1)
    assert_same_data(bed)
    assert transfers(bed, leader) == taken
    assert bed.backend(leader).info("replication")["master_link_status"] == "up"


def test_a_leader_that_hears_late_that_it_was_asked_is_told_all_the_same() -> None:
    """It stood still while its successor took over with the others' permissions: that this one serves already is what
    it hears first, and only then that it leads no more."""
    with Testbed(env=plants.environment()) as bed, ThreadPoolExecutor(1) as pool:
        before = all_follow(bed)
        old = leader_of(before)
        plants.arm(old.pid, "yielded")
        done = pool.submit(hand_over, bed)
        plants.await_stop(old.pid)
        bed.wait_status("another serves", lambda s: s.leader not in (None, old.id))
        plants.resume(old.pid)
        assert done.result(30).returncode == 0, done.result().stderr + bed.logs()
        assert_same_data(bed, all_follow(bed))


def write_directly(backend: redis.Redis) -> int:
    """Past the sidecar, until the server follows another one."""
    writes = 0
    with contextlib.suppress(redis.exceptions.ReadOnlyError):
        while backend.incr("direct"):
            writes += 1
    return writes


def test_what_the_old_leaders_server_does_beyond_the_log_is_undone(shared_bed: Testbed) -> None:
    """Written past the sidecar until the last moment: what came after the last EFFECT must not stay."""
    bed = shared_bed
    with ThreadPoolExecutor(1) as pool:
        for _ in range(4):
            before = all_follow(bed)
            writes = pool.submit(write_directly, bed.backend(leader_of(before)))
            done = hand_over(bed)
            while done.returncode != 0:  # something was always under way
                done = hand_over(bed)
            assert writes.result(30) > 0
            after = all_follow(bed)
            assert after.leader != before.leader
            bed.client(leader_of(after)).incr("through the sidecar")
            assert_same_data(bed)


def test_a_node_that_cannot_lead_is_refused_and_the_leader_goes_on(shared_bed: Testbed) -> None:
    bed = shared_bed
    before = all_follow(bed)
    leader, other = leader_of(before), before.followers[0]
    nodes = range(len(before.nodes))
    bed.client(leader).flushall()
    with Load(spread([n.client_address for n in before.nodes], 2, timeout_s=10)) as load:
        load.wait_for(200)
        with stopped(other.backend_pid):
            done = hand_over(bed, "--to", other.id, "--timeout-ms", "300")
            assert (done.returncode, done.stdout) == (1, "")
            assert f"node {other.id}: it did not catch up in time" in done.stderr
            await_traffic(load, nodes, 100)
        history = load.finish()
    assert_nothing_failed(bed, history)
    after = bed.status()
    assert (after.leader, after.term) == (leader.id, before.term)


def test_a_node_that_does_not_keep_its_clients_back_is_not_waited_for_long(shared_bed: Testbed) -> None:
    """It stands still: what its clients sent may come any time."""
    bed = shared_bed
    before = all_follow(bed)
    leader, successor, third = leader_of(before), *before.followers
    nodes = [i for i, n in enumerate(before.nodes) if n is not third]
    bed.client(leader).flushall()
    with Load(spread([n.client_address for n in before.nodes], 2, timeout_s=10)) as load:
        load.wait_for(200)
        with stopped(third.pid):
            done = hand_over(bed, "--to", successor.id, "--hold-ms", "300")
            assert done.returncode == 1
            assert "a node did not keep its clients back in time" in done.stderr
            await_traffic(load, nodes, 100)
        await_traffic(load, range(3), 50)
        history = load.finish()
    assert_nothing_failed(bed, history)
    after = bed.status()
    assert (after.leader, after.term) == (leader.id, before.term)
    assert hand_over(bed, "--to", successor.id).returncode == 0


def test_wrong_questions(shared_bed: Testbed) -> None:
    bed = shared_bed
    before = all_follow(bed)
    leader = leader_of(before)
    done = hand_over(bed, "--to", leader.id)
    assert (done.returncode, done.stdout) == (0, f"node {leader.id} leads already\n")
    done = hand_over(bed, "--to", "4")
    assert done.returncode == 2 and "no node 4: it has 1, 2, 3" in done.stderr
    assert bed.status().term == before.term


def test_a_dead_node_is_not_waited_for(bed: Testbed) -> None:
    before = bed.status()
    leader, successor, third = leader_of(before), *before.followers
    bed.kill(third)
    left = sorted(map(int, (leader.id, successor.id)))
    bed.wait_status("it is gone", lambda s: s[leader.id].more["confirmed"] == left)
    done = hand_over(bed, "--to", third.id)
    assert done.returncode == 1 and f"node {third.id}: it is not there" in done.stderr
    assert hand_over(bed).returncode == 0
    after = bed.status()
    assert after.leader == successor.id
    assert bed.client(leader).set("through the old leader", 1)
