"""Machines of three processes, all of which propose; leaders killed in the middle of batches: every record once, every
result the right one."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from musidecar.bench.machines import Machines
from musidecar.testbed import wait_until
from tests.fault.api_node import BATCH, THREADS

Command = Callable[..., subprocess.CompletedProcess[str]]
NODE = Path(__file__).with_name("api_node.py")
MOVES_S = 30.0


class Ledgers(Machines):
    """api_node.py at every node. What it was told stands in `told`."""

    def __init__(self) -> None:
        super().__init__()
        self.told = self.folder / "told"
        self.told.mkdir()

    def begin(self, node: int, *settings: str) -> int:
        """Its process's number."""
        return self.start(node, NODE, self.path, str(node), self.told, *settings).pid

    def dies_in_a_batch(self, node: int) -> None:
        """It kills itself between two records of one."""
        self.running[node].send_signal(signal.SIGUSR1)
        assert self.running[node].wait(MOVES_S) == -signal.SIGKILL
        self.kill(node)

    def steps_down(self, node: int) -> None:
        """It stops itself between two records of a batch until another one leads, and goes on."""
        self.running[node].send_signal(signal.SIGUSR2)
        try:
            wait_until("another leader", lambda: self.status()["leader"] not in (None, node), MOVES_S)
        finally:
            self.running[node].send_signal(signal.SIGCONT)

    def all_ready(self) -> None:
        assert {node: self.hear(node) for node in self.running} == dict.fromkeys(self.running, "ready")

    def leader(self) -> int:
        """Waits for one."""
        wait_until("a leader", lambda: self.status()["leader"] in self.running, MOVES_S)
        found: int = self.status()["leader"]
        return found

    def moves(self, more: int = 4 * BATCH) -> None:
        """Until so much more has been told to every thread of a process that runs."""
        pids = {str(process.pid) for process in self.running.values()}
        files = [path for path in self.told.iterdir() if path.name.split(".")[1:2] and path.name.split(".")[1] in pids]
        before = {path: lines(path) for path in files}
        assert len(files) == THREADS * len(pids)
        wait_until("more", lambda: all(lines(path) >= before[path] + more for path in files), MOVES_S)

    def stop(self) -> None:
        """Nobody proposes any more."""
        for node in self.running:
            self.say(node)
        assert {self.hear(node) for node in self.running} == {"stopped"}

    def states(self) -> dict[int, Any]:
        """What each node's machine holds."""
        for node in self.running:
            self.say(node)
        found = {node: json.loads(self.hear(node)) for node in self.running}
        for node in self.running:
            self.hear(node)
        return found


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


class Told:
    """A thread's file. sent: numbers below this may have been. told: number -> (index, place in the ledger). ended:
    place -> when that was known."""

    def __init__(self, path: Path) -> None:
        self.sent = 0
        self.raised = ""
        self.told: dict[int, tuple[int, int]] = {}
        self.ended: dict[int, int] = {}
        for line in path.read_text().split("\n")[:-1]:
            kind, *words = line.split()
            if kind == "told":
                self.told[int(words[0])] = int(words[1]), int(words[2])
                self.ended[int(words[2])] = int(words[3])
            elif kind == "sends":
                self.sent = int(words[0])
            else:
                self.raised = words[0]


@pytest.fixture
def ledgers() -> Iterator[Ledgers]:
    with Ledgers() as made:
        yield made


def check(ledgers: Ledgers) -> int:
    """Of every thread: what it was told is there, at the place that it was told, in order and once; of one that lives,
    all that it has sent. Returns how many records there are."""
    records = (ledgers.told / "records").read_text().split("\n")
    alive = {str(process.pid) for process in ledgers.running.values()}
    places: dict[str, dict[int, int]] = {}
    for place, record in enumerate(records, 1):
        name, _, number = record.partition(" ")
        assert number not in places.setdefault(name, {}), f"{record} is there twice"
        places[name][int(number)] = place
    indexes: set[int] = set()
    for path in ledgers.told.iterdir():
        if path.name == "records" or path.name.endswith("reads"):
            continue
        found, there = Told(path), places.get(path.name, {})
        assert list(there) == sorted(there), f"{path.name}: out of order"
        assert max(there, default=-1) < found.sent
        assert {n: there.get(n) for n in found.told} == {n: place for n, (_, place) in found.told.items()}
        assert not indexes & {index for index, _ in found.told.values()}
        indexes |= {index for index, _ in found.told.values()}
        if path.name.split(".")[1] in alive and not found.raised:
            assert set(there) == set(range(found.sent)) == set(found.told)
    return len(records)


def test_leaders_killed_in_the_middle_of_batches(ledgers: Ledgers) -> None:
    for node in (1, 2, 3):
        ledgers.begin(node, "dump")
    ledgers.all_ready()
    for _ in range(3):
        ledgers.moves()
        leader = ledgers.leader()
        ledgers.dies_in_a_batch(leader)
        ledgers.moves()
        ledgers.begin(leader, "dump")
        assert ledgers.hear(leader) == "ready"
        ledgers.moves()
    ledgers.stop()
    states = ledgers.states()
    assert len({state["hash"] for state in states.values()}) == 1, states
    assert states[1]["count"] == check(ledgers)


