"""A client for those who load and judge a cluster: the few questions that they ask of a Redis, asked of a memcached. A
list is a value of words."""

from __future__ import annotations

from collections.abc import Sequence

from musidecar.protocols.server import Address

from .connection import Connection

SILENCE_S = 30.0
BATCH = 200


class Reader:
    """One connection, made when it is first needed."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._connection: Connection | None = None

    def _open(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(self.address, SILENCE_S)
        return self._connection

    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What they hold."""
        found: dict[bytes, bytes] = {}
        connection = self._open()
        for at in range(0, len(keys), BATCH):
            connection.send(b"get " + b" ".join(keys[at : at + BATCH]) + b"\r\n")
            while (line := connection.line()) != b"END":
                _, key, _, length = line.split(b" ")[:4]
                found[key] = b"".join(connection.value(int(length)))
        return [found.get(key) for key in keys]

    def get(self, key: bytes) -> bytes | None:
        return self.mget([key])[0]

    def lrange(self, key: str, first: int, last: int) -> list[bytes]:
        """All of a list, whatever is asked for."""
        return (self.get(key.encode()) or b"").split()

    def incr(self, key: str) -> int:
        """A counter that need not be there."""
        name = key.replace(" ", "_").encode()
        answer = self._open().ask(b"incr %b 1" % name)
        if answer != b"NOT_FOUND":
            return int(answer)
        self._open().ask(b"set %b 0 0 1\r\n1" % name)
        return 1

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
