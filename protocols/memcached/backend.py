"""memcached as the control plane sees it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from musidecar._ffi import ffi, lib
from musidecar.protocols import server
from musidecar.protocols.backend import (
    Ask,
    Backend,
    BackendError,
    Check,
    Copy,
    Points,
    Prepared,
    Vitals,
    Wanted,
)

from . import KIND, checks, copying, driver
from .connection import Connection

KNOWN = "prepared.json"  # in the node's folder: which process it prepared last
CLOCK_S = 2  # two readings of when a process began differ by no more
VITALS_S = 2.0


class Memcached(Backend):
    """One memcached. What it holds is gone with its process."""

    kind = KIND
    fills_itself = True
    has_vitals = True

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted)
        self._evictions = 0  # that were told of, or found when it was prepared
        self._item_bytes_max = 0

    @classmethod
    def check_binary(cls, binary: str) -> Check:
        return checks.server_program(binary)

    def check_running(self, answer_s: float, brings_data: bool, runs: bool, replace_line: str) -> Iterator[Check]:
        return checks.running(self.address, answer_s, brings_data, runs, replace_line)

    def start(self) -> None:
        wanted = self.wanted
        if not wanted.spawn:
            driver.attach(self.address)
            return
        self.server = driver.spawn(
            wanted.home, Path(wanted.address.path), binary=wanted.binary, options=wanted.options
        )

    def look(self, timeout_s: float) -> None:
        driver.attach(self.address, timeout_s)

    def prepare(self, ask: Ask) -> driver.Prepared:
        prepared = driver.prepare(self.address, ask)
        self._item_bytes_max = prepared.item_bytes_max
        self._evictions = driver.evictions(self.address, VITALS_S)["evictions"]
        with contextlib.suppress(OSError):  # then it is not known again, and refused if it holds anything
            (self.wanted.home / KNOWN).write_text(json.dumps({"pid": prepared.pid, "started_s": prepared.started_s}))
        return prepared

    def outlived(self) -> bool:
        """Is it the very process that this node prepared last?"""
        if self.server is not None:
            return False
        try:
            known = json.loads((self.wanted.home / KNOWN).read_text())
            with Connection(self.address) as connection:
                stats = connection.stats()
            began = int(stats["time"]) - int(stats["uptime"])
            return int(stats["pid"]) == known["pid"] and abs(began - int(known["started_s"])) <= CLOCK_S
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def disown(self) -> None:
        (self.wanted.home / KNOWN).unlink(missing_ok=True)

    def local_pid(self, told: int) -> int | None:
        return server.local_pid(self.address, told, ("memcached",))

    def table(self, prepared: Prepared) -> Any:
        return ffi.NULL

    def engine_fields(self, prepared: Prepared) -> dict[str, Any]:
        assert isinstance(prepared, driver.Prepared)
        return {
            "protocol": lib.PROTOCOL_MEMCACHED,
            "databases": 1,
            "backend_version": prepared.version.encode(),
            "item_bytes_max": prepared.item_bytes_max,
            "exact": self.wanted.options.get("consistency", "exact") == "exact",
        }

    def copy(self, at_least: int, wait_s: float, points: Points) -> Copy:
        return copying.Dump(self.address, at_least, wait_s, points, self.wanted.home)

    def fill(self, copy: IO[bytes], head: dict[str, Any], cancelled: Callable[[], bool]) -> int:
        if head.get("item_bytes_max") != self._item_bytes_max:
            raise BackendError(
                f"its items may have {self._item_bytes_max} bytes (-I), those of the node that gives the data"
                f" {str(head.get('item_bytes_max'))[:20]}: start all with the same"
            )
        return copying.load(self.address, copy, cancelled)

    def count(self) -> int:
        return driver.count(self.address)

    def vitals(self) -> Vitals:
        """It evicts by itself: what one node has given up, another still holds."""
        found = driver.evictions(self.address, VITALS_S)
        more = found["evictions"] - self._evictions
        self._evictions = found["evictions"]
        alarm = ""
        if more > 0:
            alarm = (
                f"memcached gave up {more} items for want of memory ({found['bytes'] >> 20} of"
                f" {found['limit_maxbytes'] >> 20} MiB in use): each node gives up its own, so the nodes do not hold"
                f" the same any more; give it more memory (memory_bytes)"
            )
        return Vitals(found, alarm)


BACKEND = Memcached


def make(wanted: Wanted) -> Memcached:
    """A memcached that is not there yet."""
    return Memcached(wanted)
