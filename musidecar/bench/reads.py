"""`bench reads`: GETs at a follower of a cluster with reads = "local", answered by its own Redis after READONLY, beside
GETs there that the leader answers. The two are interleaved; ratios are medians of each round's."""

from __future__ import annotations

import random
from pathlib import Path

from musidecar.bench import generator, table
from musidecar.bench.generator import Sample, Shape
from musidecar.bench.table import Figure, median
from musidecar.testbed import Testbed

SHAPES = (Shape(1, 1), Shape(50, 1), Shape(50, 16))
LOCAL, LEADERS = "stale", "get"  # modes of the generator


def judge(samples: dict[str, dict[str, list[Sample]]]) -> list[Figure]:
    """By shape and mode: how many times as many reads, and how much later."""
    figures = []
    for shape, by_mode in samples.items():
        pairs = list(zip(by_mode[LOCAL], by_mode[LEADERS], strict=True))
        rate = median(local.rps / leaders.rps for local, leaders in pairs)
        figures.append(Figure(f"GET {shape}, local / linearizable", rate, "x"))
        latency = median(local.p50_us / leaders.p50_us for local, leaders in pairs)
        figures.append(Figure(f"GET {shape} p50, local / linearizable", latency, "x"))
    return figures


def run(rounds: int = 7, seconds: float = 1.0, out: Path = Path("bench-results")) -> int:
    """Measures and prints. Returns the exit code: 1 when not all of the local reads were local."""
    console, chance = table.console(), random.Random(1)
    samples = {str(shape): {mode: list[Sample]() for mode in (LOCAL, LEADERS)} for shape in SHAPES}
    with Testbed(arguments=("--reads", "local")) as bed:
        follower = bed.status().followers[0]
        host, port = follower.client_address
        generator.fill(host, port)
        for _ in range(rounds):
            for shape in SHAPES:
                for mode in chance.sample((LOCAL, LEADERS), 2):
                    samples[str(shape)][mode].append(generator.run(host, port, shape, seconds, mode, warm_s=0))
        asked = sum(s.rps * s.seconds for by_mode in samples.values() for s in by_mode[LOCAL])
        answered = bed.status()[follower.id].more["local_reads"]
    figures = judge(samples)
    figures.append(Figure("answered locally of those that could be", answered / asked, at_least=0.99))
    rows: list[list[object]] = []
    for shape_name, by_mode in samples.items():
        for mode, name in ((LOCAL, "local"), (LEADERS, "linearizable")):
            taken = by_mode[mode]
            rows.append([f"{shape_name}  {name}", median(s.rps for s in taken), median(s.p50_us for s in taken)])
    console.print(table.plain("GET of 64 B at a follower", ["medians", "/s", "p50 us"], rows))
    console.print(table.figures(f"medians of {rounds} paired rounds", figures))
    raw = {f"{s} {mode}": [vars(sample) for sample in taken] for s, by in samples.items() for mode, taken in by.items()}
    table.save(out, "reads", figures, raw)
    return 0 if figures[-1].met else 1
