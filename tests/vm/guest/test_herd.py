"""The gate before HERD, over soft-RoCE, with the double or (HERD_MAIN) a real HERD behind it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from musidecar._ffi import ffi, lib
from musidecar.protocols.herd.connection import Connection
from musidecar.protocols.herd.driver import words
from musidecar.protocols.server import Address, BackendError
from tests.vm import herd_double

START_S = 90.0
END_S = 20.0
ANSWER_MS = 3000
POLL_S = 0.05


class Gate:
    """A gate and the HERD behind it. main: HERD's program; None: HERD is not the gate's to start."""

    def __init__(self, folder: Path, main: Path | None, **options: object) -> None:
        self.address = Address(path=str(folder / "gate.sock"))
        self.log = folder / "gate.log"
        given = {"workers": herd_double.WORKERS, "answer_ms": ANSWER_MS, **options}
        given |= {"herd_main": main} if main is not None else {}
        command = [sys.executable, "-P", "-m", "musidecar.protocols.herd", "--socket", self.address.path]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*command, *words(given)], stdout=log, stderr=log, cwd=folder)

    def wait_served(self) -> None:
        self.wait_for("")

    def wait_for(self, word: str) -> None:
        """Until it waits for that, or ("") for nothing."""
        deadline = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            with contextlib.suppress(BackendError), Connection(self.address, START_S) as connection:
                awaited = connection.awaited()
                if word in awaited if word else not awaited:
                    return
            time.sleep(POLL_S)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def ended(self) -> str:
        """Its last line, once it has ended."""
        assert self.process.wait(END_S) == 1
        return self.text().splitlines()[-1]

    def herd(self) -> tuple[int, int]:
        """HERD's processes: the master, the workers."""
        return herd_double.processes(self.process.pid)


@contextmanager
def gate(folder: Path, main: Path | None, **options: object) -> Iterator[Gate]:
    one = Gate(folder, main, **options)
    try:
        yield one
    finally:
        one.process.terminate()
        try:
            one.process.wait(END_S)
        except subprocess.TimeoutExpired:
            one.process.kill()
            raise


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("herd")


TOGETHER = "HERD and the sidecar must be started together"
only_double = pytest.mark.skipif(bool(herd_double.REAL), reason="a real HERD cannot be told to fail so")


def test_what_is_put_is_got_and_a_worker_that_is_silent_is_lost(rxe0: str, made: Path, tmp_path: Path) -> None:
    """And nothing of a HERD is left for the next one: its shared memory goes with it."""
    with gate(tmp_path, herd_double.main(made)) as one:
        one.wait_served()
        with Connection(one.address, 10) as connection:
            assert connection.get(b"nothing") is None
            pairs = {b"key %d" % i: b"v" * (i % 34) for i in range(100)}
            for i, (key, value) in enumerate(pairs.items()):
                connection.put(key, value, i)
            assert [connection.get(key) for key in pairs] == list(enumerate(pairs.values()))
            connection.put(b"key 5", b"another")
            assert connection.get(b"key 5") == (0, b"another")
            assert connection.delete(b"key 5") and not connection.delete(b"key 5")
            assert connection.get(b"key 5") is None
            status = connection.status()
            assert status.requests == status.replies == 1 + 100 + 100 + 2 + 4 + 1 and status.keys == 99
            os.kill(one.herd()[1], signal.SIGSTOP)
            with pytest.raises(BackendError, match="closed the connection"):
                connection.get(b"key 6")
        assert f"has not answered for {ANSWER_MS} ms" in one.ended() and TOGETHER in one.ended()


def worker_of(key: bytes) -> tuple[int, str]:
    """And HERD's key, in hex."""
    found = ffi.new("struct herd_key *")
    lib.herd_key_of(key, len(key), found)
    return lib.herd_worker(found.bytes, herd_double.WORKERS), bytes(found.bytes).hex()


@only_double
def test_a_reply_that_is_lost_ends_it(rxe0: str, made: Path, tmp_path: Path) -> None:
    """Waited out, each reply would be taken for that of the request before it. First, some keys have no room."""
    with gate(tmp_path, herd_double.main(made, herd_double.Size(buckets=1, filled=0))) as one:
        one.wait_served()
        keys = [key for key in (b"%d" % i for i in range(60)) if worker_of(key)[0] == 0][:15]
        with Connection(one.address, 10) as connection:
            for key in keys:
                connection.put(key, key)
            found = [connection.get(key) for key in keys]
            kept = sum(value is not None for value in found)
            assert kept in (7, 8), "a bucket has eight places, one of which the gate may need; the rest is given up"
            assert all(value in (None, (0, key)) for key, value in zip(keys, found, strict=True))
            assert connection.status().gone == 15 - kept
            assert sum(len(page) for page in connection.entries()) in (7 * 62, 8 * 62)
            os.kill(one.herd()[1], signal.SIGUSR1)
            with pytest.raises(BackendError, match="closed the connection"):
                connection.get(keys[-1])
        assert "worker 0 has not answered" in one.ended()


@only_double
def test_another_length_kills_herd_and_its_gate_says_so(rxe0: str, made: Path, tmp_path: Path) -> None:
    size = herd_double.Size(preset=worker_of(b"cursed")[1])
    with gate(tmp_path, herd_double.main(made, size)) as one:
        one.wait_served()
        with Connection(one.address, 10) as connection:
            assert connection.get(b"cursed") is None, "32 bytes that HERD filled itself with are no value"
            with pytest.raises(BackendError, match="closed the connection"):
                connection.put(b"cursed", b"value")
        assert "HERD's workers process has ended (killed by SIGABRT)" in one.ended() and TOGETHER in one.ended()


def test_a_herd_that_had_a_client_answers_no_other(rxe0: str, made: Path, tmp_path: Path) -> None:
    """Started by hand; its client is killed, and the next one hears nothing."""
    main = herd_double.main(made)
    environment = {**os.environ, "HRD_REGISTRY_IP": "127.0.0.1"}
    words_ = ["--base-port-index", "0", "--num-server-ports", "1"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        with gate(tmp_path, None) as first:
            first.wait_for("master")
            started.append(subprocess.Popen([main, "--master", "1", *words_], env=environment))
            first.wait_for("workers")
            workers = [main, "--is-client", "0", "--postlist", "32", *words_]
            started.append(subprocess.Popen(workers, env=environment))
            first.wait_served()
            with Connection(first.address, 10) as connection:
                connection.put(b"a", b"1")
            first.process.kill()
            first.process.wait()
        with gate(tmp_path, None, start_ms=3000) as second:
            assert "HERD is not there after 3 s; what is missing: HERD's master" in second.ended()
        assert [each.poll() for each in started] == [None, None]
    finally:
        for each in started:
            each.kill()
            each.wait()
        subprocess.run(["ipcrm", "--all=shm"], check=True)  # of this guest, where there is nobody else


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "says"),
    [(herd_double.WORKERS + 1, f"HERD's workers ({herd_double.WORKERS} of {herd_double.WORKERS + 1} have come)"),
     (herd_double.WORKERS - 1, "it has more workers than are configured")],
)  # fmt: skip
def test_the_number_of_workers_has_to_be_right(
    rxe0: str, made: Path, tmp_path: Path, workers: int, says: str
) -> None:
    with gate(tmp_path, herd_double.main(made), workers=workers, start_ms=15_000) as one:
        assert one.process.wait(START_S) == 1
        assert says in one.ended()
