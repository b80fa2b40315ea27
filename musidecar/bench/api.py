"""`bench api`: what an object of the user's own costs, replicated by musidecar.api over three processes of this host.
Each round measures the same process's bare loop over apply() and a bare echo between two of its threads, too."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from musidecar.bench import table
from musidecar.bench.machines import Machines
from musidecar.bench.table import Figure, median

READY_S = 60.0
WANTED_PER_S = 200_000

Round = Mapping[str, Mapping[str, float]]


def judge(rounds: Sequence[Round]) -> list[Figure]:
    """Medians, and medians of each round's ratios."""

    def of(name: str, key: str) -> float:
        return median(each[name][key] for each in rounds)

    def ratio(one: str, other: str, key: str) -> float:
        return median(each[one][key] / each[other][key] for each in rounds)

    return [
        Figure("64 B proposed in batches at the leader's node", of("many", "per_s"), "/s", at_least=WANTED_PER_S),
        Figure("... until all three machines have applied them", of("everywhere", "per_s"), "/s"),
        Figure("... beside a bare loop over apply()", ratio("many", "direct", "per_s"), "x"),
        Figure("one at a time at the leader's node, p50", of("single", "p50_us"), "us"),
        Figure("... p99", of("single", "p99_us"), "us"),
        Figure("... beside a bare echo between two Python threads", ratio("single", "echo", "p50_us"), "x"),
        Figure("... the API's Python in it", of("python", "p50_us"), "us"),
        Figure("... its share", ratio("python", "single", "p50_us")),
        Figure("one at a time at a follower, p50", of("follower", "p50_us"), "us"),
    ]


class Nodes(Machines):
    """Three of api_node.py."""

    def begin(self) -> int:
        """The leader, once all are ready."""
        for node in range(1, self.nodes + 1):
            self.start(node, "-m", "musidecar.bench.api_node", self.path, str(node))
        for node in self.running:
            if self.hear(node) != json.dumps("ready"):
                raise RuntimeError(f"node {node} has ended: {self.log(node).read_text().strip()}")
        deadline = time.monotonic() + READY_S
        while (leader := self.status()["leader"]) is None:
            if time.monotonic() > deadline:
                raise RuntimeError("nobody leads")
        return int(leader)

    def measure(self, node: int, name: str, count: int) -> dict[str, float]:
        self.say(node, f"{name} {count}")
        line = self.hear(node)
        if not line:
            raise RuntimeError(f"node {node} has ended: {self.log(node).read_text().strip()}")
        found: dict[str, float] = json.loads(line)
        return found


def run(rounds: int = 7, records: int = 200_000, singles: int = 5000, out: Path = Path("bench-results")) -> int:
    """Measures and prints. Returns the exit code: 1 when a figure misses its bar."""
    console = table.console()
    found: list[dict[str, Any]] = []
    with Nodes() as nodes:
        leader = nodes.begin()
        followers = [node for node in nodes.running if node != leader]
        total = 0
        for _ in range(rounds):
            each: dict[str, Any] = {"direct": nodes.measure(leader, "direct", records)}
            began = time.perf_counter()
            each["many"] = nodes.measure(leader, "many", records)
            total += records
            for node in followers:
                nodes.measure(node, "applied", total)
            each["everywhere"] = {"per_s": records / (time.perf_counter() - began)}
            each["echo"] = nodes.measure(leader, "echo", singles)
            each["single"] = nodes.measure(leader, "single", singles)
            each["follower"] = nodes.measure(followers[0], "single", singles)
            each["python"] = nodes.measure(leader, "python", singles)
            total += 2 * singles
            found.append(each)
    figures = judge(found)
    console.print(table.figures(f"musidecar.api, three nodes on this host: medians of {rounds} rounds", figures))
    table.save(out, "api", figures, found)
    return 0 if all(figure.met for figure in figures) else 1
