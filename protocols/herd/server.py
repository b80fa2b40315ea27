"""The gate before HERD, a process: HERD's registry and only client (ffi/gate), and HERD's own processes, which begin
and end with it.

    python -m musidecar.protocols.herd --socket PATH --herd-main /path/to/main --workers 12

Without --herd-main somebody else has to start HERD, once the gate runs. Exit code 0 when it was told to end, 1 when
HERD is lost; its last line says how.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from musidecar._ffi import ffi, lib
from musidecar.protocols.server import BackendError, private_listener, remove_leftover

from . import leftovers
from .driver import DEFAULTS

WHY_BYTES = 512
SPIN_US = 20
POSTLIST = 32  # the most that HERD takes
STOP_S = 2.0
TOGETHER = "HERD and the sidecar must be started together"


class Processes:
    """HERD's: the master, and then the workers. They die with the main thread of this process."""

    def __init__(self, main: Path, registry: str, port_index: int) -> None:
        self._main, self._port_index = main, port_index
        self._environment = {**os.environ, "HRD_REGISTRY_IP": registry}
        self.started: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, what: str, *arguments: str) -> int:
        """A pidfd. BackendError when it cannot be started."""
        command = ["setpriv", "--pdeathsig", "KILL", "--", str(self._main), *arguments]
        command += ["--base-port-index", str(self._port_index), "--num-server-ports", "1"]
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=self._environment)
        except OSError as error:
            raise BackendError(f"HERD's {what} cannot be started: {command[0]}: {error.strerror}") from None
        self.started.append((what, process))
        return os.pidfd_open(process.pid)

    def how(self, number: int) -> str:
        """How the one with this number ended."""
        what, process = self.started[number]
        code = process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"HERD's {what} process has ended ({how}): {TOGETHER}"

    def stop(self) -> None:
        for _, process in self.started:
            process.kill()  # it holds nothing that is not in the cluster's log
        for _, process in self.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)


class Gate:
    """Listens on `path` from the moment it is made. BackendError, OSError."""

    def __init__(self, path: Path, given: argparse.Namespace) -> None:
        self.path, self._given = path, given
        self._why = ffi.new("char[]", WHY_BYTES)
        self._waker, self._wake = socket.socketpair()
        self._waker.setblocking(False)
        self._loop: Any = ffi.NULL
        self._herd: Processes | None = None
        self._listener = listen(path)
        self._registry = registry_socket(given.registry)
        config = ffi.new("struct gate_loop_config *")
        config.gate.workers, config.gate.keys_max = given.workers, given.keys_max
        config.gate.answer_us, config.start_us = given.answer_ms * 1000, given.start_ms * 1000
        config.port_index, config.spin_us = given.port_index, SPIN_US
        config.listener, config.registry = self._listener.fileno(), self._registry.fileno()
        config.stop = self._wake.fileno()
        self._loop = lib.gate_loop_new(config, self._why, WHY_BYTES)
        if self._loop == ffi.NULL:
            raise BackendError(self._text())

    @property
    def waker(self) -> int:
        """A descriptor: written to, run() returns."""
        return self._waker.fileno()

    def _text(self) -> str:
        return bytes(ffi.string(self._why)).decode(errors="replace")

    def run(self) -> None:
        """Until told to end; BackendError when HERD is lost."""
        if self._given.herd_main is not None:
            self._herd = Processes(self._given.herd_main, self._given.registry, self._given.port_index)
            self._watch(self._herd.start("master", "--master", "1"))
        while (end := lib.gate_loop_run(self._loop, self._why, WHY_BYTES)) == lib.GATE_CONNECTED:
            if self._herd is not None:
                self._watch(self._herd.start("workers", "--is-client", "0", "--postlist", str(POSTLIST)))
        if end == lib.GATE_HERD_ENDED and self._herd is not None:
            raise BackendError(self._herd.how(int(self._text())))
        if end != lib.GATE_STOPPED:
            raise BackendError(self._text())

    def stop(self) -> None:
        """Any thread: run() is to return."""
        self._waker.send(b".")

    def bare(self, count: int, puts: bool) -> list[int]:
        """After run(), and instead of it: how long HERD takes for one request at a time, in ns."""
        taken = ffi.new("uint64_t[]", count)
        if not lib.gate_loop_bare(self._loop, count, puts, taken):
            raise BackendError("HERD did not answer")
        return list(taken)

    def _watch(self, pidfd: int) -> None:
        assert self._herd is not None
        lib.gate_loop_watch(self._loop, pidfd, len(self._herd.started) - 1)

    def close(self) -> None:
        if self._herd is not None:
            self._herd.stop()
        if self._loop != ffi.NULL:
            lib.gate_loop_free(self._loop)
        for each in (self._listener, self._registry, self._waker, self._wake):
            each.close()
        self.path.unlink(missing_ok=True)


def listen(path: Path) -> socket.socket:
    """A Unix socket for its user alone; the one of a gate that was killed is replaced."""
    remove_leftover(path)
    return private_listener(path, 64)


def registry_socket(host: str) -> socket.socket:
    """Where HERD looks for its client. BackendError when it cannot be had."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, lib.HERD_REGISTRY_PORT))
    except OSError as error:
        listener.close()
        raise BackendError(
            f"HERD's registry cannot listen on {host}:{lib.HERD_REGISTRY_PORT}: {error.strerror}: stop what does (a"
            f" memcached?), or give another address of this host as `registry`"
        ) from None
    listener.listen(256)
    listener.setblocking(False)
    return listener


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="herd-gate", description="HERD's registry and only client.")
    parser.add_argument("--socket", type=Path, required=True, help="where to listen")
    parser.add_argument("--herd-main", type=Path, help="HERD's program; left out: somebody else starts it")
    parser.add_argument("--registry", default=DEFAULTS["registry"], help="HRD_REGISTRY_IP")
    for name in ("answer_ms", "keys_max", "port_index", "start_ms", "workers"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=DEFAULTS[name])
    return parser.parse_args(arguments)


def main() -> int:
    """Command line of the gate."""
    given = parse()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # the wake-up descriptor tells the loop
    if not leftovers.own_namespace() and (left := leftovers.keys()):
        print(f"{len(left)} segments of an earlier HERD are left: {leftovers.remedy(left)}", file=sys.stderr)
        return 1
    gate = None
    try:
        gate = Gate(given.socket, given)
        signal.set_wakeup_fd(gate.waker, warn_on_full_buffer=False)
        print("ready", flush=True)
        gate.run()
        return 0
    except (BackendError, OSError) as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    finally:
        if gate is not None:
            gate.close()
