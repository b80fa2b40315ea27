"""A node of the fault tests of musidecar.api: `python api_node.py CONFIG NODE FOLDER [SETTING]...`

Its machine is a ledger: all records, in order. Two threads propose `node.life.thread number` in batches, one after the
other, until a line comes on standard input, or a signal (SIGUSR1: it kills itself in the middle of a batch of its own;
SIGUSR2: it stops itself there; SIGHUP: its machine fails). What each batch was answered goes to a file in FOLDER, so
that it is known of a killed process, too. Then it prints what its machine holds, as JSON, and ends with the next line.

Settings: `idle`: nobody proposes. `keep=N`: so many records are there before it begins. `dump`: the records go to a
file, too. `reads`: another thread reads.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from musidecar.api import Closed, MachineFailed, Rejected, Replica

BATCH = 200
PAUSE_S = 0.01  # or the test has more to compare than it has time for
THREADS = 2
SIGNALS = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}


class Ledger:
    """All records, but for those that begin with a minus: they are rejected."""

    def __init__(self, node: int, keep: int) -> None:
        self.records = [b"kept %d" % i for i in range(keep)]
        self.raises = False
        self.signal = 0
        self.own = b"%d." % node

    def apply(self, index: int, record: bytes) -> bytes:
        if self.raises:
            raise KeyError("planted")
        if self.signal and self.records[-1].endswith(b"7") and self.records[-1].startswith(self.own):
            number, self.signal = self.signal, 0
            os.kill(os.getpid(), number)
        if record.startswith(b"-"):
            raise Rejected(record.decode())
        self.records.append(record)
        return b"%d %d" % (index, len(self.records))

    def snapshot(self) -> bytes:
        return b"\n".join(self.records)

    def restore(self, data: bytes) -> None:
        self.records = data.split(b"\n") if data else []


def propose(replica: Replica, name: str, into: Path, stop: threading.Event) -> None:
    number = 0
    with open(into, "ab", buffering=0) as file:
        while not stop.wait(PAUSE_S):
            batch = [f"{name} {number + i}".encode() for i in range(BATCH)]
            file.write(b"sends %d\n" % (number + BATCH))
            try:
                results = replica.propose_many([*batch, b"-" + batch[0]])
            except (Closed, MachineFailed) as error:
                file.write(b"raised %s\n" % type(error).__name__.encode())
                return
            assert isinstance(results[-1], Rejected) and str(results[-1]) == "-" + batch[0].decode()
            told = [result for result in results[:-1] if isinstance(result, bytes)]
            assert len(told) == BATCH
            ended = b" %d\n" % time.monotonic_ns()
            file.write(b"".join(b"told %d %s" % (number + i, each) + ended for i, each in enumerate(told)))
            number += BATCH


def look(replica: Replica, into: Path, stop: threading.Event) -> None:
    """Reads, one after the other: "read BEGAN ENDED COUNT", in ns of CLOCK_MONOTONIC, which all processes share."""
    with open(into, "ab", buffering=0) as file:
        while not stop.is_set():
            began = time.monotonic_ns()
            count = replica.read(lambda ledger: len(ledger.records))
            file.write(b"read %d %d %d\n" % (began, time.monotonic_ns(), count))


def main(config: str, node: int, folder: Path, settings: dict[str, str]) -> None:
    machine = Ledger(node, int(settings.get("keep", "0")))
    names = [f"{node}.{os.getpid()}.{i}" for i in range(0 if "idle" in settings else THREADS)]
    for name in names:
        (folder / name).touch()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # a handler runs in the main thread: let no other one be woken
    signal.signal(signal.SIGUSR1, lambda *_: setattr(machine, "signal", signal.SIGKILL))
    signal.signal(signal.SIGHUP, lambda *_: setattr(machine, "raises", True))
    signal.signal(signal.SIGUSR2, lambda *_: setattr(machine, "signal", signal.SIGSTOP))
    with Replica(config, node, machine) as replica:
        print("ready", flush=True)
        stop = threading.Event()
        threads = [threading.Thread(target=propose, args=(replica, name, folder / name, stop)) for name in names]
        if "reads" in settings:
            threads.append(threading.Thread(target=look, args=(replica, folder / f"{node}.reads", stop)))
        for thread in threads:
            thread.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        sys.stdin.readline()
        stop.set()
        for thread in threads:
            thread.join()
        print("stopped", flush=True)
        sys.stdin.readline()
        try:
            records = replica.read(lambda ledger: list(ledger.records))
        except MachineFailed as error:
            print(json.dumps({"failed": str(error)}), flush=True)
            return
        hashed = hashlib.sha256(b"\n".join(records)).hexdigest()
        print(json.dumps({"hash": hashed, "count": len(records)}), flush=True)
        if "dump" in settings:
            (folder / "records").write_bytes(b"\n".join(records))
        print("dumped", flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    given = dict(word.partition("=")[::2] for word in sys.argv[4:])
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), given)
