"""Clients for those who load and judge a cluster of HERDs: of a node, and of the HERD itself, past its sidecar."""

from __future__ import annotations

from collections.abc import Sequence

from musidecar.protocols.memcached import reading
from musidecar.protocols.server import Address

from .connection import Connection

SILENCE_S = 30.0


class Reader(reading.Reader):
    """Of a node, by memcached's text protocol."""

    def incr(self, key: str) -> int:
        """A counter that nobody else uses."""
        name = key.replace(" ", "_").encode()
        value = b"%d" % (int(self.get(name) or 0) + 1)
        answer = self._open().ask(b"set %b 0 0 %d\r\n%b" % (name, len(value), value))
        return int(value) if answer == b"STORED" else -1


class Behind:
    """What one HERD holds, asked by its gate. One connection, made when it is first needed."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._connection: Connection | None = None

    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if self._connection is None:
            self._connection = Connection(self.address, SILENCE_S)
        found = [self._connection.get(key) for key in keys]
        return [pair[1] if pair is not None else None for pair in found]

    def get(self, key: bytes) -> bytes | None:
        return self.mget([key])[0]

    def lrange(self, key: str, first: int, last: int) -> list[bytes]:
        raise NotImplementedError("HERD has no lists")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
