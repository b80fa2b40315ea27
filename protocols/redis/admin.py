"""One blocking connection to a Redis, for the control plane: preparing it, asking it, taking its RDB.

Nothing here runs once per request: requests go through the engine, in C. Replies are as hiredis gives them: bytes, int,
list, None; an error reply is raised as `ReplyError`.
"""

from __future__ import annotations

import time
from typing import Any

import hiredis

from musidecar.closing import Closing
from musidecar.protocols.server import Address as Address
from musidecar.protocols.server import BackendError as BackendError

READ_BYTES = 1 << 16


class ReplyError(BackendError):
    """The backend answered with an error line. `code`: its first word, e.g. `NOAUTH`."""

    @property
    def code(self) -> str:
        return str(self).split(" ", 1)[0]


def encode(*words: str | bytes | int) -> bytes:
    """A request in RESP: an array of bulk strings."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        raw = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)


class Connection(Closing):
    """A connection, logged in. BackendError when it cannot be made, is lost, or stays silent for `timeout_s`."""

    def __init__(self, address: Address, timeout_s: float = 5.0, *, login: bool = True) -> None:
        self.address = address
        self.timeout_s = timeout_s
        try:
            self.sock = address.connect(timeout_s)
        except OSError as error:
            raise BackendError(f"cannot connect to Redis at {address}: {error.strerror or error}") from None
        self._reader = hiredis.Reader(replyError=ReplyError)
        try:
            if login and address.password:
                self._login()
        except BaseException:
            self.close()
            raise

    def _login(self) -> None:
        words = (self.address.user, self.address.password) if self.address.user else (self.address.password,)
        try:
            self.call("AUTH", *words)
        except ReplyError as error:
            raise BackendError(f"Redis at {self.address} refuses the password it was given: {error}") from None

    def call(self, *words: str | bytes | int) -> Any:
        """Send one request, return its reply. ReplyError when that is an error."""
        deadline = time.monotonic() + self.timeout_s
        try:
            self.sock.settimeout(self.timeout_s)
            self.sock.sendall(encode(*words))
            while (reply := self._reader.gets()) is False:  # hiredis: nothing whole yet (RESP2 has no booleans)
                self.sock.settimeout(max(0.001, deadline - time.monotonic()))
                chunk = self.sock.recv(READ_BYTES)
                if not chunk:
                    raise BackendError(f"Redis at {self.address} closed the connection")
                self._reader.feed(chunk)
        except TimeoutError:
            raise BackendError(f"Redis at {self.address} did not answer within {self.timeout_s:g} s") from None
        except OSError as error:
            raise BackendError(f"connection to Redis at {self.address} lost: {error.strerror}") from None
        except hiredis.ProtocolError as error:
            raise BackendError(f"what listens at {self.address} does not speak Redis: {error}") from None
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def config(self) -> dict[str, str]:
        """All of CONFIG GET *."""
        flat = self.call("CONFIG", "GET", "*")
        texts = [item.decode(errors="replace") for item in flat]
        return dict(zip(texts[::2], texts[1::2], strict=True))

    def info(self, section: str) -> dict[str, str]:
        """One section of INFO as a mapping."""
        lines = self.call("INFO", section).decode(errors="replace").splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))

    def offset(self) -> int:
        """The replication offset produced (as master) or applied (as replica), as ROLE tells it; -1 while unknown."""
        role = self.call("ROLE")
        return int(role[1] if role[0] == b"master" else role[4])

    def close(self) -> None:
        self.sock.close()