def test_a_leader_that_stands_still_sends_again_what_it_has_no_outcome_of(ledgers: Ledgers) -> None:
    for node in (1, 2, 3):
        ledgers.begin(node, "dump")
    ledgers.all_ready()
    again = 0  # a batch that stood in the log already may be answered all the same
    for round_ in range(12):
        ledgers.moves()
        ledgers.steps_down(ledgers.leader())
        ledgers.moves()
        again = sum(node["closed_unknown"] for node in ledgers.status()["nodes"])
        if again and round_ > 1:
            break
    ledgers.stop()
    states = ledgers.states()
    assert len({state["hash"] for state in states.values()}) == 1, states
    assert states[1]["count"] == check(ledgers)
    assert again > 0  # or nothing was seen of that


def test_leadership_handed_over_by_plan(ledgers: Ledgers, command: Command) -> None:
    for node in (1, 2, 3):
        ledgers.begin(node, "dump")
    ledgers.all_ready()
    for _ in range(3):
        ledgers.moves()
        to = ledgers.leader() % 3 + 1
        done = command("switchover", "--config", ledgers.path, "--to", str(to))
        assert done.returncode == 0, done.stderr
        assert ledgers.leader() == to
    ledgers.moves()
    ledgers.stop()
    states = ledgers.states()
    assert len({state["hash"] for state in states.values()}) == 1, states
    assert states[1]["count"] == check(ledgers)


def test_a_node_that_comes_later_is_filled_with_what_was_there_and_what_came_meanwhile(ledgers: Ledgers) -> None:
    ledgers.begin(1, "dump", "keep=200000")  # the seed's machine: what it holds is the cluster's
    ledgers.begin(2, "dump")
    ledgers.begin(3, "idle")
    ledgers.all_ready()
    ledgers.kill(3)
    ledgers.moves()
    ledgers.begin(3, "dump", "keep=77")
    assert ledgers.hear(3) == "ready"
    ledgers.moves()
    ledgers.stop()
    states = ledgers.states()
    assert len({state["hash"] for state in states.values()}) == 1, states
    assert states[3]["count"] == check(ledgers) > 200000


@pytest.mark.parametrize("who", ["leader", "follower"])
def test_a_machine_that_raises_on_one_node(ledgers: Ledgers, who: str) -> None:
    """That node leaves, and says why; the others go on."""
    for node in (1, 2, 3):
        ledgers.begin(node, "dump")
    ledgers.all_ready()
    ledgers.moves()
    wrong = ledgers.leader() if who == "leader" else ledgers.leader() % 3 + 1
    ledgers.running[wrong].send_signal(signal.SIGHUP)
    others = [node for node in (1, 2, 3) if node != wrong]
    wait_until("it has left", lambda: ledgers.status()["nodes"][wrong - 1]["role"] == "down", MOVES_S)
    files = [path for path in ledgers.told.iterdir() if f".{ledgers.running[wrong].pid}." in path.name]
    wait_until("its proposers know", lambda: {Told(path).raised for path in files} == {"MachineFailed"}, MOVES_S)
    ledgers.say(wrong)
    assert ledgers.hear(wrong) == "stopped"
    ledgers.say(wrong)
    assert re.match(r"apply\(\d+, b'.*'\) raised KeyError\('planted'\)", json.loads(ledgers.hear(wrong))["failed"])
    assert "KeyError('planted')" in ledgers.log(wrong).read_text()
    assert ledgers.running.pop(wrong).wait(MOVES_S) == 0
    ledgers.moves()
    ledgers.stop()
    states = ledgers.states()
    assert list(states) == others and len({state["hash"] for state in states.values()}) == 1, states
    assert states[others[0]]["count"] == check(ledgers)


def test_reads_see_all_that_was_acknowledged_anywhere_before_they_began(ledgers: Ledgers) -> None:
    """At every node, while leaders stand still, go on as followers, and are killed."""
    for node in (1, 2, 3):
        ledgers.begin(node, "reads")
    ledgers.all_ready()
    for _ in range(2):
        ledgers.moves()
        ledgers.steps_down(ledgers.leader())
        ledgers.moves()
    ledgers.kill(ledgers.leader())
    ledgers.moves()
    ledgers.stop()
    known: list[tuple[int, int]] = []  # from then on so much is known to be there
    for path in ledgers.told.iterdir():
        if not path.name.endswith("reads"):
            known += [(ended, place) for place, ended in Told(path).ended.items()]
    reads = []
    for node in (1, 2, 3):
        lines = (ledgers.told / f"{node}.reads").read_text().split("\n")[:-1]
        reads += [tuple(map(int, line.split()[1:])) for line in lines]
        assert len(lines) > 50
    known += [(ended, count) for _, ended, count in reads]
    known.sort()
    moments, most = [ended for ended, _ in known], list(accumulate((count for _, count in known), max))
    for began, _, count in reads:
        before = bisect_left(moments, began)
        assert before == 0 or count >= most[before - 1]
