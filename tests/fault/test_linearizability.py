"""The checker itself: histories known to be good and known to be bad, and a comparison with trying all orders."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fault.history import DONE, REFUSED, UNKNOWN, Operation, Value, by_key, load, save
from tests.fault.linearizability import Verdict, check, check_key, lost_and_doubled, model_of

MS = 1_000_000


def op(
    text: str, called: int, back: int | None, result: Value = None, px_ms: int = 0, outcome: str | None = None
) -> Operation:
    """`SET r 5` from `called` to `back` (ms; None: it never came back)."""
    name, key, *argument = text.split()
    outcome = outcome or (UNKNOWN if back is None else DONE)
    return Operation(key, name, argument[0] if argument else "", called * MS, (back or 0) * MS, outcome, result, px_ms)


GOOD = {
    "empty": [],
    "nothing there yet": [op("GET r", 0, 1), op("SET r 1", 2, 3, "OK"), op("GET r", 4, 5, "1")],
    "a read beside a write sees either": [
        op("SET r 1", 0, 10, "OK"), op("GET r", 1, 2), op("GET r", 3, 4, "1"), op("GET r", 5, 6, "1")],
    "writes that overlap, in the other order": [
        op("SET r 1", 0, 10, "OK"), op("SET r 2", 1, 9, "OK"), op("GET r", 11, 12, "1")],
    "unknown, and done": [op("SET r 1", 0, None), op("GET r", 5, 6, "1")],
    "unknown, and never done": [op("SET r 1", 0, None), op("GET r", 5, 6), op("GET r", 50, 60)],
    "unknown, and done late": [
        op("SET r 1", 0, None), op("SET r 2", 1, 2, "OK"), op("GET r", 3, 4, "2"), op("GET r", 5, 6, "1")],
    "refused": [op("SET r 1", 0, 1, outcome=REFUSED), op("GET r", 2, 3)],
    "a read that never came back": [op("SET r 1", 0, 1, "OK"), op("GET r", 2, None), op("GET r", 3, 4, "1")],
    "counting": [op("INCR c", 0, 5, 2), op("INCR c", 1, 4, 1), op("INCR c", 6, 7, 3), op("GET c", 8, 9, 3)],
    "counting over a gap that an unknown fills": [
        op("INCR c", 0, 1, 1), op("INCR c", 0, None), op("INCR c", 2, 3, 3), op("GET c", 4, 5, 3)],
    "appending": [
        op("RPUSH l a", 0, 5, 2), op("RPUSH l b", 0, 5, 1), op("LRANGE l", 6, 7, ("b", "a"))],
    "a lock taken, refused, let go, taken": [
        op("LOCK k a", 0, 1, "OK", 100), op("LOCK k b", 2, 3, None, 100), op("GET k", 4, 5, "a"),
        op("UNLOCK k", 6, 7, 1), op("LOCK k b", 8, 9, "OK", 100)],
    "a lock that ran out": [
        op("LOCK k a", 0, 1, "OK", 50), op("GET k", 51, 52), op("LOCK k b", 53, 54, "OK", 50)],
    "a lock that ran out unseen": [op("LOCK k a", 0, 1, "OK", 50), op("LOCK k b", 60, 61, "OK", 50)],
    "a lock whose taking nobody saw": [
        op("LOCK k a", 0, None, None, 50), op("LOCK k b", 70, 71, None, 50), op("GET k", 72, 73, "a")],
}  # fmt: skip

BAD = {
    "a stale read": [
        op("SET r 1", 0, 1, "OK"), op("SET r 2", 2, 3, "OK"), op("GET r", 4, 5, "1")],
    "an acknowledged write is lost": [op("SET r 1", 0, 1, "OK"), op("GET r", 2, 3)],
    "two readers, two orders": [
        op("SET r 1", 0, 20, "OK"), op("SET r 2", 0, 20, "OK"), op("GET r", 21, 22, "1"), op("GET r", 23, 24, "2")],
    "seen, then not": [op("SET r 1", 0, None), op("GET r", 5, 6, "1"), op("GET r", 7, 8)],
    "refused and done": [op("SET r 1", 0, 1, outcome=REFUSED), op("GET r", 2, 3, "1")],
    "read before it was written": [op("GET r", 0, 1, "1"), op("SET r 1", 2, 3, "OK")],
    "never written": [op("SET r 1", 0, 1, "OK"), op("GET r", 2, 3, "7")],
    "an unknown write is done twice": [
        op("SET r 1", 0, None), op("GET r", 2, 3, "1"), op("SET r 2", 4, 5, "OK"), op("GET r", 6, 7, "2"),
        op("GET r", 8, 9, "1")],
    "the same number twice": [op("INCR c", 0, 1, 1), op("INCR c", 2, 3, 1)],
    "counted twice": [op("INCR c", 0, 1, 1), op("GET c", 2, 3, 2)],
    "an unknown one counted twice": [op("INCR c", 0, None), op("INCR c", 2, 3, 3)],
    "a count is lost": [op("INCR c", 0, 1, 1), op("INCR c", 2, 3, 2), op("GET c", 4, 5, 1)],
    "appended twice": [op("RPUSH l a", 0, 1, 1), op("LRANGE l", 2, 3, ("a", "a"))],
    "appended and gone": [
        op("RPUSH l a", 0, 1, 1), op("RPUSH l b", 2, 3, 2), op("LRANGE l", 4, 5, ("b",))],
    "appended in the other order": [
        op("RPUSH l a", 0, 1, 1), op("RPUSH l b", 2, 3, 2), op("LRANGE l", 4, 5, ("b", "a"))],
    "a list shown before and after": [
        op("RPUSH l a", 0, 9, 1), op("LRANGE l", 1, 2, ("a",)), op("LRANGE l", 3, 4, ())],
    "a lock taken twice": [op("LOCK k a", 0, 1, "OK", 100), op("LOCK k b", 2, 3, "OK", 100)],
    "a lock refused that is free": [op("LOCK k a", 0, 1, None, 100)],
    "a lock that outlives its time": [op("LOCK k a", 0, 1, "OK", 50), op("GET k", 70, 71, "a")],
    "a lock refused after its time": [op("LOCK k a", 0, 1, "OK", 50), op("LOCK k b", 70, 71, None, 50)],
    "a lock that ends before its time": [op("LOCK k a", 0, 1, "OK", 50), op("GET k", 20, 21)],
    "a lock somebody else let go": [
        op("LOCK k a", 0, 1, "OK", 100), op("UNLOCK k", 2, 3, 1), op("GET k", 4, 5, "a")],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_has_an_order(name: str) -> None:
    assert [verdict.explain() for verdict in check(GOOD[name])] == []


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_has_none(name: str) -> None:
    (verdict,) = check(BAD[name])
    assert verdict.left and verdict.key in verdict.explain()


def test_each_key_is_judged_alone() -> None:
    other = [Operation("r2", one.name, one.argument, one.called_ns, one.back_ns, one.outcome, one.result)
             for one in BAD["a stale read"]]  # fmt: skip
    history = GOOD["counting"] + BAD["a stale read"] + GOOD["appending"] + other
    assert sorted(verdict.key for verdict in check(history)) == ["r", "r2"]


# ---- against trying everything ---------------------------------------------------------------------------------------


def by_trying_all(operations: Sequence[Operation]) -> bool:
    """The definition itself: some order of all that came back and some of the unknown, in real time's order, that the
    model allows."""
    model = model_of(operations[0].key)
    done = [one for one in operations if one.outcome == DONE]
    unknown = [one for one in operations if one.outcome == UNKNOWN and one.name not in ("GET", "LRANGE")]
    for count in range(len(unknown) + 1):
        for some in itertools.combinations(unknown, count):
            if any(_allowed(order, model) for order in itertools.permutations([*done, *some])):
                return True
    return False


def _allowed(order: Sequence[Operation], model: object) -> bool:
    for i, first in enumerate(order):
        if any(later.outcome == DONE and later.back_ns < first.called_ns for later in order[i + 1 :]):
            return False
    state: object = None
    for one in order:
        allowed, state = model(state, one)  # type: ignore[operator]
        if not allowed:
            return False
    return True


def _made_up(chance: random.Random) -> list[Operation]:
    """A few operations at random times with answers that are likely, not always right."""
    kind = chance.choice("rclk")
    found = []
    for number in range(chance.randint(2, 6)):
        called = chance.randrange(40)
        back = None if chance.random() < 0.2 else called + chance.randrange(12)
        value = str(number)
        seen = chance.choice([None, *map(str, range(number + 1))])
        items = tuple(chance.sample([str(i) for i in range(number + 1)], chance.randint(0, min(2, number))))
        found.append(
            {
                "r": [op(f"SET r {value}", called, back, "OK"), op("GET r", called, back, seen)],
                "c": [op("INCR c", called, back, chance.randint(1, number + 1)),
                      op("GET c", called, back, chance.choice([None, *range(1, number + 1)]))],
                "l": [op(f"RPUSH l {value}", called, back, chance.randint(1, 1 + number)),
                      op("LRANGE l", called, back, items)],
                "k": [op(f"LOCK k {value}", called, back, chance.choice(["OK", None]), 10),
                      op("GET k", called, back, seen), op("UNLOCK k", called, back, chance.choice([0, 1]))],
            }[kind][chance.randrange(3 if kind == "k" else 2)]
        )  # fmt: skip
    return found


def test_it_says_what_trying_all_orders_says() -> None:
    verdicts = [0, 0]
    for seed in range(4000):
        made_up = _made_up(random.Random(seed))
        expected = by_trying_all(made_up)
        assert (check(made_up) == []) == expected, (seed, [str(one) for one in made_up])
        verdicts[expected] += 1
    assert min(verdicts) > 400, verdicts  # the question is not always answered the same way


# ---- long histories --------------------------------------------------------------------------------------------------


def _served(seed: int, kind: str, clients: int, count: int, unknown: float) -> list[Operation]:
    """What clients of a correct server record, each waiting for its answers, some of which never come."""
    chance = random.Random(seed)
    free_ns, ops, state, clock = [0] * clients, [], None, 0
    for number in range(count):
        client = min(range(clients), key=free_ns.__getitem__)
        called = free_ns[client] + chance.randrange(2000)
        clock = max(clock, called) + chance.randrange(300)  # when the server does it
        back = clock + chance.randrange(2000)
        reads = chance.random() < 0.4
        name = {"r": ("SET", "GET"), "c": ("INCR", "GET"), "l": ("RPUSH", "LRANGE")}[kind][reads]
        one = Operation(kind, name, str(number), called, back, UNKNOWN)
        lost = chance.random() < unknown
        if not (lost and chance.random() < 0.5):
            _, state = model_of(kind)(state, one)
        if not lost:
            one.outcome = DONE
            items = state if isinstance(state, tuple) else ()
            one.result = {"SET": "OK", "RPUSH": len(items), "LRANGE": items}.get(name, state)  # type: ignore[assignment]
        free_ns[client] = back
        ops.append(one)
    return ops


@pytest.mark.parametrize("kind", ["r", "c", "l"])
def test_long_histories_of_a_correct_server(kind: str) -> None:
    """Thousands of operations on one key, some unknown: good as they are, bad when one answer is changed; in time."""
    began = time.process_time()
    history = _served(1, kind, 8, 3000 if kind != "l" else 1000, 0.002)
    verdict = check_key(history, model_of(kind))
    assert verdict.linearizable, verdict.explain()
    assert verdict.steps < 200 * len(history)  # an unknown one makes it try more
    victim = next(one for one in history[len(history) // 2 :] if one.outcome == DONE and one.name in ("GET", "LRANGE"))
    victim.result = history[3].result
    assert not check_key(history, model_of(kind)).linearizable
    assert time.process_time() - began < 60


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_plain_counting() -> None:
    assert lost_and_doubled(BAD["counted twice"]) == (0, 1)
    assert lost_and_doubled(BAD["a count is lost"]) == (1, 0)
    assert lost_and_doubled(BAD["appended twice"]) == (0, 1)
    assert lost_and_doubled(BAD["appended and gone"]) == (1, 0)
    for name, history in GOOD.items():
        assert lost_and_doubled(history) == (0, 0), name


def test_a_history_can_be_kept(tmp_path: Path) -> None:
    history = [*BAD["appended twice"], *GOOD["a lock that ran out"], *GOOD["refused"]]
    save(tmp_path / "history.jsonl", history)
    assert load(tmp_path / "history.jsonl") == history
    assert set(by_key(history)) == {"l", "k", "r"}


def test_a_verdict_names_what_did_not_fit() -> None:
    text = check(BAD["a stale read"])[0].explain()
    assert "SET r 2" in text and "GET r -> '1'" in text
    assert Verdict("r", False, 0).explain()
