"""The ring is used again and again; who does not keep up is left behind and caught up, and writes never wait for it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest

from musidecar.status import collect, problems
from musidecar.testbed import NodeStatus, wait_until
from musidecar.workload import History, Load, spread, verify
from tests.fault.nursery import Cradle, Nursery
from tests.fault.test_rejoin import REJOIN_S, assert_equal, rejoined

RING_BYTES = 1 << 20
VALUE = b"x" * 10_000


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_trap_15_a_stopped_follower_is_left_behind_and_caught_up(nursery: Nursery) -> None:
    """Several laps of the ring while it stands still: nobody waits for it, and it goes on as the life it was."""
    with Cradle(nursery, 3, {"limits": {"ring_bytes": RING_BYTES, "piece_bytes_max": 1 << 16}}) as bed:
        status = bed.status()
        slow = status.followers[0]
        with bed.client(status[status.leader or ""], socket_timeout=20) as client:
            os.kill(slow.pid, signal.SIGSTOP)
            for i in range(5 * RING_BYTES // len(VALUE)):
                assert client.set(f"k{i % 50}", VALUE)
            os.kill(slow.pid, signal.SIGCONT)
            after = bed.wait_status("it is in step again", rejoined, REJOIN_S)
            assert client.set("k", "v")
        assert after.term == status.term and after[slow.id].more["incarnation"] == slow.more["incarnation"]
        assert "the log has gone on without this node" in (bed.dir / f"{slow.id}.log").read_text()
        assert_equal(bed)
    assert bed.leftovers() == []


def test_a_follower_whose_server_stands_still_keeps_so_much_and_no_more(nursery: Nursery) -> None:
    """Beyond `feed_bytes_max` its server is to be filled anew; the others go on meanwhile, and status says so."""
    settings = {"limits": {"ring_bytes": RING_BYTES, "piece_bytes_max": 1 << 16, "feed_bytes_max": 4 << 20},
                "timing": {"backend_timeout_ms": 60_000}}  # fmt: skip
    with Cradle(nursery, 3, settings) as bed:
        status = bed.status()
        slow = status.followers[0]
        log = bed.dir / f"{slow.id}.log"
        with bed.client(status[status.leader or ""], socket_timeout=20) as client:
            before = rss_bytes(slow.pid)
            os.kill(slow.backend_pid, signal.SIGSTOP)
            for i in range((16 << 20) // len(VALUE)):
                assert client.set(f"k{i % 50}", VALUE)
            wait_until("it gives up", lambda: "takes its feed too slowly" in log.read_text(), 10)
            assert rss_bytes(slow.pid) < before + (12 << 20)
            told = [one.text for one in problems(collect(bed.config), bed.config)]
            assert any(f"node {slow.id} is being filled" in text for text in told), told
            os.kill(slow.backend_pid, signal.SIGCONT)
            bed.wait_status("it is in step again", rejoined, REJOIN_S)
        assert_equal(bed)
    assert bed.leftovers() == []


@contextlib.contextmanager
def starved(pid: int) -> Iterator[None]:
    """A process that may run, and hardly ever does: it shares a processor with two that never sleep, and has the
    least claim on it. (One that is stopped is seen to be, and taken for dead.)"""
    here = max(os.sched_getaffinity(0))
    tasks = [int(task) for task in os.listdir(f"/proc/{pid}/task")]
    before = {task: (os.sched_getscheduler(task), os.sched_getaffinity(task)) for task in tasks}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        for one in busy:
            os.sched_setaffinity(one.pid, {here})
        for task in tasks:
            os.sched_setaffinity(task, {here})
            os.sched_setscheduler(task, os.SCHED_IDLE, os.sched_param(0))
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()
        for task, (policy, processors) in before.items():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setscheduler(task, policy, os.sched_param(0))
                os.sched_setaffinity(task, processors)


def test_a_follower_that_holds_up_the_log_is_dropped_by_the_bounds_set_and_told_so(nursery: Nursery) -> None:
    """It runs, so it is not taken for dead, but too seldom to keep up: it goes before writes have to wait for it."""
    settings = {"limits": {"ring_bytes": RING_BYTES, "piece_bytes_max": 1 << 16, "pin_bytes_max": 128 << 10},
                "timing": {"suspect_us": 100_000, "pin_us": 100_000, "fail_us": 10_000_000, "wait_timeout_ms": 15_000,
                           "takeover_timeout_ms": 11_000, "backend_timeout_ms": 12_000}}  # fmt: skip
    with Cradle(nursery, 3, settings) as bed:
        status = bed.status()
        slow, leader = status.followers[0], status[status.leader or ""]
        log = bed.dir / f"{leader.id}.log"
        told: list[str] = []

        def dropped() -> bool:
            for i in range(20):
                assert client.set(f"k{i}", VALUE)
            told.extend(one.text for one in problems(collect(bed.config), bed.config))
            return any(f"node {slow.id} held up the log and was dropped" in text for text in told)

        with bed.client(leader, socket_timeout=20) as client:
            with starved(slow.pid):
                wait_until("it is dropped", dropped, 60)
            after = bed.wait_status("it is in step again", rejoined, REJOIN_S)
        assert after.term == status.term and after[slow.id].more["incarnation"] == slow.more["incarnation"]
        assert f"node {slow.id} holds up the log" in log.read_text()
        caught_up = f"node {slow.id} has caught up with the log"
        wait_until("it has caught up", lambda: caught_up in log.read_text(), REJOIN_S)
        assert_equal(bed)
    assert bed.leftovers() == []


class Stalls(threading.Thread):
    """What the host itself takes away: how late a thread wakes up that only sleeps. (began, late), nanoseconds."""

    def __init__(self, least_ns: int = 10_000_000) -> None:
        super().__init__(daemon=True)
        self.least_ns = least_ns
        self.found: list[tuple[int, int]] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            began = time.monotonic_ns()
            time.sleep(0.01)
            late = time.monotonic_ns() - began - 10_000_000
            if late > self.least_ns:
                self.found.append((began, late))

    def within(self, from_ns: int, to_ns: int) -> int:
        """Nanoseconds between these moments in which the host did not let it run."""
        return sum(max(0, min(b + late, to_ns) - max(b, from_ns)) for b, late in self.found)

    def __enter__(self) -> Stalls:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


Outage = tuple[int, int, int]  # index of a node, and from when to when (ns) it was being restarted


def longest_gap_ns(history: History, outages: Sequence[Outage], stalls: Stalls) -> int:
    """Between two acknowledgements to one client, of a node that was up all the while; less what the host took."""
    longest = 0
    for writer in history.writers:
        seen = sorted((t, node) for t, node in zip(writer.acked_ns, writer.node, strict=True) if t > 0)
        for (a, at), (b, to) in pairwise(seen):
            gone = any(node in (at, to) and start < b and end > a for node, start, end in outages)
            if not gone and b - a > longest:
                longest = max(longest, b - a - stalls.within(a, b))
    return longest


def private_bytes(pid: int) -> int:
    """Resident memory of a process that it shares with nobody: without the logs, which all nodes map."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon:"))


