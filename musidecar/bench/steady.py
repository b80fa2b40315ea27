"""No false alarm: minutes of full load through all nodes with nothing killed. No leader may change, and memory must not
grow without end."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from musidecar.bench import generator, table
from musidecar.bench.generator import Shape
from musidecar.bench.table import Figure
from musidecar.compare import compare, compare_logs
from musidecar.testbed import ClusterStatus, Testbed

LOOK_EVERY_S = 5.0
AT_LEADER, AT_FOLLOWER = Shape(50, 16), Shape(10, 4)
GROWTH_MIB_MAX = 256  # ring, buffers and what is not yet covered are bounded well below; a leak at full load is not


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM; 0 when it is gone."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024
    return 0


def run(minutes: float = 10.0, out: Path = Path("bench-results")) -> int:
    """Loads, watches, prints. Returns the exit code: 1 when the leader changed or the replicas differ."""
    console, changes, troubles = table.console(), 0, list[str]()
    with Testbed() as bed, contextlib.ExitStack() as stack:
        first = last = bed.status()
        generator.fill(*first[first.leader or ""].client_address)
        grown_from = _memory(first)
        loads = [stack.enter_context(_load(first, node.id, minutes * 60)) for node in first.nodes]
        end = time.monotonic() + minutes * 60
        while time.monotonic() < end:
            time.sleep(min(LOOK_EVERY_S, max(end - time.monotonic(), 0.01)))
            now = bed.status()
            if (now.leader, now.term) != (last.leader, last.term):
                changes += 1
                console.print(f"leader changed: node {last.leader} term {last.term} -> {now.leader} term {now.term}")
            last = now
        rates = []
        for node, process in zip(first.nodes, loads, strict=True):
            text = process.communicate(timeout=60)[0]
            try:
                rates.append([f"through node {node.id}", generator.parse(text).rps])
            except generator.GeneratorError as error:
                troubles.append(f"load through node {node.id}: {error}")
        growth = [(f"node {n.id}", grown_from[n.id] / 2**20, _memory(last)[n.id] / 2**20) for n in last.nodes]
        troubles += [f"{name} grew by {after - before:.0f} MiB" for name, before, after in growth
                     if after - before > GROWTH_MIB_MAX]
        troubles += compare(bed.backends(last)).differences + compare_logs(bed.status)
    figure = Figure(f"leader changes in {minutes:g} minutes of full load", max(changes, last.term - first.term),
                    at_most=0)
    console.print(table.plain("load", ["SETs", "/s"], rates))
    console.print(table.plain("sidecar memory, MiB", ["node", "before", "after"], growth))
    console.print(table.figures("no false alarm", [figure]))
    for trouble in troubles:
        console.print(trouble, style="red", markup=False)
    table.save(out, "steady", [figure], {"rates": rates, "memory_mib": growth, "troubles": troubles})
    return 0 if figure.met and not troubles else 1


def _memory(status: ClusterStatus) -> dict[str, int]:
    return {n.id: resident_bytes(n.pid) for n in status.nodes}


@contextlib.contextmanager
def _load(status: ClusterStatus, node: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    host, port = status[node].client_address
    shape = AT_LEADER if node == status.leader else AT_FOLLOWER
    process = subprocess.Popen(generator.command(host, port, shape, seconds, "set"), stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
