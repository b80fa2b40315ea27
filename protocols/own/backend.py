"""A machine as the control plane sees it: its server is a thread of this process, made by musidecar.api."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import musidecar
from musidecar._ffi import ffi, lib
from musidecar.protocols.backend import (
    Ask,
    Backend,
    BackendError,
    Check,
    Copy,
    Points,
    Prepared,
    State,
    Wanted,
)

from . import KIND
from .replicated import MachineFailed, Replicated, stamp_of
from .server import Server
from .wire import Malformed

WHO_STARTS_IT = "a machine of your own is served by the program that makes a musidecar.api.Replica (docs/api.md)"


class Own(Backend):
    """One machine. `state`: what is replicated, None where nothing but a look is wanted. `failed`: called once, in the
    machine's thread, when it has done what a machine must not."""

    kind = KIND
    fills_itself = True

    def __init__(
        self, wanted: Wanted, state: Replicated | None = None, failed: Callable[[MachineFailed], None] = lambda _: None
    ) -> None:
        super().__init__(wanted)
        self._state, self._failed = state, failed
        self.machine: Server | None = None

    @classmethod
    def check_binary(cls, binary: str) -> Check:
        return Check(KIND.title, "ok", WHO_STARTS_IT)

    def check_running(self, answer_s: float, brings_data: bool, runs: bool, replace_line: str) -> Iterator[Check]:
        yield Check("", "ok" if runs else "note", "its node runs" if runs else WHO_STARTS_IT)

    def start(self) -> None:
        if self._state is None:
            raise BackendError(WHO_STARTS_IT)
        if not self.wanted.address.path:
            raise BackendError("a machine is behind a Unix socket: give its `socket`")
        if self.machine is None:
            self.machine = Server(Path(self.wanted.address.path), self._state, self._failed)
            self.machine.start()

    def close(self) -> None:
        """The node has ended."""
        if self.machine is not None:
            self.machine.stop()
            self.machine.close()
        if self._state is not None:
            self._state.close()

    def look(self, timeout_s: float) -> None:
        self._server()

    def _server(self) -> Server:
        if self.machine is None or not self.machine.alive:
            raise BackendError("its machine has ended")
        return self.machine

    def prepare(self, ask: Ask) -> Prepared:
        """What the machine holds when a cluster begins is the cluster's at the seed, and replaced at other nodes."""
        return Prepared(version=musidecar.__version__, keys=self._server().applied, pid=0, changed={})

    def local_pid(self, told: int) -> int | None:
        return None  # no other process

    def table(self, prepared: Prepared) -> Any:
        return ffi.NULL

    def engine_fields(self, prepared: Prepared) -> dict[str, Any]:
        return {"backend_version": prepared.version.encode(), "protocol": lib.PROTOCOL_OWN, "databases": 1}

    def copy(self, at_least: int, wait_s: float, points: Points) -> Copy:
        return State(points, at_least, wait_s, self.kind.title, self._snapshot)

    def _snapshot(self) -> tuple[bytes, int]:
        state: bytes = self._server().call(Replicated.snapshot)
        return state, stamp_of(state)

    def fill(self, copy: IO[bytes], head: dict[str, Any], cancelled: Callable[[], bool]) -> int:
        data = copy.read()
        try:
            self._server().call(lambda state: state.restore(data))
        except Malformed as error:
            raise BackendError(str(error)) from None
        return self._server().applied

    def count(self) -> int:
        """Records."""
        return self._server().applied


BACKEND = Own


def make(wanted: Any) -> Own:
    """To look at: what serves a machine is made by musidecar.api, which has it."""
    return Own(wanted)
