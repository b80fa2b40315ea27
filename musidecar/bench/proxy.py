"""`bench proxy`: SET and GET of 64 bytes (of an exchange: limit orders, and looks at the book) through the leader of a
cluster, beside the server alone, HAProxy, and for Redis twemproxy and WAIT, in one run. Rounds are interleaved and in
random order, contestants not being measured are stopped, one generator (load.c) drives all, ratios are medians of the
paired ratios of each round."""

from __future__ import annotations

import contextlib
import math
import os
import random
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from musidecar.bench import contestants, generator, plot, table
from musidecar.bench.contestants import Contestant
from musidecar.bench.generator import Sample, Shape
from musidecar.bench.table import Figure, median

SHAPES = (Shape(1, 1), Shape(50, 1), Shape(50, 16))
# A single request under way is at the mercy of which cores the scheduler put the processes on (28 to 106 us were seen
# for one and the same proxy), so a round's sample of 1x1 is the median of several short ones, each newly connected.
SHORT_SAMPLES = 5
# Before the first round everybody is loaded as long as it takes to have touched its memory once: on a virtual machine
# the first write to a page costs more than a SET, and a replicating Redis has 64 MiB of backlog to go through.
WARM_S = 3.0
OURS, WAIT = "musidecar", "Redis + WAIT 1"
CACHE, EXCHANGE = "memcached alone", "liquibookd alone"
WORDS = {"liquibook": {"set": "Limit orders", "get": "DEPTH"}}  # what is measured, where it is not SET and GET
Cell = tuple[str, str, str]  # contestant, set|get, shape


