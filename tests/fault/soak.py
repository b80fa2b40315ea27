"""Rounds of faults for as long as one likes: `make soak MINUTES=n`, or ROUNDS=n, FAILOVERS=n, SEED=n.

Each round is a fresh cluster and a seed; every sixth one has five nodes. A round that finds something leaves its story
and the histories in question in a folder, whose path is printed at once, with the command that repeats the seed. At the
end: a report, as text on the terminal and as JSON in a file. Exit code 1 when anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from musidecar.bench.table import percentile
from musidecar.config import ConfigError
from musidecar.testbed import TestbedError
from tests.fault.rounds import Arena, Round

FIVE_EVERY = 6
LINE_EVERY_S = 15.0  # where there is no terminal to draw on


def nodes_of(seed: int) -> int:
    """How many nodes the round of a seed has."""
    return 5 if seed % FIVE_EVERY == FIVE_EVERY - 1 else 3


@dataclass
class Tally:
    """The sum over all rounds."""

    first_seed: int
    began: float = field(default_factory=time.monotonic)
    rounds: int = 0
    failovers: int = 0
    operations: int = 0
    acknowledged: int = 0
    unknown: int = 0
    refused: int = 0
    keys: int = 0
    lost: int = 0
    doubled: int = 0
    violations: int = 0
    unsound: list[dict[str, Any]] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    strikes: Counter[str] = field(default_factory=Counter)
    outages_ms: list[float] = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)

    @property
    def minutes(self) -> float:
        """Since it began."""
        return (time.monotonic() - self.began) / 60

    def add(self, one: Round) -> None:
        """A round that is over."""
        found = one.outcome
        self.rounds += 1
        self.failovers += one.failovers
        self.operations += found.operations
        self.acknowledged += found.acknowledged
        self.unknown += found.unknown
        self.refused += found.refused
        self.keys += found.keys
        self.lost += found.lost
        self.doubled += found.doubled
        self.violations += len(found.violations)
        self.errors += found.errors
        self.outages_ms += found.outages_ms
        self.starts_s.append(one.start_s)
        for strike in one.strikes:
            for fault in strike.split(" and "):
                self.strikes[fault.split(" of ")[0]] += 1

    def line(self) -> str:
        """How it stands, in one line."""
        return (f"{self.minutes:5.1f} min  seed {self.first_seed + self.rounds - 1}  rounds {self.rounds} "
                f"({self.rounds / max(self.minutes, 1e-6):.0f}/min)  fail-overs {self.failovers}  "
                f"acknowledged writes {self.acknowledged}  lost {self.lost}  doubled {self.doubled}  "
                f"violations {self.violations}  unsound rounds {len(self.unsound)}")  # fmt: skip

    def report(self) -> dict[str, Any]:
        """For the JSON file."""
        finite = sorted(ms for ms in self.outages_ms if ms != float("inf"))
        return {
            "first_seed": self.first_seed,
            "rounds": self.rounds,
            "minutes": round(self.minutes, 2),
            "failovers": self.failovers,
            "operations": self.operations,
            "acknowledged_writes": self.acknowledged,
            "unknown": self.unknown,
            "refused": self.refused,
            "keys_checked": self.keys,
            "lost": self.lost,
            "doubled": self.doubled,
            "non_linearizable_histories": self.violations,
            "faults": dict(self.strikes.most_common()),
            "errors": dict(self.errors.most_common(20)),
            "outage_ms": {"p50": percentile(finite, 0.5), "p99": percentile(finite, 0.99), "max": finite[-1]}
            if finite else {},
            "cluster_start_s": round(statistics.median(self.starts_s), 3) if self.starts_s else None,
            "unsound_rounds": self.unsound,
        }  # fmt: skip


class _Screen:
    """The moving line on a terminal; a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None
        self._next = time.monotonic() + LINE_EVERY_S

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """While it runs."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, transient=True) as self._live:
            yield
        self._live = None

    def update(self, tally: Tally) -> None:
        """After each round."""
        if self._live is not None:
            self._live.update(Text(tally.line()))
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_EVERY_S
            self.console.print(tally.line(), highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Bounds:
    """When it is enough: whatever comes first. 0: no bound."""

    minutes: float = 0.0
    rounds: int = 0
    failovers: int = 0

    def reached(self, tally: Tally) -> bool:
        """Enough?"""
        return bool(
            (self.minutes and tally.minutes >= self.minutes)
            or (self.rounds and tally.rounds >= self.rounds)
            or (self.failovers and tally.failovers >= self.failovers)
        )


def soak(bounds: Bounds, seed: int, out: Path, console: Console, *, one_cluster: bool = False) -> Tally:
    """Rounds until the bounds are reached. one_cluster: of three nodes, which goes on from round to round."""
    tally, screen = Tally(seed), _Screen(console)
    with screen.shown(), Arena(one_cluster=one_cluster) as arena:
        while not bounds.reached(tally):
            this = seed + tally.rounds
            nodes, after = (3, 3) if one_cluster else (nodes_of(this), nodes_of(this + 1))
            try:
                one = arena.fight(this, nodes, nodes_next=after)
            except (TestbedError, ConfigError, OSError) as error:  # TimeoutError is one
                one = Round(this, nodes, troubles=[f"the round could not be held: {error}"])
            tally.add(one)
            if not one.sound:
                story = one.keep(out)
                tally.unsound.append({"seed": this, "nodes": one.nodes, "story": str(story), "strikes": one.strikes,
                                      "troubles": one.troubles, "keys": len(one.outcome.violations)})  # fmt: skip
                console.print(f"seed {this} found something: {story}\n  again: make soak SEED={this} ROUNDS=1",
                              style="red", highlight=False, soft_wrap=True)  # fmt: skip
            screen.update(tally)
    return tally


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="soak", description="Real clusters under fire, until it is enough.")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--failovers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1, help="of the first round; the next ones count up")
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="folder for reports and histories")
    parser.add_argument("--one-cluster", action="store_true", help="of three nodes, for all rounds, not fresh ones")
    given = parser.parse_args()
    bounds = Bounds(given.minutes, given.rounds, given.failovers)
    if bounds == Bounds():
        parser.error("give --minutes, --rounds or --failovers")
    console = Console() if sys.stdout.isatty() else Console(width=200)
    given.out.mkdir(parents=True, exist_ok=True)
    tally = soak(bounds, given.seed, given.out, console, one_cluster=given.one_cluster)
    report = tally.report()
    path = given.out / f"report-{given.seed}-{tally.rounds}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(tally.line(), highlight=False, soft_wrap=True)
    for name in ("operations", "keys_checked", "unknown", "refused", "faults", "errors", "outage_ms",
                 "cluster_start_s"):  # fmt: skip
        console.print(f"  {name}: {report[name]}", highlight=False, soft_wrap=True)
    console.print(f"  report: {path}", highlight=False, soft_wrap=True)
    return 1 if tally.unsound else 0


if __name__ == "__main__":
    sys.exit(main())
