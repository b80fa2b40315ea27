"""`bench failover --backend liquibook`: one cluster of exchanges, whose leader node is killed (kill -9) again and again
while traders send orders, and started again each time. Measured: from the signal to the first order that another node
answers. Checked at the end: what every node's exchange holds is what one makes of the same log that never failed."""

from __future__ import annotations

import gc
import random
import sys
from pathlib import Path

from musidecar import exchange_load as load
from musidecar.bench import plot, table
from musidecar.bench.failover import again_and_again, new_leader
from musidecar.bench.table import Figure, percentile
from musidecar.exchange_demo import requests
from musidecar.exchange_load import Trader, Traders
from musidecar.protocols.liquibook.backend import SYMBOLS
from musidecar.protocols.liquibook.driver import Connection
from musidecar.testbed import Testbed, wait_until

TRADERS_EACH = 2  # at each node
STEADY_ORDERS = 300  # answered before the next signal, and after it
BACK_S = 60.0
BUSY_PAUSE_S = 0.0005  # between those of a trader when a leader is killed: else the processors are full
IDLE_PAUSE_S = 0.02  # between the orders of a trader while a node comes back: all of them are kept, to be judged


def _kill_once(bed: Testbed, traders: Traders, chance: random.Random) -> float:
    """Milliseconds to the first answer of the new leader's term."""
    before = bed.wait_status("a leader", lambda s: s.is_whole, BACK_S)
    leader = before[before.leader or ""]
    index = before.nodes.index(leader)
    for trader in traders.all:
        trader.acks.clear()
        trader.pause_s = BUSY_PAUSE_S
    wanted = traders.answered() + STEADY_ORDERS + chance.randrange(STEADY_ORDERS)
    wait_until("orders are answered", lambda: traders.answered() >= wanted, BACK_S)
    signal_ns = bed.kill(leader)

    def answers() -> list[int]:
        return [at for trader in traders.all for at, node in list(trader.acks) if node != index and at > signal_ns]

    wait_until("the others answer", lambda: len(answers()) >= STEADY_ORDERS, BACK_S)
    for trader in traders.all:
        trader.pause_s = IDLE_PAUSE_S
    after = new_leader(bed, leader.id, before.term)
    served_ns = after[after.leader or ""].moment_us("served_us") * 1000
    first_ns = min(at for at in answers() if at > served_ns)  # what the dead one answered is older
    bed.start_again(leader)
    bed.wait_status("it counts again", lambda s: s.is_whole, BACK_S)
    return (first_ns - signal_ns) / 1e6


def _wait_applied(own: Connection, commit: int) -> None:
    wait_until("it has all of the log", lambda: int(own.ask("STATE")[0].split(" ")[1]) >= commit, BACK_S)


def _differences(bed: Testbed, traders: Traders) -> list[str]:
    """Of each node's exchange from one that never failed."""
    found = []
    for node in bed.wait_status("all nodes are there", lambda s: s.is_whole, BACK_S).nodes:
        with Connection(Path(node.backend), BACK_S) as own:
            _wait_applied(own, node.commit)
            found += [f"node {node.id}: {text}" for text in load.same_as_one(traders.all, SYMBOLS, own)]
    return found


def run(runs: int, out: Path, seed: int) -> int:
    """Runs, prints, returns the exit code: 1 when anything was lost or done twice."""
    gc.disable()  # all answers are kept: to look through them would take milliseconds from what is measured
    console, chance = table.console(), random.Random(seed)
    with Testbed(backend="liquibook") as bed:
        nodes = [load.address(node.client_address) for node in bed.status().nodes]
        each = [
            Trader(name, nodes, requests(name, number, sys.maxsize), number, IDLE_PAUSE_S)
            for number, name in enumerate(f"{chr(ord('a') + i)}trader" for i in range(TRADERS_EACH * len(nodes)))
        ]
        with Traders(each) as traders:
            times = again_and_again(runs, lambda: _kill_once(bed, traders, chance), console)
        if len(times) < runs:
            return 1
        traders.join()
        differences = _differences(bed, traders)
    name = "signal to next answered order"
    figures = [Figure(f"{name}, p50", percentile(times, 0.5), "ms", at_most=1.5),
               Figure(f"{name}, p99", percentile(times, 0.99), "ms"),
               Figure("differences from one exchange that never failed", len(differences), "", at_most=0)]
    console.print(table.figures(f"{runs} leaders killed, {traders.answered()} requests answered", figures))
    for text in differences:
        console.print(text, style="red", markup=False, highlight=False)
    console.print(plot.histograms(out / "failover-liquibook.png", "Fail-over of an exchange after kill -9", "ms",
                                  {name: times}, {name: 1.5}))
    table.save(out, "failover-liquibook", figures, {"client_ms": times, "answered": traders.answered()})
    return 1 if differences else 0
