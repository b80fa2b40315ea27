"""The exchange as a state machine: the same lines give the same, and a snapshot in between makes no difference."""

import gc
import hashlib
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musidecar.protocols.liquibook.exchange import Exchange
from tests.unit.random_orders import SYMBOLS, Orders, Watcher

OPERATIONS = 30_000
OPERATIONS_LONG = 1_000_000
LOOK_EVERY, ROLL_EVERY, RESTORE_EVERY = 500, 10_000, 7_000

# Few ids, prices and quantities: they meet. An id may come again, for the same or for something else.
ids = st.sampled_from([f"i{n}" for n in range(12)])
traders = st.sampled_from(["a", "b"])
quantities = st.integers(1, 9).map(str)
prices = st.integers(98, 103).map(str)
conditions = st.sampled_from(["", " AON", " IOC", " FOK"])
stops = st.one_of(st.just(""), prices.map(lambda price: f" STOP {price}"))
lines = st.one_of(
    st.builds(
        "{} {} {} X {} {}{}{}".format,
        st.sampled_from(["BUY", "SELL"]), traders, ids, quantities,
        st.one_of(prices, prices, prices, st.just("MKT")), stops, conditions,
    ),
    st.builds("CANCEL {} {} {}".format, traders, ids, ids),
    st.builds("REPLACE {} {} {} {} {}".format, traders, ids, ids, quantities, prices),
    st.just("ROLL"),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(lines, min_size=1, max_size=40), st.data())
def test_a_snapshot_at_any_point_makes_no_difference(requests: list[str], data: st.DataObject) -> None:
    stays, moves = Exchange(["X"]), Exchange(["X"])
    point = data.draw(st.integers(0, len(requests)))
    watcher = Watcher(stays)
    for i, request in enumerate(requests):
        if i == point:
            moves = Exchange.restored(moves.snapshot())
        assert moves.apply(request.encode()) == stays.apply(request.encode())
        watcher.look()
        watcher.settle()
        assert moves.books["X"].standing() == stays.books["X"].standing()
    assert moves.snapshot() == stays.snapshot()
    assert moves.hash == stays.hash


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(lines, st.text(max_size=40)), max_size=40))
def test_what_is_rejected_changes_nothing(requests: list[str]) -> None:
    exchange = Exchange(["X"])
    for request in requests:
        before = exchange.snapshot()
        if exchange.apply(request.encode()).startswith(b"REJECT"):
            assert exchange.snapshot() == before


def run(seed: int, operations: int, restore: bool) -> tuple[bytes, str, int]:
    """State, hash of all replies, and trades, after so many random requests."""
    exchange, replies = Exchange(SYMBOLS), hashlib.sha256()
    watcher = Watcher(exchange)
    for i, line in enumerate(islice(Orders(seed), operations), 1):
        # Stamped as a log would: with gaps, where records were something else.
        replies.update(exchange.apply(b"@%d %d %s" % (3 * i, 1_000 + i, line)))
        if i % LOOK_EVERY == 0:
            watcher.look()
            watcher.settle()
        if i % ROLL_EVERY == 0:
            exchange.apply(b"ROLL")
        if restore and i % RESTORE_EVERY == 0:
            exchange = watcher.exchange = Exchange.restored(exchange.snapshot())
    return exchange.snapshot(), replies.hexdigest(), watcher.fills


def compare_runs(operations: int) -> None:
    first, second, moved = run(1, operations, False), run(1, operations, False), run(1, operations, True)
    assert first == second == moved
    assert first[2] > operations / 3, "it hardly traded"
    assert run(2, 2_000, False)[1] != run(1, 2_000, False)[1]


def test_random_requests_twice_and_with_snapshots() -> None:
    compare_runs(OPERATIONS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_random_requests_twice_and_with_snapshots() -> None:
    compare_runs(OPERATIONS_LONG)


def test_another_process_comes_to_the_same(root: Path) -> None:
    """With other hash seeds, so that nothing depends on the order of a set."""
    code = "from tests.unit.test_liquibook_random import run; print(run(3, 5000, False)[1:])"
    command = [sys.executable, "-c", code]
    told = {
        subprocess.run(
            command, cwd=root, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def test_nothing_is_left_for_the_garbage_collector() -> None:
    """liquibookd does without it."""
    exchange = Exchange(SYMBOLS)
    gc.collect()
    gc.disable()
    try:
        for line in islice(Orders(4), 3_000):
            exchange.apply(line)
        before = gc.collect()
        for line in islice(Orders(5), 3_000):
            exchange.apply(line)
        assert gc.collect() - before < 10, "it grows with the requests"
    finally:
        gc.enable()
