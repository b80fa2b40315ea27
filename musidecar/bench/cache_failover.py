"""`bench failover --backend memcached`: one cluster, whose leader node is killed (kill -9) again and again under load
and started again each time. Measured: from the signal to the first `STORED` that another node's client gets. Checked at
the end: no acknowledged set is missing at any node, and what counters say is what was acknowledged."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from musidecar.bench import plot, table
from musidecar.bench.failover import again_and_again, new_leader
from musidecar.bench.table import Figure, percentile
from musidecar.protocols.memcached.connection import Connection
from musidecar.protocols.server import Address, BackendError
from musidecar.testbed import NodeStatus, Testbed, wait_until

WRITERS_EACH = 2  # connections at each node
KEYS_EACH = 2000
STEADY_WRITES = 200  # acknowledged before the next signal
TIMEOUT_S = 5.0
RETRY_S = 0.002
BACK_S = 60.0


@dataclass
class Writer:
    """Sets keys of its own one after the other, and counts each in a counter of its own, at one node until that breaks.
    sets: key -> the values that it may have: the last that was acknowledged, and those of unknown outcome since."""

    number: int
    nodes: list[Address]
    sets: dict[bytes, list[bytes]] = field(default_factory=dict)
    counted: int = 0
    unknown: int = 0
    done: int = 0
    acks: list[tuple[int, int]] = field(default_factory=list)  # (CLOCK_MONOTONIC ns, node) of the sets

    def run(self, ended: threading.Event) -> None:
        """In a thread of its own, until the event."""
        at = self.number
        while not ended.is_set():
            node = at % len(self.nodes)
            with contextlib.suppress(BackendError), Connection(self.nodes[node], TIMEOUT_S) as connection:
                while not ended.is_set():
                    self._write(connection, node)
            at += 1
            time.sleep(RETRY_S)

    def _write(self, connection: Connection, node: int) -> None:
        self.done += 1
        key, value = b"w%d:%d" % (self.number, self.done % KEYS_EACH), b"%d" % self.done
        self.sets.setdefault(key, []).append(value)
        if connection.ask(b"set %b 0 0 %d\r\n%b" % (key, len(value), value)) != b"STORED":
            raise BackendError("not stored")
        self.acks.append((time.monotonic_ns(), node))
        self.sets[key] = [value]
        self.unknown += 1
        connection.ask(b"incr counter%d 1" % self.number)
        self.unknown -= 1
        self.counted += 1


def _address(node: NodeStatus) -> Address:
    host, port = node.client_address
    return Address(host=host, port=port)


def _kill_once(bed: Testbed, writers: list[Writer], chance: random.Random) -> float:
    """Milliseconds to the first acknowledgement by another node."""
    wanted = len([ack for w in writers for ack in w.acks]) + STEADY_WRITES + chance.randrange(STEADY_WRITES)
    wait_until("writes flow", lambda: sum(len(w.acks) for w in writers) >= wanted, BACK_S)
    before = bed.wait_status("a leader", lambda s: s.is_whole, BACK_S)
    leader = before[before.leader or ""]
    index = before.nodes.index(leader)
    for writer in writers:
        writer.acks.clear()
    signal_ns = bed.kill(leader)
    after = new_leader(bed, leader.id, before.term)
    served_ns = after[after.leader or ""].moment_us("served_us") * 1000

    def acknowledged() -> list[int]:
        """What the dead one acknowledged is older."""
        return [at for w in writers for at, node in list(w.acks) if node != index and at > served_ns]

    wait_until("another node answers", lambda: bool(acknowledged()), BACK_S)
    took_over_ns = min(acknowledged())
    bed.start_again(leader)
    bed.wait_status("it counts again", lambda s: s.is_whole, BACK_S)
    return (took_over_ns - signal_ns) / 1e6


def _lost(reader: Address, writers: list[Writer]) -> tuple[int, int]:
    """(keys that do not hold what was acknowledged last, counters that are wrong), as this node has them."""
    lost = wrong = 0
    with Connection(reader, 30) as connection:
        def get(key: bytes) -> bytes | None:
            connection.send(b"get %b\r\n" % key)
            words = connection.line().split(b" ")
            if words[0] != b"VALUE":
                return None
            value = b"".join(connection.value(int(words[3])))
            connection.line()
            return value

        for writer in writers:
            lost += sum(get(key) not in values for key, values in writer.sets.items() if len(values) == 1)
            count = int(get(b"counter%d" % writer.number) or b"-1")
            wrong += not writer.counted <= count <= writer.counted + writer.unknown
    return lost, wrong


def run(runs: int, out: Path, seed: int) -> int:
    """Runs, prints, returns the exit code: 1 when anything was lost or counted wrongly."""
    console, chance = table.console(), random.Random(seed)
    with Testbed(backend="memcached") as bed:
        nodes = [_address(node) for node in bed.status().nodes]
        writers = [Writer(i, nodes) for i in range(WRITERS_EACH * len(nodes))]
        with Connection(nodes[0], TIMEOUT_S) as connection:
            for writer in writers:
                connection.ask(b"set counter%d 0 0 1\r\n0" % writer.number)
        ended = threading.Event()
        threads = [threading.Thread(target=writer.run, args=(ended,), daemon=True) for writer in writers]
        for thread in threads:
            thread.start()
        times = again_and_again(runs, lambda: _kill_once(bed, writers, chance), console)
        ended.set()
        for thread in threads:
            thread.join(TIMEOUT_S * 2)
        if len(times) < runs:
            return 1
        found = [_lost(node, writers) for node in nodes]
    figures = [Figure("signal to first STORED elsewhere, p50", percentile(times, 0.5), "ms", at_most=1.5),
               Figure("signal to first STORED elsewhere, p99", percentile(times, 0.99), "ms"),
               Figure("acknowledged sets lost", max(lost for lost, _ in found), "", at_most=0),
               Figure("counters that are not exact", max(wrong for _, wrong in found), "", at_most=0)]
    console.print(table.figures(f"{runs} leaders killed", figures))
    name = "signal to first STORED elsewhere"
    console.print(plot.histograms(out / "failover-memcached.png", "Fail-over of memcached after kill -9", "ms",
                                  {name: times}, {name: 1.5}))
    table.save(out, "failover-memcached", figures, {"client_ms": times, "acknowledged": sum(w.done for w in writers)})
    return 1 if any(lost or wrong for lost, wrong in found) else 0
