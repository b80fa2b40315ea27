"""`musidecar bench replicate --fabric verbs`: what a commit costs over RDMA, beside bare writes.

All nodes live in this process, on one device, and everything happens in one thread, op by op in turn
(ffi/bench/verbs_race.c): a commit; one bare inline write of the same payload and its completion; two of them to two
peers, and both completions. Ratios are of neighbours, because an emulated machine changes its speed within a second.
Then what a change of write permission takes, by access flags and by the state cycle.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from musidecar._ffi import ffi, lib
from musidecar.bench.table import Figure, console, figures, median, plain

WANTED_ONE, WANTED_TWO = 2.0, 1.10
SWITCHES = 200
TIMEOUT = 14  # of the queue pairs: nothing is lost here
FIVE_SHARE = 2  # with five nodes, a count smaller by this


class RaceError(Exception):
    """It could not be measured; says why."""


@dataclass(frozen=True)
class Race:
    """Microseconds of each operation, turn by turn."""

    nodes: int
    commit: list[float]
    one: list[float]
    parallel: list[float]

    def ratio(self, other: str) -> float:
        """Median over all turns of the commit's time to that of the neighbouring bare writes (`one`, `parallel`)."""
        return median(a / b for a, b in zip(self.commit, getattr(self, other), strict=True))


@dataclass(frozen=True)
class Switch:
    """Medians in microseconds of one way to change a permission."""

    revoke: float
    grant: float
    accept: float


class _Racers:
    """The C side; a context manager."""

    def __init__(self, nodes: int, payload_bytes: int, device: str | None) -> None:
        settings = {"nodes": nodes, "payload_bytes": payload_bytes, "gid_index": -1, "timeout": TIMEOUT}
        config = ffi.new("struct race_config *", settings | {"device": (device or "").encode()})
        why = ffi.new("char[]", lib.VERBS_WHY_BYTES)
        self.race: Any = lib.race_new(config, why, lib.VERBS_WHY_BYTES)
        if self.race == ffi.NULL:
            raise RaceError(bytes(ffi.string(why)).decode(errors="replace"))
        self.nodes = nodes

    def __enter__(self) -> _Racers:
        return self

    def __exit__(self, *_: object) -> None:
        lib.race_free(self.race)

    def run(self, count: int, parallel: int, bare_bytes: int) -> Race:
        times = [ffi.new("uint32_t[]", count) for _ in range(3)]
        if not lib.race_run(self.race, count, parallel, bare_bytes, *times):
            raise RaceError("the leader lost its leadership")
        if not lib.race_agrees(self.race):
            raise RaceError("the logs differ")
        return Race(self.nodes, *([each / 1000 for each in one] for one in times))

    def switch(self, count: int, cycle: bool) -> Switch:
        times = [ffi.new("uint32_t[]", count) for _ in range(3)]
        if not lib.race_switch(self.race, count, cycle, *times):
            raise RaceError("a permission did not change as it should")
        return Switch(*(median(each / 1000 for each in one) for one in times))


def measure(nodes: int, count: int, payload_bytes: int, device: str | None = None) -> tuple[Race, Race]:
    """Commits beside bare writes of the payload's size, and beside ones of the whole record's. RaceError."""
    with _Racers(nodes, payload_bytes, device) as racers:
        racers.run(min(count, 100), nodes - 1, payload_bytes)  # warm
        record_bytes = lib.record_bytes(payload_bytes)
        return racers.run(count, nodes - 1, payload_bytes), racers.run(count, nodes - 1, record_bytes)


def measure_switches(device: str | None = None, count: int = SWITCHES) -> dict[str, Switch]:
    """By access flags and by the state cycle. RaceError."""
    with _Racers(2, 8, device) as racers:
        return {name: racers.switch(count, cycle) for name, cycle in (("access flags", False), ("state cycle", True))}


def run(count: int, payload_bytes: int = 64, device: str | None = None) -> int:
    """Measures and prints. 0: every figure is met; 1: one is missed, or it could not be measured (says why)."""
    out = console()
    try:
        three, three_whole = measure(3, count, payload_bytes, device)
        five, five_whole = measure(5, max(10, count // FIVE_SHARE), payload_bytes, device)
        switches = measure_switches(device, min(SWITCHES, count))
    except RaceError as error:
        print(f"bench replicate: {error}", file=sys.stderr)
        return 1
    bare_bytes = {"payload": payload_bytes, "record": lib.record_bytes(payload_bytes)}
    rows = [
        [f"{race.nodes} nodes, bare {bare_bytes[size]} B", median(race.commit), median(race.one), median(race.parallel),
         race.ratio("one"), race.ratio("parallel")]
        for size, race in (("payload", three), ("record", three_whole), ("payload", five), ("record", five_whole))
    ]  # fmt: skip
    title = f"{payload_bytes}-byte records over verbs beside bare writes, microseconds, medians of {count} turns"
    columns = ["", "commit", "one", "one to each", "commit / one", "/ one to each"]
    out.print(plain(title, columns, rows))
    rows = [[name, s.revoke, s.grant, s.accept, s.revoke + s.grant + s.accept] for name, s in switches.items()]
    out.print(plain("change of permission, microseconds", ["", "revoke", "grant", "accept", "all"], rows))
    wanted = [
        Figure("commit / one bare write", three.ratio("one"), "x", at_most=WANTED_ONE),
        Figure("commit / two in parallel", three.ratio("parallel"), "x", at_most=WANTED_TWO),
    ]
    out.print(figures("wanted", wanted))
    return 0 if all(each.met for each in wanted) else 1
