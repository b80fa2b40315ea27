"""The simulator's check of linearizability (tests/sim/history.c): histories known to be good or bad, and small random
ones judged a second time by trying every order."""

from __future__ import annotations

import itertools
import random
import subprocess
from dataclasses import dataclass

import pytest

from musidecar import sim


@dataclass(frozen=True)
class Operation:
    """A call by its name, what it wrote, what it was told, and when; `end` None: no answer."""

    name: str
    value: int
    result: int
    start: int
    end: int | None

    def __str__(self) -> str:
        return f"{self.name} {self.value} {self.result} {self.start} {'-' if self.end is None else self.end}"


History = list[Operation]


def verdicts(histories: list[History]) -> list[str]:
    lines = "".join("".join(f"{operation}\n" for operation in history) + "\n" for history in histories)
    done = subprocess.run([sim.program(), "--check-histories"], input=lines, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    return done.stdout.splitlines()


def written(value: int, start: int, end: int | None) -> Operation:
    return Operation("set", value, value if end is not None else 0, start, end)


def read(result: int, start: int, end: int | None) -> Operation:
    return Operation("get", 0, result, start, end)


def incr(result: int, start: int, end: int | None) -> Operation:
    return Operation("incr", 0, result, start, end)


def count(result: int, start: int, end: int | None) -> Operation:
    return Operation("count", 0, result, start, end)


GOOD: dict[str, History] = {
    "one after the other": [written(1, 1, 2), read(1, 3, 4), written(2, 5, 6), read(2, 7, 8)],
    "a read beside a write sees either": [written(1, 1, 10), read(0, 2, 3), read(1, 4, 5), read(1, 11, 12)],
    "no answer, and seen": [written(1, 1, None), read(0, 2, 3), read(1, 4, 5)],
    "no answer, and never seen": [written(1, 1, 2), written(2, 3, None), read(1, 4, 5), read(1, 6, 7)],
    "two writes at once, in either order": [written(1, 1, 5), written(2, 2, 6), read(2, 7, 8)],
    "a write between two reads of others": [written(1, 1, 20), written(2, 2, 21), read(1, 22, 23)],
    "counted": [incr(1, 1, 2), incr(2, 3, 4), count(2, 5, 6)],
    "counted at once": [incr(2, 1, 5), incr(1, 2, 6), count(1, 3, 4)],
    "one increment without answer": [incr(1, 1, 2), incr(0, 3, None), incr(3, 4, 5), count(3, 6, 7)],
    "an increment without answer may come late": [incr(0, 1, None), count(0, 2, 3), count(1, 4, 5)],
}
BAD: dict[str, History] = {
    "a stale read": [written(1, 1, 2), written(2, 3, 4), read(1, 5, 6)],
    "a lost write": [written(1, 1, 2), read(0, 3, 4)],
    "time runs backwards between two reads": [written(1, 1, 20), read(1, 2, 3), read(0, 4, 5)],
    "a value from nowhere": [written(1, 1, 2), read(7, 3, 4)],
    "read before it was written": [read(1, 1, 2), written(1, 3, 4)],
    "seen, gone, seen again": [written(1, 1, 2), written(2, 3, 20), read(2, 4, 5), read(1, 6, 7)],
    "two readers disagree on the order": [
        written(1, 1, 10), written(2, 2, 11), read(1, 12, 13), read(2, 14, 15), read(1, 16, 17),
    ],
    "an old value without answer comes back": [written(1, 1, None), read(1, 2, 3), written(2, 4, 5), read(1, 6, 7)],
    "two increments were told the same": [incr(1, 1, 2), incr(1, 3, 4)],
    "an increment was lost": [incr(1, 1, 2), incr(2, 3, 4), count(1, 5, 6)],
    "an increment was done twice": [incr(1, 1, 2), incr(3, 3, 4)],
    "an increment without answer was done twice": [incr(1, 1, 2), incr(0, 3, None), count(3, 4, 5)],
    "an increment came before it was asked for": [incr(2, 1, 2), incr(1, 3, 4)],
    "one without answer came before it was asked for": [incr(1, 1, 2), count(2, 3, 4), incr(0, 5, None)],
    "a count runs backwards": [incr(1, 1, 20), count(1, 2, 3), count(0, 4, 5)],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_is_linearizable(name: str) -> None:
    assert verdicts([GOOD[name]]) == ["linearizable"]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_not(name: str) -> None:
    (verdict,) = verdicts([BAD[name]])
    assert verdict != "linearizable"


def fits(order: tuple[Operation, ...]) -> bool:
    """Is this order one in which a single register or counter gives these answers?"""
    state = 0
    for operation in order:
        if operation.name == "set":
            state = operation.value
        elif operation.name == "incr":
            state += 1
            if operation.end is not None and operation.result != state:
                return False
        elif operation.result != state:
            return False
    return True


def in_time(order: tuple[Operation, ...]) -> bool:
    return all(b.end is None or a.start < b.end for a, b in itertools.combinations(order, 2))


def brute(history: History) -> bool:
    """Every order of every choice of the operations without answer."""
    answered = [operation for operation in history if operation.end is not None]
    open_writes = [operation for operation in history if operation.end is None and operation.name in {"set", "incr"}]
    return any(
        fits(order)
        for some in range(len(open_writes) + 1)
        for chosen in itertools.combinations(open_writes, some)
        for order in itertools.permutations([*answered, *chosen])
        if in_time(order)
    )


def random_history(dice: random.Random, write: str, look: str) -> History:
    times = list(range(1, 17))
    dice.shuffle(times)
    history: History = []
    for number in range(1, dice.randint(2, 6)):
        start, end = sorted((times.pop(), times.pop()))
        answered = dice.random() < 0.75
        if dice.random() < 0.5:
            result = number if write == "set" else dice.randint(1, 3)
            history.append(Operation(write, number, result if answered else 0, start, end if answered else None))
        else:
            history.append(Operation(look, 0, dice.randint(0, 3), start, end if answered else None))
    return history


@pytest.mark.parametrize(("write", "look"), [("set", "get"), ("incr", "count")])
def test_it_judges_as_one_that_tries_every_order(write: str, look: str) -> None:
    dice = random.Random(11)
    histories = [random_history(dice, write, look) for _ in range(4000)]
    judged = verdicts(histories)
    assert len(judged) == len(histories)
    good = 0
    for history, verdict in zip(histories, judged, strict=True):
        assert (verdict == "linearizable") == brute(history), (verdict, [str(operation) for operation in history])
        good += verdict == "linearizable"
    assert 400 < good < 3600  # there were both
