"""A node that died begins another life: empty, in a cluster that runs and goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import redis

from musidecar.bench import rejoin
from musidecar.compare import compare, compare_logs
from musidecar.status import collect, problems
from musidecar.switchover import switchover
from musidecar.testbed import ClusterStatus, open_backend, wait_until
from musidecar.workload import Load, spread, verify
from tests.fault.nursery import Cradle, Nursery

REJOIN_S = 60.0  # a bound for a crowded host, not what it takes


def rejoined(status: ClusterStatus) -> bool:
    """All are members again, in step, and serve."""
    every = sorted(node.id for node in status.nodes)
    return all(node.is_well and sorted(node.more["members"]) == every for node in status.nodes)


def assert_equal(bed: Cradle) -> None:
    backends = {str(n): open_backend(f"unix:{bed.dir}/redis-{n}.sock") for n in bed.pids}
    try:
        result = compare(backends)
        assert result.equal, result.differences
        assert compare_logs(bed.status) == []
    finally:
        for backend in backends.values():
            backend.close()


@pytest.mark.parametrize("which", ["leader", "follower"])
def test_a_killed_node_comes_back_as_another_life(cradle: Cradle, which: str) -> None:
    before = cradle.status()
    victim = before[before.leader or ""] if which == "leader" else before.followers[-1]
    with Load(spread([node.client_address for node in before.nodes], 1)) as load:
        load.wait_for(200)
        cradle.kill(victim)
        cradle.wait_status("another leads", lambda s: s.leader not in (None, victim.id if which == "leader" else None))
        load.wait_for(200)
        cradle.revive(int(victim.id))
        after = cradle.wait_status("it is a member again", rejoined, REJOIN_S)
        load.wait_for(200)
        history = load.finish()
    assert after[victim.id].more["incarnation"] > victim.more["incarnation"]
    assert after[victim.id].more["members"][victim.id] == after[victim.id].more["incarnation"][:16]
    assert_equal(cradle)
    for node in after.nodes:
        verdict = verify(history, cradle.client(node))
        assert not verdict.lost and not verdict.doubled, verdict.troubles
    assert "lost their memory" not in cradle.logs(1000)


@pytest.mark.parametrize("seed", [1, 2])
def test_trap_22_any_one_node_restarted_again_and_again_loses_nothing(nursery: Nursery, seed: int) -> None:
    """Empty memory each time, at any moment of a commit, under load; the ring is small and wraps."""
    chance = random.Random(seed)
    with Cradle(nursery, 3, {"limits": {"ring_bytes": 1 << 20, "piece_bytes_max": 1 << 16}}) as bed:
        status = bed.status()
        with Load(spread([node.client_address for node in status.nodes], 1)) as load:
            load.wait_for(100)
            for _ in range(5):
                victim = chance.choice([status.leader or "1", chance.choice(status.nodes).id])
                bed.kill(status[victim])
                time.sleep(chance.uniform(0.0, 0.2))
                bed.revive(int(victim))
                status = bed.wait_status("it is a member again", rejoined, REJOIN_S)
            load.wait_for(100)
            history = load.finish()
        assert_equal(bed)
        for node in status.nodes:
            verdict = verify(history, bed.client(node))
            assert not verdict.lost and not verdict.doubled, verdict.troubles
    assert bed.leftovers() == []


def test_killed_again_while_it_joins(cradle: Cradle) -> None:
    """At every stage of it; the next life goes on from what the others know, and the last one arrives."""
    status = cradle.status()
    victim = status.followers[0]
    with Load(spread([node.client_address for node in status.nodes], 1)) as load:
        load.wait_for(100)
        cradle.kill(victim)
        for stage in ("joins it as", "backend is there", "connected to node", "taking the data", "holds the cluster"):
            log = cradle.dir / f"{victim.id}.log"
            seen = log.read_text().count(stage)
            cradle.revive(int(victim.id))
            wait_until(stage, lambda log=log, stage=stage, seen=seen: log.read_text().count(stage) > seen, 20)  # type: ignore[misc]
            os.kill(cradle.pids[int(victim.id)], signal.SIGKILL)
            wait_until("it is gone", lambda: not cradle.alive(int(victim.id)), 5)
        cradle.revive(int(victim.id))
        cradle.wait_status("it is a member again", rejoined, REJOIN_S)
        load.wait_for(100)
        history = load.finish()
    assert_equal(cradle)
    assert not verify(history, cradle.client(cradle.status()[victim.id])).lost


def test_trap_22_two_nodes_without_memory_stop_the_cluster(cradle: Cradle) -> None:
    """It says why; nothing is acknowledged, and what the third has is left alone."""
    status = cradle.status()
    left = status.followers[0]
    with cradle.client(left) as client:
        assert client.set("k", "v")
    backend = open_backend(left.backend)
    wait_until("its own Redis has it, too", lambda: backend.get("k") == b"v", 5)
    for node in status.nodes:
        if node.id != left.id:
            cradle.kill(node)
    for node in status.nodes:
        if node.id != left.id:
            cradle.revive(int(node.id))
    why = "have lost their memory, and with it a majority"
    log = cradle.dir / f"{left.id}.log"
    wait_until("it says why", lambda: why in log.read_text(), 10)
    assert any(why in one.text for one in problems(collect(cradle.config), cradle.config))
    for node in cradle.status().nodes:
        assert not node.more["serving"] and node.role != "leader"
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
            redis.Redis(*node.client_address, socket_timeout=1.0, retry=None).set("k", "w")
    assert backend.get("k") == b"v"
    backend.close()


def test_five_nodes_two_at_once(nursery: Nursery) -> None:
    with Cradle(nursery, 5) as bed:
        status = bed.status()
        with Load(spread([node.client_address for node in status.nodes], 1)) as load:
            load.wait_for(100)
            victims = [status[status.leader or ""], status.followers[1]]
            for victim in victims:
                bed.kill(victim)
            for victim in victims:
                bed.revive(int(victim.id))
            after = bed.wait_status("both are members again", rejoined, REJOIN_S)
            load.wait_for(100)
            history = load.finish()
        assert_equal(bed)
        assert not verify(history, bed.client(after[victims[0].id])).lost
    assert bed.leftovers() == []


def test_who_gives_the_data_dies_and_another_gives_it(nursery: Nursery) -> None:
    """The transfer begins again from another node; what had come is not used."""
    with Cradle(nursery, 5, {"limits": {"transfer_bytes_per_s": 1 << 20}}) as bed:
        status = bed.status()
        with bed.client(status[status.leader or ""]) as client:
            pipe = client.pipeline(transaction=False)
            for i in range(400):
                pipe.set(f"big:{i}", os.urandom(10_000))
            pipe.execute()
        joins = status.followers[0]
        log = bed.dir / f"{joins.id}.log"
        bed.kill(joins)
        seen = len(log.read_text())
        bed.revive(int(joins.id))
        wait_until("a transfer is under way", lambda: "taking the data from node" in log.read_text()[seen:], 20)
        giver = log.read_text()[seen:].split("taking the data from node ")[1].split()[0]
        bed.kill(bed.status()[giver])
        bed.wait_status("it is a member", lambda s: s[joins.id].role in ("leader", "follower"), 60)
        text = log.read_text()[seen:]
        assert f"not from node {giver}" in text and text.count("taking the data from node") == 2
        bed.revive(int(giver))
        bed.wait_status("both are members", rejoined, 60)
        assert_equal(bed)
    assert bed.leftovers() == []


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_rolling_restart_under_load(nursery: Nursery, rounds: int) -> None:
    """Every node once (and again), the leader after a switchover: no request of a client of the other nodes fails."""
    with Cradle(nursery, 3) as bed:
        for node in (1, 2, 3) * rounds:
            status = bed.status()
            if status.leader == str(node):
                switchover(bed.config, node % 3 + 1)
                status = bed.wait_status("another leads", lambda s, node=node: s.leader not in (None, str(node)))  # type: ignore[misc]
            others = [each.client_address for each in status.nodes if each.id != str(node)]
            with bed.client(status.nodes[0]) as client:
                assert client.flushall()  # each load counts from 0
            with Load(spread(others, 2, timeout_s=10.0)) as load:
                load.wait_for(100)
                os.kill(bed.pids[node], signal.SIGTERM)
                wait_until("it has ended", lambda node=node: not bed.alive(node), 10)  # type: ignore[misc]
                bed.revive(node)
                after = bed.wait_status("it is a member again", rejoined, REJOIN_S)
                load.wait_for(100)
                history = load.finish()
            assert history.refused == 0
            if after.term == status.term:  # else the host was so busy that another node took over in between
                assert history.unknown == 0, f"while node {node} was restarted"
            assert not verify(history, bed.client(after[str(node)])).lost
        assert_equal(bed)
    assert bed.leftovers() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_gigabyte_under_load(tmp_path: Path) -> None:
    """`musidecar bench rejoin`: with 1 GB of data and 5,000 writes a second it comes back, and no request fails."""
    rejoin.run(megabytes=1000, rate=5000, timeout_s=600, out=tmp_path)
    found = json.loads((tmp_path / "rejoin.json").read_text())
    assert found["raw"]["troubles"] == []
    assert [row["value"] for row in found["figures"] if row["name"] == "failed requests"] == [0]
