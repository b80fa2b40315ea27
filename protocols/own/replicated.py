"""One machine, and what it takes to have it the same everywhere: frames in, replies out, no socket and no clock."""

from __future__ import annotations

from struct import Struct
from typing import Protocol, runtime_checkable

from musidecar.protocols.server import BackendError

from . import wire
from .outcomes import Outcomes
from .wire import HEAD, REPLY_HEAD, STAMP_HEAD, U64, Malformed

SNAPSHOT_HEAD = Struct("<8sQQQ")  # magic, stamp, records applied, bytes of the table of outcomes
SNAPSHOT_MAGIC = b"machine1"


@runtime_checkable
class Machine(Protocol):
    """What musidecar.api replicates: docs/api.md says what it must not do."""

    def apply(self, index: int, record: bytes) -> bytes:
        """The `index`-th record, from 1 on: change the state, and say what came of it. Rejected, or nothing, may be
        raised."""

    def snapshot(self) -> bytes:
        """All of the state."""

    def restore(self, data: bytes) -> None:
        """What snapshot() returned, at another node, takes the place of the state."""


class Rejected(Exception):
    """Raised by apply(), before it has changed anything: this record is not wanted. propose() raises it, with the same
    text."""


class MachineFailed(BackendError):
    """A machine has done what it must not; the text says what. Its node has left the cluster."""


class Replicated:
    """A machine with its table of outcomes. stamp: of the last logged frame. applied: records so far."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.outcomes = Outcomes()
        self.stamp = 0
        self.applied = 0

    def close(self) -> None:
        """Nothing is fed any more."""

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """The replies to the whole frames at its start, and how many bytes those are. Malformed, MachineFailed."""
        replies: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            kind = data[at]
            if kind == wire.PING:
                replies.append(b".")
                at += 1
                continue
            stamp = 0
            if kind == wire.STAMP:
                if size - at < STAMP_HEAD.size + HEAD.size:
                    break
                stamp = STAMP_HEAD.unpack_from(data, at)[1]
                if size - at - STAMP_HEAD.size < int.from_bytes(data[at + 20 : at + 24], "little"):
                    break
                at += STAMP_HEAD.size
            elif size - at < HEAD.size or size - at < int.from_bytes(data[at + 4 : at + 8], "little"):
                break
            kind, length, client, number, received = HEAD.unpack_from(data, at)
            if length < HEAD.size:
                raise Malformed(f"a frame of {length} bytes")
            if (stamp > 0) == (kind == wire.READ):
                raise Malformed("what changes something has a stamp, and nothing else")
            if stamp and stamp <= self.stamp:
                raise Malformed("what is logged there has been given before")
            replies.append(self._frame(kind, client, number, received, data, at + HEAD.size, at + length))
            self.stamp = stamp or self.stamp
            at += length
        return b"".join(replies), at

    def _frame(self, kind: int, client: int, number: int, received: int, data: bytes, at: int, end: int) -> bytes:
        if kind == wire.PROPOSE:
            return self._propose(client, number, received, data, at, end)
        if kind == wire.READ:
            return wire.reply(wire.PLACE, number, U64.pack(self.stamp))
        if kind == wire.OPEN:
            self.outcomes.open(client)
            return wire.reply(wire.OPENED, number)
        if kind == wire.CLOSE:
            self.outcomes.close(client)
            return wire.reply(wire.CLOSED, number)
        raise Malformed(f"a frame of kind {kind}")

    def _propose(self, client: int, number: int, received: int, data: bytes, at: int, end: int) -> bytes:
        lengths = wire.lengths(data, at, end)
        known = self.outcomes.spoke(client, min(received, number - 1))
        if known is None or number <= known.received:
            return wire.reply(wire.FORGOTTEN, number)
        outcome = known.outcomes.get(number)
        if outcome is None:
            outcome = self._apply(lengths, data, at + 4 * len(lengths) + 4, end)
            self.outcomes.keep(known, number, outcome)
        return REPLY_HEAD.pack(wire.RESULTS, REPLY_HEAD.size + len(outcome), number) + outcome

    def _apply(self, lengths: tuple[int, ...], data: bytes, at: int, end: int) -> bytes:
        """The body of the reply. The loop is what a record costs here."""
        apply, results, rejected = self.machine.apply, [], []
        index = self.applied
        for length in lengths:
            stop = at + length
            index += 1
            try:
                results.append(apply(index, data[at:stop]))
            except Rejected as why:
                rejected.append(len(results))
                results.append(str(why).encode())
            except Exception as error:
                raise MachineFailed(f"apply({index}, {_short(data[at:stop])}) raised {error!r}") from error
            at = stop
        if at != end:
            raise Malformed("lengths that do not add up")
        try:
            sizes = list(map(len, results))
            for each in rejected:
                sizes[each] |= wire.REJECTED
            body = wire.batch(results, sizes)
        except TypeError:
            wrong = next(each for each, result in enumerate(results) if type(result) is not bytes)
            kind = type(results[wrong]).__name__
            raise MachineFailed(f"apply({self.applied + 1 + wrong}, ...) returned {kind}, not bytes") from None
        self.applied = index
        return body

    # ---- state ----

    def snapshot(self) -> bytes:
        """All of it. MachineFailed."""
        try:
            state = self.machine.snapshot()
        except Exception as error:
            raise MachineFailed(f"snapshot() raised {error!r}") from error
        if type(state) is not bytes:
            raise MachineFailed(f"snapshot() returned {type(state).__name__}, not bytes")
        table = self.outcomes.dump()
        return SNAPSHOT_HEAD.pack(SNAPSHOT_MAGIC, self.stamp, self.applied, len(table)) + table + state

    def restore(self, data: bytes) -> None:
        """What snapshot() was, elsewhere. Malformed, MachineFailed."""
        if len(data) < SNAPSHOT_HEAD.size:
            raise Malformed("a snapshot that breaks off")
        magic, stamp, applied, table = SNAPSHOT_HEAD.unpack_from(data)
        if magic != SNAPSHOT_MAGIC or table > len(data) - SNAPSHOT_HEAD.size:
            raise Malformed("no snapshot of a machine")
        try:
            outcomes = Outcomes.load(data[SNAPSHOT_HEAD.size : SNAPSHOT_HEAD.size + table])
        except ValueError as error:
            raise Malformed(str(error)) from None
        try:
            self.machine.restore(data[SNAPSHOT_HEAD.size + table :])
        except Exception as error:
            raise MachineFailed(f"restore() raised {error!r}") from error
        self.outcomes, self.stamp, self.applied = outcomes, stamp, applied


def stamp_of(snapshot: bytes) -> int:
    """Of the last frame that it holds."""
    return int(SNAPSHOT_HEAD.unpack_from(snapshot)[1])


def _short(record: bytes) -> str:
    return repr(record) if len(record) <= 40 else f"{record[:40]!r}... ({len(record)} bytes)"
