"""Taking a piece of the replication stream out of a running Redis, the way a replica does that was away (PSYNC <id>
<offset>): what a backend lacks that stands at an earlier offset of the same history.

A replica's backlog has the same bytes as its master's (replication.c of 7.0: it passes them on as they came), as far as
it has been one without a full resync in between.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .admin import READ_BYTES, Address, BackendError, Connection, encode
from .rdb import LINE_BYTES_MAX, NotReady, wait_offset


@dataclass
class Piece:
    """`length` bytes of the stream on their way, up to offset `until`; iterate `chunks()` once. The caller closes
    it."""

    length: int
    _sock: socket.socket = field(repr=False)
    _ahead: bytes = field(repr=False, default=b"")
    until: int = 0

    @property
    def head(self) -> dict[str, Any]:
        return {"offset": self.until, "after": self.until - self.length}

    def foot(self) -> dict[str, Any]:
        return {}

    def chunks(self) -> Iterator[bytes]:
        """The bytes, in pieces of at most 64 KiB. BackendError if it breaks off before its end."""
        left = self.length
        while left > 0:
            chunk, self._ahead = (self._ahead or self._read())[:left], b""
            left -= len(chunk)
            yield chunk

    def line(self) -> bytes:
        """The answer to PSYNC."""
        while b"\n" not in self._ahead:
            if len(self._ahead) > LINE_BYTES_MAX:
                raise BackendError("Redis sent an endless line where its stream was to come")
            self._ahead += self._read()
        line, self._ahead = self._ahead.split(b"\n", 1)
        return line.rstrip(b"\r")

    def _read(self) -> bytes:
        try:
            chunk = self._sock.recv(READ_BYTES)
        except OSError as error:
            raise BackendError(f"Redis broke off in mid-stream: {error.strerror or error}") from None
        if not chunk:
            raise BackendError("Redis broke off in mid-stream: connection closed")
        return chunk

    def close(self) -> None:
        self._sock.close()


def take(address: Address, after: int, until: int, *, wait_s: float = 2.0, silence_s: float = 30.0) -> Piece:
    """The stream's bytes behind offset `after`, up to `until`.

    wait_s: how long the backend may take to get to that offset. silence_s: how long it may send nothing. NotReady when
    its backlog does not go back so far, or it cannot give any now.
    """
    wait_offset(address, until, wait_s)
    with Connection(address, max(wait_s, 1.0)) as connection:
        found = connection.info("replication")
        first = int(found["repl_backlog_first_byte_offset"])
        if found["repl_backlog_active"] != "1" or not first <= after + 1:
            raise NotReady(f"its Redis keeps the changes from offset {first} on, those from {after + 1} on are wanted")
        connection.call("REPLCONF", "capa", "psync2")
        sock = connection.sock.dup()
    piece = Piece(until - after, sock, until=until)
    try:
        sock.settimeout(silence_s)
        sock.sendall(encode("PSYNC", found["master_replid"], after + 1))
        line = piece.line().decode(errors="replace")
        if not line.startswith("+CONTINUE"):
            raise NotReady(f"its Redis answered PSYNC with {line[:120]!r}")
    except BaseException:
        sock.close()
        raise
    return piece
