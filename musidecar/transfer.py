"""A copy of the data from one node to another: what a backend is filled with that the log alone cannot bring up. Or,
for one that has most of it, the piece of the stream of changes that it lacks.

The asking node makes an authenticated connection of its own for each transfer and names the offset it needs (of the
stream of changes, or an index of the log: what the backend counts in) and the term it is in: a leader that was deposed
and has not noticed yet must not give its data away. The serving node takes a copy (Redis: an RDB), or the piece, from
its own server and passes it on in parts as they come; length and SHA-256 close it. Of a copy nothing is held in memory,
and the file on the asking side has no name from the moment it is open.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from musidecar.mesh import Connection, Mesh, MeshError, Unreachable
from musidecar.protocols.backend import Backend, BackendError, Copy, Point, Points

SERVE_MAX = 2  # transfers at a time: each of them makes a Redis fork
BACKEND_WAIT_S = 2.0  # for the backend to reach the offset that was asked for
SILENCE_S = 40.0  # a transfer that brings nothing for this long is given up; a backend may first finish another save
PAUSE_S = 0.002  # shorter ones are not worth it
BURST_S = 0.1  # who was late, because a pause took longer than it was to be, say, makes up for no more than this
PROGRESS_S = 5.0  # between log lines about a transfer under way

log = logging.getLogger("musidecar.transfer")


class TransferFailed(Exception):
    """No node gave a copy; the text says what each of them answered."""


class Cancelled(Exception):
    """The caller does not want it any more."""


class _Skip(Exception):
    """Not from this node."""


@dataclass(frozen=True)
class Fetched:
    """A copy that has come whole. `fd`: a nameless file, read from its start; the caller's. head, foot: what its giver
    said of it."""

    fd: int
    bytes: int
    offset: int
    node: int
    head: dict[str, Any]
    foot: dict[str, Any]


# ---- asking ----------------------------------------------------------------------------------------------------------


def fetch(
    mesh: Mesh,
    nodes: Sequence[int],
    at_least_offset: int,
    into: Path,
    *,
    term: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda node, count: None,
    silence_s: float = SILENCE_S,
) -> Fetched:
    """A copy whose offset is at least `at_least_offset`, from the first of `nodes` that can give one.

    term: a node that has not got so far is passed over, like one that has no clean data or is not there.
    progress(node, count): so many bytes have come from that node. The file lies in the folder `into` (0600, unlinked at
    once). TransferFailed when no node gives one, each with its reason; Cancelled when `cancelled` says so, which is
    asked for every piece.
    """
    wanted = _Wanted(term, cancelled, progress, silence_s)
    return _from_first(nodes, cancelled, lambda node: _fetch_from(mesh, node, at_least_offset, into, wanted))


def fetch_tail(
    mesh: Mesh,
    nodes: Sequence[int],
    after: int,
    until: int,
    *,
    term: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda node, count: None,
    silence_s: float = SILENCE_S,
) -> bytes:
    """The bytes of the stream behind offset `after`, up to `until`, from the first of `nodes` that still has them all.

    The rest as with fetch().
    """
    wanted = _Wanted(term, cancelled, progress, silence_s)
    return _from_first(nodes, cancelled, lambda node: _tail_from(mesh, node, after, until, wanted))


T = TypeVar("T")


@dataclass(frozen=True)
class _Wanted:
    term: int
    cancelled: Callable[[], bool]
    progress: Callable[[int, int], None]
    silence_s: float


def _from_first(nodes: Sequence[int], cancelled: Callable[[], bool], take: Callable[[int], T]) -> T:
    reasons = []
    for node in nodes:
        if cancelled():
            raise Cancelled
        try:
            return take(node)
        except (_Skip, MeshError) as error:
            reasons.append(f"node {node}: {error}")
            log.info("transfer: not from node %d: %s", node, error)
        except OSError as error:
            reasons.append(f"node {node}: cannot write what it gives: {error.strerror}")
            log.warning("transfer: cannot write what node %d gives: %s", node, error.strerror)
    raise TransferFailed("; ".join(reasons) or "no other node is there")


def _fetch_from(mesh: Mesh, node: int, at_least: int, into: Path, wanted: _Wanted) -> Fetched:
    with mesh.dial(node, "transfer") as connection:
        connection.send({"at_least": at_least, "term": wanted.term})
        answer = connection.recv(wanted.silence_s)
        if "not_ready" in answer:
            raise _Skip(str(answer["not_ready"])[:300])
        offset = answer.get("offset")
        if not isinstance(offset, int) or offset < at_least:
            raise _Skip("it gives another offset than was asked for")
        log.info("transfer: taking the data from node %d at offset %d", node, offset)
        fd = _nameless(into)
        try:
            length, foot = _receive(connection, lambda piece: _write(fd, piece), node, wanted)
            os.lseek(fd, 0, os.SEEK_SET)
        except BaseException:
            os.close(fd)
            raise
    log.info("transfer: %s from node %d are here", size(length), node)
    return Fetched(fd, length, offset, node, answer, foot)


def _tail_from(mesh: Mesh, node: int, after: int, until: int, wanted: _Wanted) -> bytes:
    with mesh.dial(node, "transfer") as connection:
        connection.send({"at_least": until, "term": wanted.term, "after": after})
        answer = connection.recv(wanted.silence_s)
        if "not_ready" in answer:
            raise _Skip(str(answer["not_ready"])[:300])
        if (answer.get("after"), answer.get("offset")) != (after, until):
            raise _Skip("it gives other changes than were asked for")
        came = bytearray()

        def keep(piece: bytes) -> None:
            if len(came) + len(piece) > until - after:
                raise _Skip("it gives more than was asked for")
            came.extend(piece)

        length, _ = _receive(connection, keep, node, wanted)
        if length != until - after:
            raise _Skip("it gives less than was asked for")
    log.info("transfer: %s of changes from node %d are here", size(length), node)
    return bytes(came)


def _write(fd: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(fd, view) :]


def _nameless(folder: Path) -> int:
    fd, name = tempfile.mkstemp(".rdb", "transfer-", folder)
    os.unlink(name)
    return fd


def _receive(
    connection: Connection, keep: Callable[[bytes], None], node: int, wanted: _Wanted
) -> tuple[int, dict[str, Any]]:
    digest, length = hashlib.sha256(), 0
    say_at = time.monotonic() + PROGRESS_S
    while isinstance(piece := connection.recv_any(wanted.silence_s), bytes):
        if wanted.cancelled():
            raise Cancelled
        keep(piece)
        digest.update(piece)
        length += len(piece)
        wanted.progress(node, length)
        if time.monotonic() >= say_at:
            say_at = time.monotonic() + PROGRESS_S
            log.info("transfer: %s from node %d so far", size(length), node)
    if "failed" in piece:
        raise _Skip(str(piece["failed"])[:300])
    if piece.get("bytes") != length or piece.get("sha256") != digest.hexdigest():
        raise _Skip(f"what came is not what was sent ({length} bytes of {str(piece.get('bytes'))[:20]})")
    return length, piece


def size(count: int) -> str:
    """A number of bytes for people."""
    value, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"


# ---- serving ---------------------------------------------------------------------------------------------------------


class Source:
    """Serves copies of this node's own backend, and pieces of its stream, to other nodes: a handler for the mesh's role
    `transfer`.

    objection: why this backend's data must not be given away now to a node in that term (dirty, being filled, of an
    earlier term), or None. Asked before a transfer begins and again before it is declared whole, so data that turned
    dirty under way is never handed over.
    """

    def __init__(
        self,
        backend: Backend,
        objection: Callable[[int], str | None],
        bytes_per_s: float = float("inf"),
        points: Points = lambda: Point(0, 0, 0),
    ) -> None:
        self.backend = backend
        self.objection = objection
        self.points = points
        self.bytes_per_s = bytes_per_s
        self._free = threading.BoundedSemaphore(SERVE_MAX)

    def serve(self, connection: Connection) -> None:
        """One transfer, in the calling thread. Unreachable when the other node goes away."""
        with connection:
            question = connection.recv(SILENCE_S)
            at_least, term, after = question.get("at_least"), question.get("term"), question.get("after")
            if not isinstance(at_least, int) or not isinstance(term, int):
                raise Unreachable("it names no offset or no term")
            if after is not None and (not isinstance(after, int) or not 0 <= after < at_least):
                raise Unreachable("it names no piece of the stream")
            if not self._free.acquire(blocking=False):
                connection.send({"not_ready": f"{SERVE_MAX} transfers are under way already"})
                return
            try:
                self._serve(connection, at_least, term, after)
            finally:
                self._free.release()

    def _serve(self, connection: Connection, at_least: int, term: int, after: int | None) -> None:
        node = connection.peer.node
        try:
            if (objection := self.objection(term)) is not None:
                raise BackendError(objection)
            if after is None:
                taken = self.backend.copy(at_least, BACKEND_WAIT_S, self.points)
            else:
                taken = self.backend.changes(after, at_least, BACKEND_WAIT_S)
            answer = taken.head
        except (BackendError, KeyError, ValueError) as error:
            connection.send({"not_ready": str(error)})
            return
        try:
            connection.send(answer)
            connection.send(self._pass_on(connection, taken, term))
        finally:
            taken.close()
        what = "data at" if after is None else f"changes from offset {after} to"
        log.info("transfer: gave the %s offset %d to node %d", what, answer["offset"], node)

    def _pass_on(self, connection: Connection, taken: Copy, term: int) -> dict[str, Any]:
        digest, length = hashlib.sha256(), 0
        due = time.monotonic()  # for the next piece
        try:
            for piece in taken.chunks():
                connection.send_bytes(piece)
                now = time.monotonic()
                due = max(due, now - BURST_S) + len(piece) / self.bytes_per_s
                if due - now > PAUSE_S:
                    time.sleep(due - now)
                digest.update(piece)
                length += len(piece)
            if (objection := self.objection(term)) is not None:
                raise BackendError(objection)
        except BackendError as error:
            log.warning("transfer: to node %d broke off: %s", connection.peer.node, error)
            return {"failed": str(error)}
        return taken.foot() | {"bytes": length, "sha256": digest.hexdigest()}


def remove_leftovers(folder: Path) -> None:
    """Files whose making was cut short between open and unlink, and what a server that was filled here has kept:
    another one in this folder would begin with it."""
    for pattern in ("transfer-*.rdb", "dump.rdb", "temp-*.rdb"):
        for file in folder.glob(pattern):
            with suppress(OSError):
                file.unlink()
