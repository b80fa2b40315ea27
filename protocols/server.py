"""A server process behind a node: where it listens, and starting one that dies with its sidecar. The same for every
kind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 3.0
POLL_S = 0.01
LOG_TAIL_LINES = 5


class BackendError(Exception):
    """The backend cannot be used; the text says why and, where there is one, what to do."""


@dataclass(frozen=True)
class Address:
    """Where a server listens and how to log in: a Unix socket path, or host and port."""

    path: str = ""
    host: str = ""
    port: int = 0
    user: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def connect(self, timeout_s: float) -> socket.socket:
        """A connected stream socket with this time-out. OSError as connect() gives it."""
        if not self.path:
            sock = socket.create_connection((self.host, self.port), timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.connect(self.path)
        except BaseException:
            sock.close()
            raise
        return sock


def remove_leftover(path: Path) -> None:
    """The Unix socket of a process that was killed. One that somebody listens on stays, and binding to it fails."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


def private_listener(path: Path, backlog: int) -> socket.socket:
    """A Unix socket that only its user may connect to; it does not block. OSError as bind() gives it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # and so is what bind() makes; the umask is the whole process's
        listener.bind(str(path))
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


class Server:
    """A server process started here. It dies with the thread that started it: the main one."""

    def __init__(self, process: subprocess.Popen[bytes], address: Address, log: Path) -> None:
        self.process = process
        self.address = address
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def gone(self) -> str | None:
        """How the process ended, in words, or None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End it. It holds nothing that is not in the log of the cluster, so there is nothing to save."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        with contextlib.suppress(OSError):
            os.unlink(self.address.path)


def programs(binary: str, package: str) -> tuple[str, str]:
    """The server, and what makes it die with its sidecar. BackendError when one is not installed."""
    server, keeper = shutil.which(binary), shutil.which("setpriv")
    if server is None:
        raise BackendError(f"no {binary} on PATH: install it (Debian: apt install {package}), or name it as `binary`")
    if keeper is None:
        raise BackendError("no setpriv on PATH: install util-linux; it makes a backend die with its sidecar")
    return server, keeper


def check_thread() -> None:
    """RuntimeError in another thread than the main one."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("spawn() from another thread than the main one: the server would die with that thread")


def start(
    command: tuple[str, str],
    arguments: Sequence[str],
    directory: Path,
    address: Address,
    answers: Callable[[Address], bool],
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
) -> Server:
    """Start a server (programs()) that works in `directory`, and wait until it answers there; `answers` asks it.

    It gets SIGKILL when the calling thread ends (setpriv --pdeathsig), hence only the main thread may call. Its output
    goes to `directory`/backend.log. BackendError when it ends at once or does not answer in time.
    """
    check_thread()
    program, keeper = command
    log = directory / "backend.log"
    log_from = log.stat().st_size if log.exists() else 0
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [keeper, "--pdeathsig", "KILL", "--", program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=directory,
            env=environment,
            start_new_session=True,  # Ctrl-C in a terminal is for the sidecar, which ends its backend itself
        )
    started = Server(process, address, log)
    try:
        _wait_answer(started, Path(program).name, answers, log_from, timeout_s)
    except BaseException:
        started.stop()
        raise
    return started


def _wait_answer(
    server: Server, name: str, answers: Callable[[Address], bool], log_from: int, timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        if (how := server.gone()) is not None:
            raise BackendError(f"{name} ended at its start ({how}): {log_tail(server.log, log_from)}")
        try:
            if answers(server.address):
                return
        except BackendError as error:
            if time.monotonic() >= deadline:
                raise BackendError(
                    f"{name} does not answer after {timeout_s:g} s ({error}): {log_tail(server.log, log_from)}"
                ) from None
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(POLL_S)


def log_tail(log: Path, start: int = 0, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a backend's log, from byte `start` on, in one line."""
    try:
        with open(log, "rb") as file:
            file.seek(start)
            text = file.read(1 << 20).decode(errors="replace")
    except OSError as error:
        return f"(no log: {error.strerror})"
    tail = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
    return " | ".join(tail) or "(its log is empty)"


def local_pid(address: Address, told: int, process_names: tuple[str, ...]) -> int | None:
    """The server's process on this host, as this process numbers it; None when it is elsewhere or cannot be told.

    told: the number it goes by itself, which is another one when it runs in a pid namespace of its own.
    """
    if address.path:
        try:
            with address.connect(1.0) as sock:
                pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        except OSError:
            return None
        return pid or None
    if address.host not in ("localhost", "127.0.0.1", "::1"):
        return None
    try:
        name = Path(f"/proc/{told}/comm").read_text()
    except OSError:
        return None
    return told if name.startswith(process_names) else None
