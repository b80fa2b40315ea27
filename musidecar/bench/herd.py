"""`bench herd`: what the way through a sidecar adds to a HERD, one request at a time: a HERD and its client alone, then
three nodes of this host and a client of the leader."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from musidecar.bench import table
from musidecar.bench.table import Figure, percentile
from musidecar.protocols.herd import driver, leftovers, server
from musidecar.protocols.server import Address, BackendError
from musidecar.testbed import Testbed, TestbedError

POLL_S = 0.05


def bare(folder: Path, words: list[str], count: int) -> tuple[list[float], list[float]]:
    """A HERD of its own, and a client that posts requests and polls for replies: microseconds of `count` PUTs and
    GETs. words: of the gate (driver.words()). BackendError."""
    with ProcessPoolExecutor(1) as apart:  # with its process HERD's memory goes, which the next one needs
        return apart.submit(_bare, folder, words, count).result()


def _bare(folder: Path, words: list[str], count: int) -> tuple[list[float], list[float]]:
    if not leftovers.own_namespace() and (left := leftovers.keys()):
        raise BackendError(f"memory of an earlier HERD is left: {leftovers.remedy(left)}")
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


def report(alone: tuple[list[float], list[float]], beside: tuple[list[float], list[float]], out: Path) -> None:
    """The table, and the file."""
    figures = []
    for name, without, with_, ratio in map(row, ("PUT", "GET"), alone, beside):
        figures += [
            Figure(f"{name}, HERD alone, p50", without, "us"),
            Figure(f"{name}, through the sidecar, p50", with_, "us"),
            Figure(f"{name}, times as long", ratio),
        ]
    console = table.console()
    console.print(table.figures(f"one request at a time, {len(alone[0])} of each", figures))
    table.save(out, "herd", figures, {"alone_us": alone, "through_us": beside})


def run(binary: str, workers: int, count: int, out: Path) -> int:
    """Runs, prints, returns the exit code: 1 when it could not be measured. binary: HERD's own program."""
    words = driver.words({"herd_main": binary, "workers": workers})
    try:
        with tempfile.TemporaryDirectory(prefix="musidecar-") as folder:
            alone = bare(Path(folder), words, count)
        with Testbed(backend="herd", arguments=["--binary", binary, "--workers", str(workers)]) as bed:
            status = bed.status()
            beside = through(status[status.leader or ""].client_address, count)
    except (BackendError, TestbedError, ConnectionError) as error:
        table.console().print(str(error), style="red", markup=False, highlight=False)
        return 1
    report(alone, beside, out)
    return 0
