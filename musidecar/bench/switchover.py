"""`bench switchover`: leadership handed over by plan, again and again, from node to node of one cluster whose nodes all
have clients that write without a pause. Measured for each: for how long no client anywhere got an acknowledgement, and
for how long the old leader kept requests back, as it says itself. Checked: no request failed, no connection broke,
nothing is missing or was done twice, replicas and logs are equal."""

from __future__ import annotations

import bisect
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from musidecar import config
from musidecar.bench import table
from musidecar.bench.failover import Run, await_traffic, check_data
from musidecar.bench.table import Figure, percentile
from musidecar.orders import Refused
from musidecar.switchover import switchover
from musidecar.testbed import ClusterStatus, Testbed
from musidecar.workload import History, Load, spread

WRITERS_EACH = 2  # connections at each node
BETWEEN = 100  # writes that each node acknowledges between two hand-overs
PAUSE_MS_MAX = 5.0
TAIL_NS = 20_000_000  # how much later than the old leader says so the first acknowledgement may come


def _ready(status: ClusterStatus) -> bool:
    """Every node serves, and may lead."""
    return status.leader is not None and all(n.more["eligible"] and n.more["serving"] for n in status.nodes)


def pauses_ms(history: History, moments: Sequence[tuple[int, int]]) -> list[float]:
    """The longest time without any acknowledgement in each of these stretches of time (ns), in milliseconds."""
    acked = sorted(t for writer in history.writers for t in writer.acked_ns if t > 0)
    found = []
    for began, ended in moments:
        first, behind = bisect.bisect_left(acked, began), bisect.bisect_right(acked, ended + TAIL_NS)
        stretch = acked[max(first - 1, 0) : behind + 1]
        found.append(max((b - a for a, b in pairwise(stretch)), default=0) / 1e6)
    return found


def judge(pauses: Sequence[float], told: Sequence[float], failed: int, refused: int) -> list[Figure]:
    """What was wanted, and what came of it. Milliseconds; `refused`: hand-overs that did not come about."""
    return [
        Figure("pause without acknowledgements, p50", percentile(pauses, 0.5), "ms", at_most=PAUSE_MS_MAX),
        Figure("the same, p99", percentile(pauses, 0.99), "ms"),
        Figure("as the old leader tells it, p50", percentile(told, 0.5), "ms"),
        Figure("the same, p99", percentile(told, 0.99), "ms"),
        Figure("failed requests, all runs", failed, at_most=0),
        Figure("hand-overs refused, leadership stayed", refused),
    ]


def run(runs: int = 50, out: Path = Path("bench-results")) -> int:
    """Hands over `runs` times, prints. Returns the exit code: 1 when a request failed or the data is not right."""
    console = table.console()
    told, moments, refused = list[float](), list[tuple[int, int]](), list[str]()
    with Testbed() as bed:
        settings = config.load(bed.dir / "cluster.toml")
        status = bed.wait_status("all may lead", _ready)
        everywhere = range(len(status.nodes))
        with Load(spread([n.client_address for n in status.nodes], WRITERS_EACH, timeout_s=10.0)) as load:
            load.wait_for(BETWEEN)
            for _ in range(runs):
                bed.wait_status("all may lead", _ready)
                await_traffic(load, everywhere, BETWEEN)
                began = time.monotonic_ns()
                try:
                    told.append(switchover(settings).pause_us / 1000)
                except Refused as why:  # the old leader goes on: no harm, and no hand-over either
                    refused.append(str(why))
                    continue
                moments.append((began, time.monotonic_ns()))
            await_traffic(load, everywhere, BETWEEN)
            history = load.finish()
        outcome = Run({}, 0.0, history.acknowledged)
        check_data(bed, bed.wait_status("all may lead", _ready), history, outcome)
    pauses, failed = pauses_ms(history, moments), history.unknown + history.refused + history.broken
    figures = judge(pauses, told, failed, len(refused))
    console.print(table.figures(f"{len(moments)} hand-overs, {history.acknowledged} writes acknowledged", figures))
    for text in [*refused, *outcome.troubles]:
        console.print(text, style="red", markup=False)
    raw = {"pauses_ms": pauses, "told_ms": told, "refused": refused, "troubles": outcome.troubles}
    table.save(out, "switchover", figures, raw)
    return 0 if failed == 0 and outcome.sound and moments else 1
