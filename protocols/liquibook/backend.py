"""liquibookd as the control plane sees it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
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
    Edge,
    HoldsData,
    Points,
    Prepared,
    State,
)

from . import FIX_DECIMALS, FIX_NAME, KIND, driver
from .driver import Connection

SYMBOLS = ("AAPL", "MSFT")  # the books, unless told
COPY_S = 60.0  # for all of the state to be written down, or read
IMPORT_S = 20.0
_IMPORTS = "import musidecar.protocols.liquibook, liquibook, simplefix"  # its own, the exchange's, the FIX port's


class Liquibookd(Backend):
    """One liquibookd. What it holds is gone with its process."""

    kind = KIND
    fills_itself = True
    _symbols: Sequence[str] = ()  # of the books that there are, once it has been prepared

    @classmethod
    def check_binary(cls, binary: str) -> Check:
        try:
            done = subprocess.run([binary, "-c", _IMPORTS], capture_output=True, timeout=IMPORT_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            return Check("liquibookd", "bad", f"{binary}: {error}", "name a Python interpreter")
        if done.returncode != 0:
            words = done.stderr.decode(errors="replace").strip().splitlines() or ["import fails"]
            missing = words[-1].removeprefix("ModuleNotFoundError: No module named ").strip("'")
            text = f"{binary} has no package {missing}" if "ModuleNotFound" in words[-1] else f"{binary}: {words[-1]}"
            return Check("liquibookd", "bad", text, f"{binary} -m pip install 'musidecar[liquibook]'")
        return Check("liquibookd", "ok", f"{binary} has the package liquibook")

    def check_running(self, answer_s: float, brings_data: bool, runs: bool, replace_line: str) -> Iterator[Check]:
        try:
            events = driver.events(self.address, answer_s)
        except BackendError as error:
            yield Check("", "bad", str(error), "start it, or correct its address")
            return
        if runs or not events:
            yield Check("", "ok", f"{events} events" + ("; its node runs" if runs else ""))
        else:
            remedy = "start it anew" if brings_data else replace_line
            yield Check("", "bad", f"has {events} events of its own, and a cluster begins with none", remedy)

    def start(self) -> None:
        wanted = self.wanted
        if not wanted.address.path:
            raise BackendError("liquibookd listens on a Unix socket: give its `socket`")
        if not wanted.spawn:
            self.look(wanted.timeout_ms / 1000)
            return
        symbols = wanted.options.get("symbols", SYMBOLS)
        self.server = driver.spawn(wanted.home, Path(wanted.address.path), symbols, binary=wanted.binary)

    def look(self, timeout_s: float) -> None:
        driver.events(self.address, timeout_s)

    def prepare(self, ask: Ask) -> Prepared:
        wait_s = self.wanted.timeout_ms / 1000
        events, self._symbols = driver.events(self.address, wait_s), driver.symbols(self.address, wait_s)
        wanted = self.wanted.options.get("symbols", self._symbols)
        if not events and sorted(wanted) != sorted(self._symbols):
            raise BackendError(
                f"liquibookd at {self.address} has the books {','.join(self._symbols)}, and `symbols` says"
                f" {','.join(wanted)}: start it with --symbols {','.join(wanted)}"
            )
        if events and not ask.joining:
            raise BackendError(
                f"liquibookd at {self.address} has been used, and a cluster begins with none: start it anew"
            )
        if events and not ask.replace_data:
            raise HoldsData(
                f"the liquibookd of this node ({self.address}) already has {events} events of its own, which joining"
                f" the cluster would replace by the cluster's; if that is wanted:"
                f" {ask.replace_line or '--replace-data'}"
            )
        return Prepared(version=driver.version(), keys=events, pid=0, changed={})

    def edge(self, client: tuple[str, int]) -> Edge | None:
        options = self.wanted.options
        if "fix_port" not in options:
            return None
        host, _, port = options["fix_port"].rpartition(":")
        words = ["-P", "-m", "musidecar.protocols.liquibook", "--fix", Edge.FD, "--to", f"{client[0]}:{client[1]}"]
        decimals = options.get("fix_decimals", FIX_DECIMALS)
        words += ["--name", options.get("fix_name", FIX_NAME), "--decimals", str(decimals)]
        return Edge("FIX", host.strip("[]"), int(port), [self.wanted.binary, *words])

    def local_pid(self, told: int) -> int | None:
        return server.local_pid(self.address, told, ())

    def table(self, prepared: Prepared) -> Any:
        return ffi.NULL

    def engine_fields(self, prepared: Prepared) -> dict[str, Any]:
        names = ffi.new("char[]", f"\n{chr(10).join(self._symbols)}\n".encode())
        return {
            "backend_version": prepared.version.encode(),
            "protocol": lib.PROTOCOL_LIQUIBOOK,
            "databases": 1,
            "names": names,
        }

    def copy(self, at_least: int, wait_s: float, points: Points) -> Copy:
        return State(points, at_least, wait_s, self.kind.title, self._snapshot)

    def _snapshot(self) -> tuple[bytes, int]:
        with Connection(self.address.path, COPY_S) as connection:
            state = connection.snapshot()
        return state, json.loads(state.split(b"\n", 1)[0])[2]

    def fill(self, copy: IO[bytes], head: dict[str, Any], cancelled: Callable[[], bool]) -> int:
        with Connection(self.address.path, COPY_S) as connection:
            connection.restore(copy.read())
        return driver.events(self.address, COPY_S)

    def count(self) -> int:
        """Events."""
        return driver.events(self.address, self.wanted.timeout_ms / 1000)


BACKEND = Liquibookd


def make(wanted: Any) -> Liquibookd:
    """A liquibookd that is not there yet."""
    return Liquibookd(wanted)
