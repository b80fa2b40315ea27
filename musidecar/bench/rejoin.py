"""`bench rejoin`: a node that was killed comes back, empty, into a cluster that holds much data and goes on writing:
how long until it is a voter again, and what the leader's clients notice meanwhile. The data travels no faster than
`limits.transfer_bytes_per_s`, and is taken from the other follower."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import redis

from musidecar import config
from musidecar.bench import table
from musidecar.bench.failover import await_traffic
from musidecar.bench.table import Figure, percentile
from musidecar.compare import compare_logs
from musidecar.testbed import ClusterStatus, NodeStatus, Testbed
from musidecar.workload import History, Load, Plan

VALUE_BYTES = 4096
P99_MS_MAX = 20.0
STEADY_S = 3.0  # of load before the node is killed, to compare with
WRITERS = 8  # connections that load, at the leader
TELL_EVERY_S = 2.0


def _fill(leader: NodeStatus, megabytes: int) -> None:
    """So much, of what cannot be compressed."""
    with redis.Redis(*leader.client_address, protocol=2, socket_timeout=60) as client:
        for block in range(megabytes):
            pipe = client.pipeline(transaction=False)
            for i in range((1 << 20) // VALUE_BYTES):
                pipe.set(f"fill:{block}:{i}", os.urandom(VALUE_BYTES))
            pipe.execute()


def latencies_ms(history: History, began_ns: int, ended_ns: int) -> list[float]:
    """Of all writes sent between these moments and acknowledged, in milliseconds."""
    return [(acked - sent) / 1e6 for writer in history.writers
            for sent, acked in zip(writer.sent_ns, writer.acked_ns, strict=True)
            if began_ns <= sent < ended_ns and acked > 0]  # fmt: skip


def _is_voter(status: ClusterStatus, node: str) -> bool:
    return bool(status[node].role == "follower" and status[node].more["member"] and status[node].more["serving"])


def judge(seconds: float, before: Sequence[float], during: Sequence[float], failed: int) -> list[Figure]:
    """What was wanted, and what came of it; latencies in milliseconds."""
    return [
        Figure("started again until it is a voter", seconds, "s"),
        Figure("writes at the leader, p99 before", percentile(before, 0.99), "ms"),
        Figure("p99 while it rejoins", percentile(during, 0.99), "ms", at_most=P99_MS_MAX),
        Figure("the longest one", max(during, default=float("nan")), "ms"),
        Figure("failed requests", failed, at_most=0),
    ]


def run(megabytes: int = 1000, rate: int = 5000, timeout_s: float = 300.0, out: Path = Path("bench-results")) -> int:
    """Fills, loads, kills, starts again, prints. Returns the exit code: 1 when it does not come back, or a bar is
    missed."""
    console = table.console()
    with Testbed() as bed:
        limit = config.load(bed.dir / "cluster.toml").limits.transfer_bytes_per_s
        status = bed.status()
        leader, victim = status[status.leader or ""], status.followers[0]
        _fill(leader, megabytes)
        bed.wait_status("all have it", lambda s: all(n.more["serving"] for n in s.nodes), timeout_s)
        plan = Plan((leader.client_address,), (0,) * WRITERS, depth=4, rate=rate, timeout_s=30.0)
        with Load(plan) as load:
            load.wait_for(100)
            first = time.monotonic_ns()
            time.sleep(STEADY_S)  # the load is the subject
            bed.kill(victim)
            bed.wait_status("it is gone", lambda s: s[victim.id].role == "down")
            began, told, tell_at = time.monotonic_ns(), "", 0.0
            bed.start_again(victim)
            while not _is_voter(now := bed.status(), victim.id):
                words = str(now[victim.id].more.get("joining") or "")
                if words not in ("", told) and time.monotonic() >= tell_at:
                    told, tell_at = words, time.monotonic() + TELL_EVERY_S
                    console.print(f"{(time.monotonic_ns() - began) / 1e9:6.1f} s: {told}", highlight=False)
                if time.monotonic_ns() - began > timeout_s * 1e9:
                    console.print(f"it is no voter after {timeout_s:g} s", style="red")
                    console.print(bed.logs(), markup=False, highlight=False)
                    return 1
                time.sleep(0.1)
            ended = time.monotonic_ns()
            await_traffic(load, [0], 100)
            history = load.finish()
        troubles = compare_logs(bed.status)
        keys = bed.backend(bed.status()[victim.id]).dbsize()
    missing = megabytes * ((1 << 20) // VALUE_BYTES) - keys
    troubles += [f"{missing} keys are missing"] if missing > 0 else []
    before, during = latencies_ms(history, first, began), latencies_ms(history, began, ended)
    failed = history.unknown + history.refused + history.broken
    figures = judge((ended - began) / 1e9, before, during, failed)
    title = f"{megabytes} MiB, {rate} writes/s wanted, {len(during) / ((ended - began) / 1e9):.0f} /s while it rejoined"
    console.print(table.figures(f"{title}; transfer at most {limit >> 20} MiB/s", figures))
    for text in troubles:
        console.print(text, style="red", markup=False)
    table.save(out, "rejoin", figures, {"megabytes": megabytes, "rate": rate, "transfer_bytes_per_s": limit,
                                        "troubles": troubles})  # fmt: skip
    return 0 if not troubles and all(figure.met for figure in figures) else 1
