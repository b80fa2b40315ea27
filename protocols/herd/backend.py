"""HERD as the control plane sees it: what is behind a gate of the node's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from musidecar._ffi import ffi, lib
from musidecar.protocols.backend import (
    Ask,
    Backend,
    BackendError,
    Check,
    Copy,
    HoldsData,
    Points,
    Prepared,
    Vitals,
    Wanted,
)

from . import KIND, checks, copying, driver
from .connection import Connection

VITALS_S = 2.0
VERSION = "rdma_bench"  # it does not tell one


class Herd(Backend):
    """One HERD. What it holds is gone with it, or with its gate."""

    kind = KIND
    fills_itself = True
    has_vitals = True

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted)
        self._told = (0, 0)  # of gone, forgotten

    @classmethod
    def check_binary(cls, binary: str) -> Check:
        return checks.gate_program()

    def check_running(self, answer_s: float, brings_data: bool, runs: bool, replace_line: str) -> Iterator[Check]:
        yield Check("", "bad", "HERD is behind a gate of the node's own", "spawn = true")

    def check_start(self) -> Iterator[Check]:
        return checks.herd(self.wanted.options)

    def start(self) -> None:
        wanted = self.wanted
        if not wanted.spawn or not wanted.address.path:
            raise BackendError("HERD is behind a gate of the node's own: give its `socket`, and spawn = true")
        again = self.server is not None
        wanted.home.mkdir(parents=True, exist_ok=True)
        log = wanted.home / "backend.log"
        log_from = log.stat().st_size if log.exists() else 0
        self.server = driver.spawn(wanted.home, Path(wanted.address.path), wanted.options, binary=wanted.binary)
        if not again:  # else the node goes on meanwhile, and looks
            try:
                driver.wait_served(self.server, log_from)
            except BaseException:
                self.server.stop()
                raise

    def look(self, timeout_s: float) -> None:
        if awaited := driver.awaited(self.address):
            raise BackendError(f"HERD is not there yet; what is missing: {awaited}")

    def prepare(self, ask: Ask) -> Prepared:
        keys = self.count()
        self._told = (0, 0)
        if keys and ask.joining and not ask.replace_data:
            raise HoldsData(
                f"the HERD of this node ({self.address}) already holds {keys} keys, which joining the cluster would"
                f" replace by the cluster's data; if that is wanted: {ask.replace_line or '--replace-data'}"
            )
        return Prepared(version=VERSION, keys=keys, pid=self.local_pid(0) or 0, changed={})

    def local_pid(self, told: int) -> int | None:
        """The gate's: HERD ends with it, and it with HERD."""
        return self.server.pid if self.server is not None else None

    def table(self, prepared: Prepared) -> Any:
        return ffi.NULL

    def engine_fields(self, prepared: Prepared) -> dict[str, Any]:
        return {"backend_version": prepared.version.encode(), "protocol": lib.PROTOCOL_HERD, "databases": 1}

    def copy(self, at_least: int, wait_s: float, points: Points) -> Copy:
        return copying.Dump(self.address, at_least, wait_s, points)

    def fill(self, copy: IO[bytes], head: dict[str, Any], cancelled: Callable[[], bool]) -> int:
        return copying.load(self.address, copy, cancelled)

    def count(self) -> int:
        """Keys that it was given."""
        with Connection(self.address, self.wanted.timeout_ms / 1000) as connection:
            return connection.status().keys

    def vitals(self) -> Vitals:
        with Connection(self.address, VITALS_S) as connection:
            found = connection.status()
        gone, forgotten = found.gone - self._told[0], found.forgotten - self._told[1]
        self._told = (found.gone, found.forgotten)
        alarm = ""
        if forgotten > 0:
            alarm = (
                f"the key table is full ({found.keys_max} keys), and forgot {forgotten}: a node that joins is not given"
                f" them; raise keys_max"
            )
        elif gone > 0:
            alarm = f"HERD had given up {gone} of the keys that were asked for: it is a cache, each node's its own"
        return Vitals(asdict(found), alarm)


BACKEND = Herd


def make(wanted: Wanted) -> Herd:
    """A HERD that is not there yet."""
    return Herd(wanted)
