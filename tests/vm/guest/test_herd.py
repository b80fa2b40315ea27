"""The gate before HERD, over soft-RoCE, with the double or (HERD_MAIN) a real HERD behind it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from musidecar.protocols.herd.connection import Connection
from musidecar.protocols.herd.driver import words
from musidecar.protocols.server import Address, BackendError
from tests.vm import herd_double

START_S = 90.0
END_S = 20.0
ANSWER_MS = 3000
POLL_S = 0.05


class Gate:
    """A gate and the HERD behind it."""

    def __init__(self, folder: Path, main: Path, **options: object) -> None:
        self.address = Address(path=str(folder / "gate.sock"))
        self.log = folder / "gate.log"
        given = {"herd_main": main, "workers": herd_double.WORKERS, "answer_ms": ANSWER_MS, **options}
        command = [sys.executable, "-P", "-m", "musidecar.protocols.herd", "--socket", self.address.path]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*command, *words(given)], stdout=log, stderr=log, cwd=folder)

    def wait_served(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            try:
                with Connection(self.address, START_S) as connection:
                    if not connection.awaited():
                        return
            except BackendError:
                pass
            time.sleep(POLL_S)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def ended(self) -> str:
        """Its last line, once it has ended."""
        assert self.process.wait(END_S) == 1
        return self.text().splitlines()[-1]

    def herd(self) -> list[int]:
        """HERD's processes: the master, the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]


@contextmanager
def gate(folder: Path, main: Path, **options: object) -> Iterator[Gate]:
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


def test_what_is_put_is_got(rxe0: str, made: Path, tmp_path: Path) -> None:
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
    assert one.process.returncode == 0
