"""What the way through a sidecar adds to a HERD: one request at a time, of a node's client and of HERD's alone."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

from musidecar.bench.table import percentile
from musidecar.protocols.herd import driver, server
from musidecar.protocols.server import Address, BackendError

POLL_S = 0.05


def bare(folder: Path, words: list[str], count: int) -> tuple[list[float], list[float]]:
    """A HERD of its own, and a client in this process that posts requests and polls for replies: microseconds of
    `count` PUTs and GETs. words: of the gate (driver.words()). From the main thread. BackendError."""
    path = folder / "bare.sock"
    gate = server.Gate(path, server.parse(["--socket", str(path), *words]))
    waiting = threading.Thread(target=_stop_when_served, args=(gate, Address(path=str(path))), daemon=True)
    waiting.start()
    try:
        gate.run()
        puts, gets = gate.bare(count, True), gate.bare(count, False)
    finally:
        gate.close()
        waiting.join()
    return [ns / 1000 for ns in puts], [ns / 1000 for ns in gets]


def _stop_when_served(gate: server.Gate, address: Address) -> None:
    while True:
        time.sleep(POLL_S)
        try:
            if not driver.awaited(address):
                break
        except BackendError:
            return  # it has ended by itself
    gate.stop()


def through(address: tuple[str, int], count: int) -> tuple[list[float], list[float]]:
    """The same of a client of a node. ConnectionError when it is cut off."""
    with socket.create_connection(address, 60) as sock, sock.makefile("rb") as answers:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask(request: bytes, last: bytes) -> float:
            began = time.monotonic_ns()
            sock.sendall(request)
            while (line := answers.readline()) != last:
                if not line or line.startswith((b"SERVER_ERROR", b"ERROR")):
                    raise ConnectionError(f"{request!r} was answered {line!r}")
            return (time.monotonic_ns() - began) / 1000

        puts = [ask(b"set bench:%d 0 0 4\r\n%04d\r\n" % (i, i % 10_000), b"STORED\r\n") for i in range(count)]
        return puts, [ask(b"get bench:%d\r\n" % i, b"END\r\n") for i in range(count)]


def row(name: str, without: list[float], with_: list[float]) -> tuple[str, float, float, float]:
    """Name, medians of both in microseconds, and how many times the one is of the other."""
    a, b = percentile(sorted(without), 0.5), percentile(sorted(with_), 0.5)
    return name, a, b, b / a
