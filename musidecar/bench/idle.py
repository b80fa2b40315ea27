"""What an idle cluster costs: three nodes, clients connected but silent, CPU time of all its processes."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

from musidecar.bench import table
from musidecar.bench.table import Figure
from musidecar.testbed import Testbed, cpu_seconds

PERCENT_MAX = 8.0


def run(seconds: float = 30.0, clients_each: int = 20, out: Path = Path("bench-results")) -> int:
    """Measures and prints. Returns the exit code: 1 when the cost is over the bar."""
    console = table.console()
    with Testbed() as bed, contextlib.ExitStack() as stack:
        status = bed.status()
        for node in status.nodes:
            for _ in range(clients_each):
                sock = stack.enter_context(socket.create_connection(node.client_address, 5))
                sock.sendall(b"PING\r\n")
                if sock.recv(100) != b"+PONG\r\n":
                    raise RuntimeError(f"node {node.id} does not answer PING")
        time.sleep(2)  # the pause is the subject: what follows is the cost of doing nothing
        groups = {"sidecar of the leader": [n.pid for n in status.nodes if n.id == status.leader],
                  "sidecars of the followers": [n.pid for n in status.nodes if n.id != status.leader],
                  "their redis-servers": [n.backend_pid for n in status.nodes],
                  "musidecar local": [bed.local_pid]}
        before, began = {k: sum(map(cpu_seconds, v)) for k, v in groups.items()}, time.monotonic()
        time.sleep(seconds)
        spent = time.monotonic() - began
        percent = {k: (sum(map(cpu_seconds, v)) - before[k]) / spent * 100 for k, v in groups.items()}
    total = Figure("three nodes together, % of one core", sum(percent.values()), "%", at_most=PERCENT_MAX)
    console.print(table.plain(f"idle for {seconds:g} s, {3 * clients_each} silent clients", ["process", "% of a core"],
                              [[k, v] for k, v in percent.items()]))
    console.print(table.figures("idle cost", [total]))
    table.save(out, "idle", [total], percent)
    return 0 if total.met else 1
