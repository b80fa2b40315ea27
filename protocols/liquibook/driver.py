"""A liquibookd of the sidecar's own: started, asked, its state taken and given."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

READY = b"ready\n"
END_LINE = b"\nEND\n"
STOP_TIMEOUT_S = 3.0
READ_BYTES = 1 << 18


class ExchangeError(Exception):
    """liquibookd cannot be used; the text says why."""


class Connection:
    """A connection. ExchangeError when it cannot be made, is lost, or stays silent for `timeout_s`."""

    def __init__(self, path: Path, timeout_s: float = 5.0) -> None:
        self.path = path
        self._input = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise ExchangeError(f"cannot connect to liquibookd at {path}: {error.strerror or error}") from None

    def ask(self, request: str) -> list[str]:
        """The lines of its reply, END left out."""
        return self._ask(request.encode() + b"\n").decode().splitlines()

    def snapshot(self) -> bytes:
        """All of its state."""
        return self._ask(b"SNAPSHOT\n")

    def restore(self, snapshot: bytes) -> None:
        """Put this state in the place of its own."""
        reply = self._ask(b"RESTORE %d\n%b" % (len(snapshot), snapshot))
        if not reply.startswith(b"RESTORED "):
            raise ExchangeError(f"liquibookd at {self.path}: {reply.decode(errors='replace').strip()}")

    def _ask(self, request: bytes) -> bytes:
        try:
            self._socket.sendall(request)
            searched = 0
            while True:
                end = self._input.find(END_LINE, max(0, searched - len(END_LINE)))
                if end >= 0 or self._input.startswith(END_LINE[1:]):
                    reply = bytes(self._input[: end + 1])
                    del self._input[: end + len(END_LINE)]
                    return reply
                searched = len(self._input)
                part = self._socket.recv(READ_BYTES)
                if not part:
                    raise ExchangeError(f"liquibookd at {self.path} closed the connection")
                self._input += part
        except OSError as error:
            raise ExchangeError(f"connection to liquibookd at {self.path} lost: {error.strerror or error}") from None

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Server:
    """A liquibookd started here. It dies with the thread that called `spawn()`."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self.process = process
        self.path = path

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> None:
        """End it. It holds nothing that is not in the log of the cluster."""
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def spawn(directory: Path, socket_path: Path, symbols: Sequence[str]) -> Server:
    """Start liquibookd on `socket_path` and wait until it listens. What it has to say goes to `directory`/backend.log.

    It gets SIGKILL when the calling thread ends (setpriv --pdeathsig), hence only the main thread may call.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("spawn() from another thread than the main one: the server would die with that thread")
    keeper = shutil.which("setpriv")
    if keeper is None:
        raise ExchangeError("no setpriv on PATH: install util-linux; it makes a backend die with its sidecar")
    log = directory / "backend.log"
    options = ["--socket", str(socket_path), "--symbols", ",".join(symbols)]
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [
                keeper,
                "--pdeathsig",
                "KILL",
                "--",
                sys.executable,
                "-P",
                "-m",
                "musidecar.protocols.liquibook",
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,  # Ctrl-C in a terminal is for the sidecar, which ends its backend itself
        )
    server = Server(process, socket_path)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != READY:  # its end, if it ended
            code = process.wait(STOP_TIMEOUT_S)
            words = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise ExchangeError(f"liquibookd ended at its start (exit code {code}): {' '.join(words)}")
    except BaseException:
        with contextlib.suppress(OSError):
            server.stop()
        raise
    return server