@dataclass
class Results:
    """Samples by cell, one a round (so index = round), and the CPU in use by role during each."""

    samples: dict[Cell, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[Cell, list[dict[str, float]]] = field(default_factory=lambda: defaultdict(list))
    troubles: list[str] = field(default_factory=list)

    def cell(self, name: str, mode: str, shape: Shape) -> list[Sample]:
        """The samples of one cell; none when the contestant was not there."""
        return self.samples.get((name, mode, str(shape)), [])

    def rps(self, name: str, mode: str, shape: Shape) -> list[float]:
        """Requests a second in each round."""
        return [s.rps for s in self.cell(name, mode, shape)]

    def ratio(self, mode: str, shape: Shape, other: str) -> float:
        """Median of our rate over the other's, round by round; nan when one was not there."""
        pairs = zip(self.rps(OURS, mode, shape), self.rps(other, mode, shape), strict=False)
        return median(ours / its if its else math.inf for ours, its in pairs)  # one that did nothing in its time

    def ratio_without_followers(self, mode: str, shape: Shape, other: str) -> float:
        """The same, with the followers' CPU given back to the rest: rate x cores / (cores - cores the followers used).
        An upper bound of what the leader would do alone on this host: the load is taken to fill all cores."""
        cores = len(os.sched_getaffinity(0))
        used_by_us = self.cpu.get((OURS, mode, str(shape)), [])
        cells = zip(self.rps(OURS, mode, shape), used_by_us, self.rps(other, mode, shape), strict=False)
        return median(
            ours * cores / max(cores - sum(used[role] for role in used if role.startswith("followers")), 0.1) / its
            for ours, used, its in cells
        )

    def us_a_request(self, name: str, role: str, shape: Shape) -> float:
        """Median processor time that the processes of a role use for one SET, microseconds."""
        cell = (name, "set", str(shape))
        pairs = zip(self.cpu[cell], self.cell(name, "set", shape), strict=True)
        return median(cores[role] * 1e6 / sample.rps for cores, sample in pairs)

    def added_p50_us(self, mode: str, shape: Shape, other: str, name: str = OURS) -> float:
        """Median of what our p50 latency is above the other's."""
        pairs = zip(self.cell(name, mode, shape), self.cell(other, mode, shape), strict=False)
        return median(ours.p50_us - its.p50_us for ours, its in pairs)

    def p50_ratio(self, mode: str, shape: Shape, other: str) -> float:
        """Median of our p50 latency over the other's."""
        pairs = zip(self.cell(OURS, mode, shape), self.cell(other, mode, shape), strict=False)
        return median(ours.p50_us / its.p50_us for ours, its in pairs)


def measure(c: Contestant, mode: str, shape: Shape, seconds: float, results: Results) -> None:
    """One sample of one contestant, with what CPU its processes used meanwhile."""
    cell, warm_s = (c.name, mode, str(shape)), 0.2
    times = SHORT_SAMPLES if shape.connections == 1 else 1
    before = c.cpu()
    wait = c.wait if mode == "set" else 0
    taken = [generator.run(c.host, c.port, shape, seconds / times, mode, wait, warm_s / times, c.backend)
             for _ in range(times)]
    after = c.cpu()
    c.tidy()
    spent = sum(s.seconds for s in taken) + warm_s
    results.samples[cell].append(sorted(taken, key=lambda s: s.rps)[times // 2])
    results.cpu[cell].append({role: (after[role] - before[role]) / spent for role in after})


def tournament(field_: Sequence[Contestant], rounds: int, seconds: float, seed: int, console: Console) -> Results:
    """All rounds. Everybody is stopped but the one being measured."""
    results, chance = Results(), random.Random(seed)
    for c in field_:
        generator.fill(c.host, c.port, c.backend)
        generator.run(c.host, c.port, SHAPES[-1], WARM_S, "set", backend=c.backend)
        c.tidy()
        c.stop()
    for number in range(rounds):
        cells = [(mode, shape) for shape in SHAPES for mode in ("set", "get")]
        chance.shuffle(cells)
        for mode, shape in cells:
            order = [c for c in field_ if not (c.wait and mode == "get")]
            chance.shuffle(order)
            for c in order:
                c.cont()
                measure(c, mode, shape, seconds, results)
                c.stop()
        console.print(f"round {number + 1} of {rounds}", style="dim", highlight=False)
        for c in field_:
            if c.name == OURS:
                c.cont()
                trouble = c.check()
                if trouble:
                    results.troubles.append(f"round {number + 1}: {trouble}")
                c.stop()
    return results


def judge(results: Results, backend: str = "redis") -> list[Figure]:
    """The figures that are wanted."""
    one, many, deep = SHAPES
    if backend == "memcached":
        figures = [Figure("SET 50x1 / HAProxy", results.ratio("set", many, "HAProxy"), "x", at_least=1.0),
                   Figure("SET 1x1 p50 / HAProxy's", results.p50_ratio("set", one, "HAProxy"), "x", at_most=1.2)]
        for mode, shape in [(mode, shape) for mode in ("set", "get") for shape in SHAPES]:
            figures.append(Figure(f"{mode.upper()} {shape} / {CACHE}", results.ratio(mode, shape, CACHE), "x"))
        return figures
    if backend == "liquibook":
        figures = [Figure("added p50 of an order, one client", results.added_p50_us("set", one, EXCHANGE), "us"),
                   Figure("what HAProxy adds to it", results.added_p50_us("set", one, EXCHANGE, "HAProxy"), "us"),
                   Figure("orders 1x1 p50 / HAProxy's", results.p50_ratio("set", one, "HAProxy"), "x")]
        for mode, shape in [(mode, shape) for mode in ("set", "get") for shape in SHAPES]:
            name = {"set": "orders", "get": "books"}[mode]
            figures.append(Figure(f"{name} {shape} / {EXCHANGE}", results.ratio(mode, shape, EXCHANGE), "x"))
        return figures
    figures = [
        Figure("SET 50x1 / HAProxy", results.ratio("set", many, "HAProxy"), "x", at_least=1.1),
        Figure("SET 50x16 / twemproxy", results.ratio("set", deep, "twemproxy"), "x", at_least=0.75),
        Figure("SET 50x16 / twemproxy, followers' CPU subtracted",
               results.ratio_without_followers("set", deep, "twemproxy"), "x", at_least=1.0),
        Figure("SET 50x1 / SET + WAIT 1", results.ratio("set", many, WAIT), "x", at_least=1.3),
        Figure("SET 50x16 / SET + WAIT 1", results.ratio("set", deep, WAIT), "x", at_least=2.0),
        Figure("SET 1x1 p50 / HAProxy's", results.p50_ratio("set", one, "HAProxy"), "x", at_most=1.2),
    ]
    for shape in SHAPES:
        figures.append(Figure(f"GET {shape} / twemproxy", results.ratio("get", shape, "twemproxy"), "x", at_least=1.0))
    return figures


def _called(mode: str, backend: str) -> str:
    return WORDS.get(backend, {}).get(mode) or f"{mode.upper()} of 64 B"


def report(results: Results, names: Sequence[str], console: Console, backend: str = "redis") -> None:
    """The tables: rates and latencies, then where the CPU went."""
    for mode in ("set", "get"):
        rows: list[list[object]] = []
        for shape in SHAPES:
            for name in names:
                samples = results.cell(name, mode, shape)
                if samples:
                    rates = [s.rps for s in samples]
                    rows.append([f"{shape}  {name}", median(rates), min(rates), max(rates),
                                 median(s.p50_us for s in samples), median(s.p99_us for s in samples),
                                 results.ratio(mode, shape, name)])
        title = f"{_called(mode, backend)}, connections x pipeline (latency: of a batch)"
        columns = ["medians", "/s", "lowest", "highest", "p50 us", "p99 us", "musidecar / it"]
        console.print(table.plain(title, columns, rows))
    rows = []
    for name in names:
        for role in (results.cpu.get((name, "set", str(SHAPES[1]))) or [{}])[0]:
            rows.append([f"{name}: {role}", *(results.us_a_request(name, role, shape) for shape in SHAPES)])
    title = f"Processor time of each, microseconds (medians): {_called('set', backend)}"
    console.print(table.plain(title, ["process", *map(str, SHAPES)], rows))


def picture(results: Results, names: Sequence[str], out: Path, name: str, backend: str = "redis") -> list[str]:
    """A PNG for SET and one for GET."""
    lines = []
    for mode in ("set", "get"):
        there = [n for n in names if results.rps(n, mode, SHAPES[0])]
        series = {n: [median(results.rps(n, mode, s)) for s in SHAPES] for n in there}
        spread = {n: [(min(r), max(r)) for r in (results.rps(n, mode, s) for s in SHAPES)] for n in there}
        title = f"{_called(mode, backend)}: medians of {len(results.rps(there[0], mode, SHAPES[0]))} paired rounds"
        lines.append(plot.grouped_bars(out / f"{name}-{mode}.png", title, "requests/s", list(map(str, SHAPES)), series,
                                       spread))
    return lines


def run(rounds: int = 7, seconds: float = 1.0, out: Path = Path("bench-results"), backend: str = "redis",
        only: Sequence[str] = (), seed: int = 1) -> int:
    """Runs and prints the comparison. Returns the exit code: 1 when the cluster changed its leader meanwhile."""
    console, makers = table.console(), contestants.ALL[backend]
    name = "proxy" if backend == "redis" else f"proxy-{backend}"
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory(prefix="musidecar-bench-") as folder:
        runners = [stack.enter_context(makers[each](Path(folder) / each)) for each in only or makers]
        ours = next((c for c in runners if c.name == OURS), None)
        if ours is not None and not ours.may_freeze:
            console.print("the cluster changed its leader when it was stopped and continued: it is left running, idle")
        results = tournament(runners, rounds, seconds, seed, console)
        names = [c.name for c in runners]
    report(results, names, console, backend)
    figures = judge(results, backend) if ours is not None else []
    if figures:
        console.print(table.figures(f"medians of {rounds} paired rounds", figures))
        console.print("followers' CPU subtracted = rate x cores / (cores - cores used by the followers and their "
                      "servers): an upper bound, as if they ran on hosts of their own.", style="dim")
    for line in picture(results, names, out, name, backend):
        console.print(line)
    raw = {" / ".join(cell): [vars(s) for s in samples] for cell, samples in results.samples.items()}
    cpu = {" / ".join(cell): rows for cell, rows in results.cpu.items()}
    table.save(out, name, figures, {"samples": raw, "cores": cpu, "troubles": results.troubles})
    for trouble in results.troubles:
        console.print(trouble, style="red")
    return 1 if results.troubles else 0
