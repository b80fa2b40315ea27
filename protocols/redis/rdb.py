"""Taking an RDB from a running Redis the way a replica does (PSYNC ? -1): what a snapshot is made of.

The file holds the dataset exactly at the offset of the +FULLRESYNC line; the fork that writes it happens in the same
turn of Redis's loop. Both forms are read (replication.c of 7.0): `$<length>` from a file, and `$EOF:<40 bytes>`, which
ends where those 40 bytes stand. Nothing is acknowledged afterwards, so Redis sends nothing behind it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .admin import READ_BYTES, Address, BackendError, Connection, encode

MARK_BYTES = 40
LINE_BYTES_MAX = 1024
POLL_S = 0.005


class NotReady(BackendError):
    """This Redis cannot give an RDB now; another one, or the same one later, may."""


@dataclass
class Capture:
    """An RDB on its way. `offset`: replication offset its data stands at; iterate `chunks()` once for its bytes."""

    replid: str
    offset: int
    _sock: socket.socket = field(repr=False)
    _ahead: bytes = field(repr=False)
    _silence_s: float = field(repr=False)

    @property
    def head(self) -> dict[str, Any]:
        return {"offset": self.offset, "replid": self.replid}

    def foot(self) -> dict[str, Any]:
        return {}

    def chunks(self) -> Iterator[bytes]:
        """The file's bytes, in pieces of at most 64 KiB or so. BackendError if it breaks off before its end."""
        header = self._line()
        if not header.startswith(b"$"):
            raise BackendError(f"Redis answered {header[:80]!r} where an RDB was to come")
        if header.startswith(b"$EOF:"):
            mark = header[5:]
            if len(mark) != MARK_BYTES:
                raise BackendError("Redis announced an RDB with a mark of the wrong length")
            yield from self._until(mark)
        else:
            yield from self._length(int(header[1:]))

    def _length(self, left: int) -> Iterator[bytes]:
        while left > 0:
            chunk, self._ahead = (self._ahead or self._read())[:left], b""
            left -= len(chunk)
            yield chunk

    def _until(self, mark: bytes) -> Iterator[bytes]:
        held, self._ahead = self._ahead, b""
        while not held.endswith(mark):
            if len(held) > MARK_BYTES:
                yield held[:-MARK_BYTES]
                held = held[-MARK_BYTES:]
            held += self._read()
        if len(held) > MARK_BYTES:
            yield held[:-MARK_BYTES]

    def _line(self) -> bytes:
        """The next line that is not empty: Redis sends bare newlines as a sign of life while it prepares."""
        while True:
            while b"\n" not in self._ahead:
                if len(self._ahead) > LINE_BYTES_MAX:
                    raise BackendError("Redis sent an endless line where an RDB was to come")
                self._ahead += self._read()
            line, self._ahead = self._ahead.split(b"\n", 1)
            if line := line.rstrip(b"\r"):
                return line

    def _read(self) -> bytes:
        self._sock.settimeout(self._silence_s)
        try:
            chunk = self._sock.recv(READ_BYTES)
        except TimeoutError:
            raise BackendError(f"Redis sent nothing of its RDB for {self._silence_s:g} s") from None
        except OSError as error:
            raise BackendError(f"Redis broke off in mid-RDB: {error.strerror}") from None
        if not chunk:
            raise BackendError("Redis broke off in mid-RDB: connection closed")
        return chunk

    def close(self) -> None:
        self._sock.close()


def wait_offset(address: Address, at_least: int, timeout_s: float) -> int:
    """Wait until the backend stands at `at_least` or beyond; its offset. NotReady after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    with Connection(address, timeout_s) as connection:
        while (offset := connection.offset()) < at_least:
            if time.monotonic() >= deadline:
                raise NotReady(f"its Redis stands at offset {offset}, {at_least} is wanted")
            time.sleep(POLL_S)  # Redis has no event for "applied up to here"
        return offset


def capture(address: Address, at_least: int = 0, *, wait_s: float = 2.0, silence_s: float = 30.0) -> Capture:
    """Start taking an RDB whose offset is at least `at_least`; the caller closes it.

    wait_s: how long the backend may take to get to that offset. silence_s: how long it may send nothing (it forks and
    may wait for another save to end). NotReady when this backend cannot give one now, BackendError when it fails.
    """
    wait_offset(address, at_least, wait_s)
    with Connection(address, max(wait_s, 1.0)) as connection:
        connection.call("REPLCONF", "capa", "eof", "capa", "psync2")
        if version := connection.info("server").get("valkey_version"):
            # Else it writes for the oldest replica, and breaks off at what that would not know (fields that expire).
            connection.call("REPLCONF", "version", version)
        sock = connection.sock.dup()
    taking = Capture("", 0, sock, b"", silence_s)
    try:
        sock.sendall(encode("PSYNC", "?", "-1"))
        words = taking._line().decode(errors="replace").split()
        if words[0] != "+FULLRESYNC":
            raise NotReady(f"its Redis answered PSYNC with {' '.join(words)[:120]!r}")
        taking.replid, taking.offset = words[1], int(words[2])
        if taking.offset < at_least:
            raise NotReady(f"its Redis gave an RDB of offset {taking.offset}, {at_least} is wanted")
    except BaseException:
        sock.close()
        raise
    return taking
