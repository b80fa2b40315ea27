"""A node of `bench api`: `python -m musidecar.bench.api_node CONFIG NODE`. Each line of its input is something to
measure, each line of its output what came of it, in JSON."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from musidecar.api import Replica
from musidecar.bench.table import median, percentile
from musidecar.protocols.own import wire
from musidecar.protocols.own.proposals import Proposals
from musidecar.protocols.own.replicated import Replicated

RECORD_BYTES = 64
ECHO_BYTES = 120  # a proposal of one record on its way


class Tally:
    """The sum of what the records begin with."""

    def __init__(self) -> None:
        self.value = 0
        self.count = 0

    def apply(self, index: int, record: bytes) -> bytes:
        self.value += int.from_bytes(record[:8])
        self.count = index
        return self.value.to_bytes(16)

    def snapshot(self) -> bytes:
        return self.value.to_bytes(16) + self.count.to_bytes(8)

    def restore(self, data: bytes) -> None:
        self.value, self.count = int.from_bytes(data[:16]), int.from_bytes(data[16:])


def records(count: int) -> list[bytes]:
    return [i.to_bytes(8).ljust(RECORD_BYTES, b".") for i in range(count)]


def _times(action: Callable[[], object], count: int) -> list[float]:
    """Of each call, in us."""
    found, clock = [], time.perf_counter
    for _ in range(count):
        began = clock()
        action()
        found.append((clock() - began) * 1e6)
    return found


def _percentiles(times: list[float]) -> dict[str, float]:
    return {"p50_us": percentile(times, 0.5), "p99_us": percentile(times, 0.99)}


def many(replica: Replica, count: int) -> dict[str, float]:
    """`count` records in one call."""
    given = records(count)
    began = time.perf_counter()
    results = replica.propose_many(given)
    seconds = time.perf_counter() - began
    assert len(results) == count and all(type(result) is bytes for result in results)
    return {"per_s": count / seconds, "seconds": seconds}


def single(replica: Replica, count: int) -> dict[str, float]:
    """One record, and the next one when the first has its result."""
    (record,) = records(1)
    return _percentiles(_times(lambda: replica.propose(record), count))


def direct(replica: Replica, count: int) -> dict[str, float]:
    """apply() of these records in a loop, and nothing else."""
    apply, given = Tally().apply, records(count)
    began = time.perf_counter()
    results = [apply(index, record) for index, record in enumerate(given, 1)]
    assert len(results) == count
    return {"per_s": count / (time.perf_counter() - began)}


def echo(replica: Replica, count: int) -> dict[str, float]:
    """To another thread of this process and back, over a Unix socket."""
    here, there = socket.socketpair()

    def answer() -> None:
        while data := there.recv(4096):
            there.send(data)

    thread = threading.Thread(target=answer)
    thread.start()
    message = bytes(ECHO_BYTES)

    def ask() -> None:
        here.send(message)
        here.recv(4096)

    times = _times(ask, count)
    here.close()
    thread.join()
    there.close()
    return _percentiles(times)


def python(replica: Replica, count: int) -> dict[str, float]:
    """All of the API's Python for one record, without sockets and threads: making its frame, applying it, taking the
    reply apart."""
    proposals, state = Proposals(), Replicated(Tally())
    proposals.connected()
    stamp = 0

    def through() -> None:
        nonlocal stamp
        stamp += 1
        frames, proposals.output = bytes(proposals.output), bytearray()
        replies, used = state.feed(wire.STAMP_HEAD.pack(wire.STAMP, stamp) + frames)
        assert used == len(frames) + wire.STAMP_HEAD.size
        proposals.feed(replies)

    through()  # it is open now
    results: list[Any] = []
    (record,) = records(1)

    def one() -> None:
        (batch,) = wire.split([record])
        proposals.propose(batch, lambda result, error: results.append(result))
        through()

    times = _times(one, count)
    assert len(results) == count and results[-1][0] == bytes(16)
    return {"p50_us": median(times)}


def applied(replica: Replica, count: int) -> dict[str, float]:
    """How many records its machine holds, `count` at least: a linearizable read."""
    found = replica.read(lambda tally: tally.count)
    assert found >= count
    return {"count": found}


MEASURES = {measure.__name__: measure for measure in (many, single, direct, echo, python, applied)}


def main() -> None:
    with Replica(sys.argv[1], int(sys.argv[2]), Tally()) as replica:
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            name, count = line.split()
            print(json.dumps(MEASURES[name](replica, int(count))), flush=True)


if __name__ == "__main__":
    main()
