"""Sees to a backend that was lost: it ended, hangs, or cut the sidecar off.

The engine has let go of it (the node votes, and cannot lead). In a thread of its own the keeper looks whether it
answers, has one that this node started and that has ended started again, less and less eagerly if it keeps ending, and
prepares it anew: a server that was restarted has forgotten its settings. Then the engine takes it up, and has it filled
from another node.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from musidecar.protocols.backend import BackendError, Prepared

ANSWER_S = 1.0  # a backend that takes longer is not there yet
PAUSE_S_MIN, PAUSE_S_MAX = 0.1, 5.0  # between looks
CALM_S = 60.0  # after so long without a loss it is looked after eagerly again
REMIND_S = 30.0  # the same complaint is logged once in so long

log = logging.getLogger("musidecar.node")


class Keeper:
    """`prepare` asks and prepares the backend (BackendError: not now); `on_ready` gets what it found; `restart` starts
    an ended one again, if that is up to this node. `lost()` begins it all; losses meanwhile are the same one."""

    def __init__(
        self, prepare: Callable[[], Prepared], *, on_ready: Callable[[Prepared], None], restart: Callable[[], None]
    ) -> None:
        self._prepare, self._on_ready, self._restart = prepare, on_ready, restart
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._pause_s = PAUSE_S_MIN
        self._lost_at = 0.0
        self._complaint, self._complained_at = "", 0.0

    def lost(self) -> None:
        """The backend is lost. Returns at once."""
        with self._lock:
            if self._thread is not None or self._ended.is_set():
                return
            now = time.monotonic()
            self._pause_s = PAUSE_S_MIN if now - self._lost_at > CALM_S else min(2 * self._pause_s, PAUSE_S_MAX)
            self._lost_at = now
            self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Give it up."""
        self._ended.set()

    def _run(self) -> None:
        pause_s = self._pause_s
        while not self._ended.wait(pause_s):
            try:
                prepared = self._prepare()
            except BackendError as error:
                self._complain(str(error))
                self._restart()
                pause_s = min(1.5 * pause_s, PAUSE_S_MAX)
                continue
            with self._lock:
                self._thread = None
            self._on_ready(prepared)
            return

    def _complain(self, text: str) -> None:
        now = time.monotonic()
        if text != self._complaint or now - self._complained_at > REMIND_S:
            log.warning("backend: %s", text)
            self._complaint, self._complained_at = text, now
