"""Looks every few seconds how the own server is, where its backend has something to look at: what `status` shows of it,
and what an operator should hear of (a memcached that evicts)."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from musidecar.protocols.backend import Backend, BackendError

LOOK_S = 2.0
ALARM_S = 60.0  # an alarm is shown in `status` for so long, and logged once in so long if it goes on

log = logging.getLogger("musidecar.node")


class Watch:
    """In a thread of its own from `start()` to `close()`; none if there is nothing to look at."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._ended = threading.Event()
        self._facts: dict[str, Any] = {}
        self._alarm, self._alarmed_at, self._logged_at = "", 0.0, 0.0

    def start(self) -> None:
        """Returns at once."""
        if self._backend.has_vitals:
            threading.Thread(target=self._run, name="vitals", daemon=True).start()

    def close(self) -> None:
        self._ended.set()

    def status(self) -> dict[str, Any]:
        """For the node's status."""
        found = {f"backend_{name}": value for name, value in self._facts.items()}
        if self._alarm and time.monotonic() - self._alarmed_at < ALARM_S:
            found["alarm"] = self._alarm
        return found

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            try:
                vitals = self._backend.vitals()
            except BackendError:
                continue  # the engine notices, and sees to it
            self._facts = dict(vitals.facts)
            if not vitals.alarm:
                continue
            self._alarm, self._alarmed_at = vitals.alarm, time.monotonic()
            if not self._logged_at or self._alarmed_at - self._logged_at > ALARM_S:
                log.warning("backend: %s", vitals.alarm)
                self._logged_at = self._alarmed_at
