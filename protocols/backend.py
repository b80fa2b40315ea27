"""The contract between the control plane and a backend: what a node asks of the server behind it.

A new backend is one folder beside this file: `KIND` in its `__init__.py` (what is known before a server runs) and
`make()` in its `backend.py`, which returns a `Backend`. Nothing else in musidecar names a server, but for tools that
load and compare one (bench, demo, testbed). protocol.h beside this file is the same for the data plane.

The life of one: `start()` (a server of the node's own, or a look at one that runs), `prepare()`, then the engine talks
to it (`engine_fields()`, `table()`), while `copy()` gives its data to other nodes and `fill()` takes theirs. When the
engine has lost it, `look()` and `prepare()` come again and again until it answers. At an orderly end `last_look()` may
keep the data for another start. A method may be called from any thread unless it says something else; none is called
twice at once.
"""

from __future__ import annotations

import importlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol

from musidecar.protocols import Kind
from musidecar.protocols.server import Address as Address
from musidecar.protocols.server import BackendError as BackendError
from musidecar.protocols.server import Server as Server

POINT_POLL_S = 0.002


class HoldsData(BackendError):
    """A joining node's own backend holds data that joining would replace."""


@dataclass(frozen=True)
class Wanted:
    """Which server, and how it is to be. home: a folder of its node's own. spawn: started by the node, with `binary`.
    token: a secret of this node of this cluster. options: those of its kind that were given."""

    address: Address
    home: Path
    spawn: bool = False
    binary: str = ""
    token: str = ""
    timeout_ms: int = 5000
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """What a backend is prepared for. joining: the node does not bring the cluster's data; a backend that holds data is
    refused then (HoldsData) unless `replace_data`; `replace_line` is what to type. rejoins: into a cluster that runs;
    what a former life of this node has left in the backend is then the cluster's, and not refused. follows: the backend
    was this sidecar's before, and may stay what it is."""

    joining: bool = False
    rejoins: bool = False
    follows: bool = False
    replace_data: bool = False
    replace_line: str = ""


@dataclass(frozen=True)
class Prepared:
    """What was found in a backend that is ready to be replicated. keys: expired and not yet deleted ones included.
    pid: as the server itself tells it. changed: settings that were changed, name -> new value."""

    version: str
    keys: int
    pid: int
    changed: dict[str, str]


@dataclass(frozen=True)
class Edge:
    """Another port of a node, for another protocol, served by a process that is a client of the node's own port.

    title: for people. host, port: where it listens. command: FD in it stands for the listening socket's number.
    """

    FD: ClassVar = "{fd}"

    title: str
    host: str
    port: int
    command: Sequence[str]


@dataclass(frozen=True)
class Held:
    """What a backend held: up to `offset` of the history `replid`; `covers` is the same in the log's counting.

    server_replid, server_offset: the same as the server itself calls it; of one that was promoted for nothing, an RDB
    knows no other name. run_id: of the process; one that runs still needs no look at its files. index: the last record
    that it covers. moment: UTC, for people.
    """

    replid: str
    offset: int
    covers: int
    epoch: int
    index: int
    led: bool
    run_id: str
    moment: str
    server_replid: str = ""
    server_offset: int = 0


@dataclass(frozen=True)
class Claim:
    """A backend of an earlier life goes by the history `replid`, and its data is at `offset` of that, or of `before`
    ("": of none)."""

    replid: str
    before: str
    offset: int


@dataclass(frozen=True)
class Vitals:
    """How a backend is. facts: for `status`, under these names. alarm: what an operator should know of ("":
    nothing)."""

    facts: Mapping[str, Any]
    alarm: str = ""


@dataclass(frozen=True)
class Check:
    """One finding of `doctor`. verdict: "ok", "note" (works, but look), or "bad" (stands in the way)."""

    name: str
    verdict: str
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Point:
    """Where a backend stands in the log: it has answered all records up to `done`, and none behind `given` was given to
    it. life: 0 while it does not hold the cluster's data; else another number whenever it did not in between. due_s:
    when what it was told to do later is to be logged, Unix time; 0: there is nothing."""

    life: int
    done: int
    given: int
    due_s: int = 0


Points = Callable[[], Point]
PIECE_BYTES = 1 << 16  # of a copy on its way


def wait_point(points: Points, at_least: int, wait_s: float, title: str) -> Point:
    """Where the server (a `title`) stands, once it holds the cluster's data up to `at_least`. BackendError after
    `wait_s`."""
    deadline = time.monotonic() + wait_s
    while (point := points()).life == 0 or point.done < at_least:
        if time.monotonic() > deadline:
            stands = f"has done the log up to record {point.done}" if point.life else "does not hold the data"
            raise BackendError(f"its {title} {stands}, {at_least} is wanted")
        time.sleep(POINT_POLL_S)
    return point


class Copy(Protocol):
    """Data on its way to another node. head: told before it, with the key `offset`: where it stands."""

    @property
    def head(self) -> dict[str, Any]:
        """For JSON."""

    def chunks(self) -> Iterator[bytes]:
        """The data, once, in pieces of 64 KiB or so. BackendError if it breaks off before its end."""

    def foot(self) -> dict[str, Any]:
        """For JSON: what is known only after the last piece."""

    def close(self) -> None:
        """It is not wanted any more, or whole."""


