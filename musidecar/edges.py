"""A node's second port: a process between it and clients that speak another protocol, which dies with the node.

The node itself holds the listening socket: that the port is in use is known before anything has begun, and who connects
while the process is started again waits.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from musidecar import places
from musidecar.process import how_it_ended
from musidecar.protocols.backend import Edge
from musidecar.protocols.server import log_tail, programs

WAITING = 128  # connections that the kernel holds until they are accepted
STOP_S = 2.0
PAUSE_S_MIN, PAUSE_S_MAX = 0.1, 10.0  # before it is started again
CALM_S = 60.0  # who has run for so long is started again at once

log = logging.getLogger("musidecar.node")


class Port:
    """The port of an `edge`; nothing at all when that is None. `start()` and `later`'s actions run in the main thread.

    ConfigError when the port cannot be had.
    """

    def __init__(self, edge: Edge | None, home: Path, later: Callable[[Callable[[], None]], None]) -> None:
        self.edge = edge
        self._later = later
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._pause_s = PAUSE_S_MIN
        self._socket: socket.socket | None = None
        if edge is not None:
            self._log = home / f"{edge.title.lower()}.log"
            self._socket = places.bind(edge.host, edge.port, f"for {edge.title}")

    def start(self) -> None:
        """Start the process. Its death is noticed, logged and mended."""
        edge, listener = self.edge, self._socket
        if edge is None or listener is None or self._ended.is_set():
            return
        listener.listen(WAITING)
        program, keeper = programs(edge.command[0], "python3")
        words = [word.replace(Edge.FD, str(listener.fileno())) for word in edge.command[1:]]
        log_from = self._log.stat().st_size if self._log.exists() else 0
        with open(self._log, "ab") as output:
            self._process = subprocess.Popen(
                [keeper, "--pdeathsig", "KILL", "--", program, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is for the sidecar
            )
        log.info("%s: clients at %s:%d, pid %d", edge.title, edge.host, edge.port, self._process.pid)
        watcher = threading.Thread(
            target=self._watch, args=(self._process, log_from), name=edge.title.lower(), daemon=True
        )
        watcher.start()

    def _watch(self, process: subprocess.Popen[bytes], log_from: int) -> None:
        began = time.monotonic()
        code = process.wait()
        if self._ended.is_set():
            return
        assert self.edge is not None
        tail = log_tail(self._log, log_from, 1)
        log.error("%s: its process has ended (%s), and is started again: %s", self.edge.title, how_it_ended(code), tail)
        calm = time.monotonic() - began > CALM_S
        self._pause_s = PAUSE_S_MIN if calm else min(2 * self._pause_s, PAUSE_S_MAX)
        if not self._ended.wait(self._pause_s):
            self._later(self.start)

    def status(self) -> dict[str, object]:
        """The title in small letters: where it listens; and `..._pid`: None while it does not serve."""
        if self.edge is None:
            return {}
        process, name = self._process, self.edge.title.lower()
        pid = process.pid if process is not None and process.poll() is None else None
        return {name: f"{self.edge.host}:{self.edge.port}", f"{name}_pid": pid}

    def close(self) -> None:
        """End the process, which says good-bye to its clients."""
        self._ended.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
