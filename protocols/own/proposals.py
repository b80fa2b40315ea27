"""A client's side of the frames: what it has sent and has no outcome of, no socket and no clock.

What is not known when a connection ends is sent again over the next, under the same numbers. Nothing is proposed
before it is known that the client is open: a machine that does not know it then has forgotten it, and says so.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from . import wire
from .replicated import Rejected
from .wire import COUNT, REPLY_HEAD, U64, Malformed

Done = Callable[[Any, BaseException | None], None]


class Unknown(Exception):
    """Nobody can tell any more whether what was proposed is in the log."""


class Proposals:
    """One client. `output` is what is to be sent; whoever sends it takes it away."""

    def __init__(self) -> None:
        self.client = secrets.randbits(64)
        self.output = bytearray()
        self._opened = False
        self._closing: Done | None = None
        self._number = 0
        self._proposed: dict[int, tuple[bytes, Done]] = {}  # frames without an outcome, in order
        self._reads: dict[int, Done] = {}
        self._input = bytearray()  # the start of a reply
        self._wanted = 1  # nothing is to be done before so much of it is there

    @property
    def under_way(self) -> bool:
        return bool(self._proposed or self._reads)

    def connected(self) -> None:
        """A connection is made: all that the last one did not answer is to be sent over it."""
        self._input.clear()
        self._wanted = 1
        self.output.clear()
        if not self._opened:
            self.output += wire.request(wire.OPEN, self.client, 0, 0)
            return
        for frame, _ in self._proposed.values():
            self.output += frame
        for number in self._reads:
            self.output += wire.request(wire.READ, self.client, number, 0)

    def propose(self, records: Sequence[bytes], done: Done) -> None:
        """done(results, None), each of them bytes or a Rejected, or done(None, error)."""
        self._number += 1
        oldest = next(iter(self._proposed), self._number)
        frame = wire.request(wire.PROPOSE, self.client, self._number, oldest - 1, wire.batch(records))
        self._proposed[self._number] = frame, done
        if self._opened:
            self.output += frame

    def read(self, done: Done) -> None:
        """done(stamp, None): what a linearizable read must see is in every machine that holds what is logged up to
        there."""
        self._number += 1
        self._reads[self._number] = done
        if self._opened:
            self.output += wire.request(wire.READ, self.client, self._number, 0)

    def close(self, done: Done) -> None:
        """The last frame: the machines need not remember this client."""
        self._closing = done
        self.output += wire.request(wire.CLOSE, self.client, 0, 0)

    def give_up(self, error: Callable[[str], BaseException]) -> None:
        """Nothing more comes. The argument of `error` says what it was."""
        proposed, reads = list(self._proposed.values()), list(self._reads.values())
        self._proposed.clear()
        self._reads.clear()
        for _, done in proposed:
            done(None, error("proposal"))
        for done in reads:
            done(None, error("read"))

    def feed(self, data: bytes) -> None:
        """What has come over the connection. Malformed: it is of no use any more."""
        if self._input:
            self._input += data
            if len(self._input) < self._wanted:
                return
            data = bytes(self._input)
        at, size = 0, len(data)
        while size - at >= REPLY_HEAD.size:
            kind, length, number = REPLY_HEAD.unpack_from(data, at)
            if length < REPLY_HEAD.size:
                raise Malformed(f"a reply of {length} bytes")
            if size - at < length:
                break
            self._reply(kind, number, data, at + REPLY_HEAD.size, at + length)
            at += length
        self._input = bytearray(data[at:])
        left = size - at
        self._wanted = REPLY_HEAD.unpack_from(data, at)[1] if left >= REPLY_HEAD.size else REPLY_HEAD.size
        if self._input[:1] == bytes([wire.FULL]):
            raise Malformed("no place for another client (limits.clients_max)")

    def _reply(self, kind: int, number: int, data: bytes, at: int, end: int) -> None:
        if kind == wire.RESULTS:
            found = self._proposed.pop(number, None)
            if found is not None:
                found[1](_results(data, at, end), None)
        elif kind == wire.PLACE:
            if end - at != U64.size:
                raise Malformed(f"a place of {end - at} bytes")
            done = self._reads.pop(number, None)
            if done is not None:
                done(U64.unpack_from(data, at)[0], None)
        elif kind == wire.OPENED:
            if not self._opened:
                self._opened = True
                self.connected()
        elif kind == wire.FORGOTTEN:
            found = self._proposed.pop(number, None)
            if found is not None:
                found[1](None, Unknown("this client was silent for so long that the machines have forgotten it"))
        elif kind == wire.CLOSED:
            if self._closing is not None:
                self._closing(None, None)
        else:
            raise Malformed(f"a reply of kind {kind}")


def _results(data: bytes, at: int, end: int) -> list[bytes | Rejected]:
    lengths = wire.lengths(data, at, end)
    at += COUNT.size * (len(lengths) + 1)
    found: list[bytes | Rejected] = []
    for length in lengths:
        if length >= wire.REJECTED:
            stop = at + (length & wire.LENGTH)
            found.append(Rejected(data[at:stop].decode(errors="replace")))
        else:
            stop = at + length
            found.append(data[at:stop])
        at = stop
    if at != end:
        raise Malformed("a reply whose lengths do not add up")
    return found
