"""One blocking connection to a memcached, for the control plane: asking it, listing what it holds, reading and storing
items.

Nothing here runs once per request: requests go through the engine, in C.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from musidecar.closing import Closing
from musidecar.protocols.server import Address, BackendError

LINE_BYTES_MAX = 1 << 16
BUFFER_BYTES = 1 << 18
RETRY_S = 0.02


class ReplyError(BackendError):
    """The server answered with an error line."""


class Connection(Closing):
    """BackendError when it cannot be made, is lost, or stays silent for `timeout_s`."""

    def __init__(self, address: Address, timeout_s: float = 5.0) -> None:
        self.address = address
        try:
            self.sock = address.connect(timeout_s)
        except OSError as error:
            raise BackendError(f"cannot connect to memcached at {address}: {error.strerror or error}") from None
        self._file = self.sock.makefile("rb", BUFFER_BYTES)

    def send(self, data: bytes) -> None:
        """All of it."""
        try:
            self.sock.sendall(data)
        except OSError as error:
            raise self._lost(error) from None

    def line(self) -> bytes:
        """The next line, without its end."""
        try:
            line = self._file.readline(LINE_BYTES_MAX)
        except OSError as error:
            raise self._lost(error) from None
        if not line.endswith(b"\n"):
            raise BackendError(self._strange(line) if line else self._closed())
        return bytes(line.rstrip(b"\r\n"))

    def value(self, length: int) -> Iterator[bytes]:
        """A value of this length in pieces, and the end of line behind it."""
        left = length
        while left > 0:
            piece = self._read(min(left, BUFFER_BYTES))
            left -= len(piece)
            yield piece
        if (end := self._read(2)) != b"\r\n":
            raise BackendError(self._strange(end))

    def _read(self, count: int) -> bytes:
        try:
            piece = self._file.read(count)
        except OSError as error:
            raise self._lost(error) from None
        if len(piece) != count:
            raise BackendError(self._closed())
        return bytes(piece)

    def _lost(self, error: OSError) -> BackendError:
        if isinstance(error, TimeoutError):
            return BackendError(f"memcached at {self.address} did not answer in time")
        return BackendError(f"connection to memcached at {self.address} lost: {error.strerror or error}")

    def _closed(self) -> str:
        return f"memcached at {self.address} closed the connection"

    def _strange(self, answer: bytes) -> str:
        return f"what listens at {self.address} does not speak memcached: {answer[:60]!r}"

    def ask(self, request: bytes) -> bytes:
        """The one line that answers it. ReplyError when that is an error."""
        self.send(request + b"\r\n")
        line = self.line()
        if line.startswith((b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR")):
            word = request.split(b" ", 1)[0].decode(errors="replace")
            raise ReplyError(f"memcached at {self.address} answered {word} with {line.decode(errors='replace')}")
        return line

    def stats(self, section: str = "") -> dict[str, str]:
        """`stats`, or a section of it."""
        self.send(f"stats {section}".rstrip().encode() + b"\r\n")
        found = {}
        while (line := self.line()) != b"END":
            words = line.decode(errors="replace").split(" ", 2)
            if words[0] != "STAT" or len(words) < 2:
                raise ReplyError(f"memcached at {self.address} answered stats with {line[:80]!r}")
            found[words[1]] = words[2] if len(words) > 2 else ""
        return found

    def listing(self, wait_s: float) -> Iterator[bytes]:
        """A line for each item, none missing that is there all the time: `key=... exp=...`. Nothing else may be under
        way.

        wait_s: how long another crawl may take first.
        """
        deadline = time.monotonic() + wait_s
        while True:
            first = self.ask(b"lru_crawler metadump hash")
            if not first.startswith(b"BUSY"):
                break
            if time.monotonic() > deadline:
                raise BackendError(f"memcached at {self.address} is busy with another crawl")
            time.sleep(RETRY_S)  # it has no event for that
        while first != b"END":
            yield first
            first = self.line()

    def close(self) -> None:
        self._file.close()
        self.sock.close()
