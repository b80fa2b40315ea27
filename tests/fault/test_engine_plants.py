"""Mistakes planted in the engine of the test build, and real clusters: each is noticed by the clients' history or by
the comparison of the replicas. A mistake that nobody notices is a hole in them."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence

import pytest

from musidecar.workload import encode
from tests.fault import plants
from tests.fault.clients import understood, words
from tests.fault.history import DONE, Operation
from tests.fault.linearizability import check
from tests.fault.nemesis import Fault, Strike
from tests.fault.nursery import Cradle, Nursery
from tests.fault.rounds import SETTINGS, Arena, Round

ROUNDS_MAX = 40  # each is noticed in about half of the rounds or more: one that needs many has lost its meaning
Recorder = Callable[[str, object], None]


def leader_killed(seed: int) -> Sequence[Strike]:
    """kill -9 of the leader's node, once."""
    return [Strike(random.Random(seed).uniform(0.02, 0.1), (Fault("kill", 0),), mended=False)]


def nothing_done(seed: int) -> Sequence[Strike]:
    """No fault at all."""
    return []


def unequal(round_: Round) -> bool:
    """The comparison of the replicas found it."""
    return any("offsets" in text or "differ" in text for text in round_.troubles)


def no_order(round_: Round) -> bool:
    """The clients' history has no order."""
    return bool(round_.outcome.violations)


# What is planted, what is done to the cluster, who notices.
PLANTS: dict[str, tuple[Callable[[int], Sequence[Strike]], Callable[[Round], bool]]] = {
    "effect-twice": (nothing_done, unequal),
    "covered-rerun": (leader_killed, no_order),
    "cut-without-role": (leader_killed, no_order),
    "promoted-early": (leader_killed, no_order),
}


def test_every_mistake_of_the_engine_is_here() -> None:
    """Those that ffi/plant.h lists behind the core's; the last one is a lot, not a mistake."""
    header = (plants.ROOT / "ffi" / "plant.h").read_text()
    names = re.findall(r"^    PLANT_(\w+),", header[header.index("/* ffi/engine") :], re.MULTILINE)
    assert {name.lower().replace("_", "-") for name in names} == {*PLANTS, "deaf"}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_mistake_is_noticed(
    plant: str, record_property: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds with seeds from 1 on, until it is."""
    monkeypatch.setattr("tests.fault.rounds.COMPARE_S", 2.0)
    strikes, noticed = PLANTS[plant]
    with Arena(plants.environment(plant)) as arena:
        began = time.monotonic()
        for seed in range(1, ROUNDS_MAX + 1):
            round_ = arena.fight(seed, 3, strikes(seed), nodes_next=3)
            if noticed(round_):
                break
        else:
            pytest.fail(f"{plant}: not noticed in {ROUNDS_MAX} rounds")
    record_property("seed", seed)
    print(f"{plant}: noticed with seed {seed}, after {time.monotonic() - began:.1f} s")


def test_without_a_mistake_nothing_is_noticed() -> None:
    """The same build, the same faults."""
    with Arena(plants.environment()) as arena:
        for seed in range(1, 5):
            round_ = arena.fight(seed, 3, leader_killed(seed), nodes_next=3)
            assert round_.sound, round_.text()


# ---- a read without the probe ----------------------------------------------------------------------------------------
#
# On shared memory a leader that was deposed hears of it as soon as it runs again, before it answers anything that was
# sent meanwhile: the probe is its third defence. So it is made deaf as well, as if it were cut off in one direction. It
# must be idle, for a write would be refused, and back within 20 ms, when an idle leader asks itself whether it is one.


class _Reader:
    """One connection, one request at a time, recorded."""

    def __init__(self, address: tuple[str, int], history: list[Operation]) -> None:
        self.sock = socket.create_connection(address, 10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.history = history

    def send(self, name: str, value: str = "") -> Operation:
        op = Operation("r", name, value, time.monotonic_ns())
        self.history.append(op)
        self.sock.sendall(encode(words(op)))
        return op

    def answered(self, op: Operation) -> bool:
        """Waits for the answer; False when the connection closes instead."""
        with contextlib.suppress(ConnectionError):
            if data := self.sock.recv(4096):
                op.outcome, op.back_ns = DONE, time.monotonic_ns()
                bulk = data.split(b"\r\n")[1] if data[:1] == b"$" and data[:2] != b"$-" else None
                op.result = understood(op, bulk) if op.name == "GET" else "OK"
                return True
        return False


def blink(bed: Cradle) -> list[Operation]:
    """The leader stands still until another one has acknowledged a write, and goes on with a read that was sent after
    that. What was seen."""
    status = bed.wait_ready()
    leader = status[status.leader or ""]
    other = next(node for node in status.nodes if node.id != leader.id)
    history: list[Operation] = []
    with contextlib.ExitStack() as stack:

        def reader(address: tuple[str, int]) -> _Reader:
            one = _Reader(address, history)
            stack.callback(one.sock.close)
            return one

        late, waiting, writer = (reader(node.client_address) for node in (leader, other, other))
        for number in range(20):
            assert late.answered(late.send("SET", f"old {number}"))
        assert waiting.answered(waiting.send("GET")) and writer.answered(writer.send("GET"))
        assert late.answered(late.send("SET", "old"))
        time.sleep(0.0025)  # until the followers have been told that it is committed: nothing is left to be written
        os.kill(bed.pids[int(leader.id)], signal.SIGSTOP)
        waiting.answered(waiting.send("GET"))  # closed as soon as another one serves
        for number in range(20):
            if writer.answered(writer.send("SET", f"new {number}")):
                break
            writer = reader(other.client_address)
        stale = late.send("GET")
        os.kill(bed.pids[int(leader.id)], signal.SIGCONT)
        late.answered(stale)
    return history


def blinks(plant: str, times: int) -> list[bool]:
    """For each of so many clusters: was something stale seen?"""
    found = []
    with Nursery(plants.environment(*plant.split(","))) as nursery:
        for _ in range(times):
            with Cradle(nursery, 3, SETTINGS) as bed:
                found.append(bool(check(blink(bed))))
    return found


def test_a_read_without_the_probe_is_noticed(record_property: Recorder) -> None:
    began = time.monotonic()
    found = blinks("read-unprobed,deaf", 8)
    assert any(found)
    record_property("clusters", found.index(True) + 1)
    print(f"read-unprobed: noticed {found.count(True)} times of {len(found)}, {time.monotonic() - began:.1f} s")


@pytest.mark.parametrize("plant", ["deaf", "read-unprobed"])
def test_the_probe_alone_is_enough_and_so_is_what_else_there_is(plant: str) -> None:
    assert blinks(plant, 4) == [False] * 4