def restart(bed: Cradle, victim: NodeStatus, chance: random.Random) -> Outage:
    """kill -9, or in order; and the next life is a member."""
    began = time.monotonic_ns()
    if chance.random() < 0.5:
        bed.kill(victim)
    else:
        os.kill(victim.pid, signal.SIGTERM)
        wait_until("it has ended", lambda: not bed.alive(int(victim.id)), 10)
    bed.revive(int(victim.id))
    bed.wait_status("it is a member again", rejoined, REJOIN_S)
    return int(victim.id) - 1, began, time.monotonic_ns()


@pytest.mark.parametrize(
    "ring_bytes", [1 << 18, pytest.param(1 << 22, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])]
)
def test_fifty_laps_while_nodes_are_restarted(nursery: Nursery, ring_bytes: int) -> None:
    """Endurance: the ring's size fifty times over. Two of the nodes are restarted again and again, the leader among
    them; the third lives all the while, and its memory stays as it is. Nobody who is connected to a node that is up
    waits for a second; replicas are equal."""
    chance = random.Random(ring_bytes)
    limits = {"ring_bytes": ring_bytes, "piece_bytes_max": ring_bytes // 8}
    outages: list[Outage] = []
    with Cradle(nursery, 3, {"limits": limits}) as bed, Stalls() as stalls:
        status = bed.status()
        stays = chance.choice(status.nodes)

        def laps() -> float:
            return max(node.more["log_position"] for node in bed.status().nodes if node.role != "down") / ring_bytes

        plan = spread([node.client_address for node in status.nodes], 2, depth=8, timeout_s=10.0)
        with Load(plan) as load:
            wait_until("every buffer has been in use", lambda: laps() >= 4, 300)
            before = private_bytes(stays.pid)
            while (now := laps()) < 50 or len(outages) < 4:
                victims = [node for node in bed.status().nodes if node.id != stays.id]
                outages.append(restart(bed, chance.choice(victims), chance))
                goal = min(50.0, now + 4)
                wait_until("the log goes on", lambda goal=goal: laps() >= goal, 300)  # type: ignore[misc]
            history = load.finish()
        status = bed.wait_status("all are in step", rejoined, REJOIN_S)
        grown = private_bytes(stays.pid) - before
        gap_ns = longest_gap_ns(history, outages, stalls)
        told = f"{len(outages)} restarts, longest gap {gap_ns / 1e6:.0f} ms, grown by {grown / 2**20:.1f} MiB"
        print(f"{history.acknowledged} writes, {told}")
        assert status[stays.id].pid == stays.pid
        assert gap_ns < 1_000_000_000 and grown < 16 << 20, told
        assert_equal(bed)
        for node in status.nodes:
            verdict = verify(history, bed.client(node))
            assert not verdict.lost and not verdict.doubled, verdict.troubles
    assert bed.leftovers() == []