class State:
    """All of a server at one moment, as it wrote it down itself: a Copy that says which request it holds last."""

    def __init__(
        self, points: Points, at_least: int, wait_s: float, title: str, taken: Callable[[], tuple[bytes, int]]
    ) -> None:
        """taken: the state, and the number (protocol.h, stamp()) of the last request in it."""
        began = wait_point(points, at_least, wait_s, title)
        self._state, number = taken()
        self.head = {"offset": began.done, "exact": number}
        ended = points()
        if ended.life != began.life:
            raise BackendError(f"its {title} did not hold the data all the time")
        self._given = ended.given

    def foot(self) -> dict[str, Any]:
        return {"given": self._given}

    def chunks(self) -> Iterator[bytes]:
        for at in range(0, len(self._state), PIECE_BYTES):
            yield self._state[at : at + PIECE_BYTES]

    def close(self) -> None:
        self._state = b""


def moment() -> str:
    """This one, for people."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def sync_folder(folder: Path) -> None:
    """What was made and renamed in it is on the disk when this returns. OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Backend(ABC):
    """The server behind one node. BackendError when it cannot be used, or does not answer."""

    kind: Kind
    fills_itself = False  # fill() brings a copy into the server; else the engine does
    has_vitals = False  # vitals() has something to tell
    keeps_data = False  # last_look() may find something for another start

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.address = wanted.address
        self.server: Server | None = None  # of the node's own

    @classmethod
    @abstractmethod
    def check_binary(cls, binary: str) -> Check:
        """Is a server there that a node can start? For `doctor`."""

    @abstractmethod
    def check_running(self, answer_s: float, brings_data: bool, runs: bool, replace_line: str) -> Iterator[Check]:
        """For `doctor`: a server that runs already, and what will be changed on it. brings_data: the cluster begins
        with what it holds. runs: its sidecar does."""

    def check_start(self) -> Iterator[Check]:
        """For `doctor`: what starting a server of the node's own takes, beside its program. Its node does not run."""
        return iter(())

    @abstractmethod
    def start(self) -> None:
        """Start the server, if it is to be started by the node (in the main thread: it dies with that one); else
        look."""

    @abstractmethod
    def look(self, timeout_s: float) -> None:
        """Does it answer?"""

    @abstractmethod
    def prepare(self, ask: Ask) -> Prepared:
        """Check it, and set it up for being replicated."""

    @abstractmethod
    def local_pid(self, told: int) -> int | None:
        """The server's process on this host, as this process numbers it. told: the number it goes by itself."""

    @abstractmethod
    def table(self, prepared: Prepared) -> Any:
        """The engine's `commands` argument: a pointer, NULL if this backend has none."""

    @abstractmethod
    def engine_fields(self, prepared: Prepared) -> dict[str, Any]:
        """Fields of struct engine_config that only this backend knows."""

    @abstractmethod
    def count(self) -> int:
        """Of what it holds, for the question whether that is nothing."""

    @abstractmethod
    def copy(self, at_least: int, wait_s: float, points: Points) -> Copy:
        """All that it holds, for another node, as it is at `at_least` (an offset, or an index of the log) or beyond; it
        may take `wait_s` to get there."""

    def changes(self, after: int, until: int, wait_s: float) -> Copy:
        """What changed behind `after`, up to `until`."""
        raise BackendError(f"its {self.kind.title} keeps no changes")

    def fill(self, copy: IO[bytes], head: dict[str, Any], cancelled: Callable[[], bool]) -> int:
        """If `fills_itself`: replace what the server holds by a copy with that head; the number of items. Given up when
        `cancelled` says so."""
        raise NotImplementedError

    def edge(self, client: tuple[str, int]) -> Edge | None:
        """Another port that the node is to have, in front of its own, `client`."""
        return None

    def outlived(self) -> bool:
        """Has it been prepared by a former life of this node, and run since?"""
        return False

    def disown(self) -> None:  # noqa: B027 - most have nothing to undo
        """What tells it as this node's is undone: somebody else's data is then not taken for the cluster's."""

    def restore(self, saved: Path) -> None:  # noqa: B027 - most keep nothing
        """Before start(): a server of the node's own is to begin with what last_look() has saved there."""

    def last_look(self, known: Mapping[str, Any], save_to: Path | None) -> tuple[Held | None, str]:
        """What it holds once the engine has ended, and why that is nothing to begin with again ("" when it is).

        known: the engine's last status. save_to: the server goes, too, so its data is to be there when this returns,
        synced.
        """
        return None, f"{self.kind.title} keeps nothing"

    def judge(self, held: Held) -> str | None:
        """Why what it holds is not that; None when it is."""
        return f"its {self.kind.title} keeps nothing"

    def claim(self, held: Held | None) -> Claim | None:
        """What it holds in the terms of the log, which may vouch for it; None: nothing to go by. held: it has loaded
        that, if it is what it was."""
        return None

    def refuses(self) -> str | None:
        """Why it would refuse writes if it led; None if it would not."""
        return None

    def vitals(self) -> Vitals:
        """If `has_vitals`: how it is, asked every few seconds."""
        raise NotImplementedError


def make(kind: str, wanted: Wanted) -> Backend:
    """The backend of this kind."""
    made: Backend = importlib.import_module(f"musidecar.protocols.{kind}.backend").make(wanted)
    return made


def backend_class(kind: str) -> type[Backend]:
    """The class of what make() returns."""
    found: type[Backend] = importlib.import_module(f"musidecar.protocols.{kind}.backend").BACKEND
    return found
