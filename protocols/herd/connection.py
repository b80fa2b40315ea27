"""A connection to the gate before HERD (wire.h), for the control plane."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Self

from musidecar.protocols.server import Address, BackendError

HEAD = struct.Struct("=BxHI")
KEY_BYTES, VALUE_BYTES = 16, 46
ENTRY_BYTES = KEY_BYTES + VALUE_BYTES
PAGE = 1024  # items of one request
END = 2**64 - 1
ANSWER_BYTES_MAX = 1 << 20


@dataclass(frozen=True)
class Status:
    """What the gate has counted: struct wire_status."""

    requests: int
    replies: int
    gets: int
    hits: int
    puts: int
    keys: int
    keys_max: int
    gone: int
    forgotten: int
    strays: int
    reply_p50_ns: int
    reply_p99_ns: int
    reply_max_ns: int


_STATUS = struct.Struct(f"={len(fields(Status))}Q")


class Connection:
    """BackendError when it cannot be made, is lost, or stays silent for `timeout_s`."""

    def __init__(self, address: Address, timeout_s: float = 5.0) -> None:
        self.address = address
        try:
            self._socket = address.connect(timeout_s)
        except OSError as error:
            raise BackendError(f"cannot connect to HERD's gate at {address}: {error.strerror or error}") from None

    def awaited(self) -> str:
        """What is missing before HERD can be asked; "": nothing."""
        return self._ask(b"P")[1].decode(errors="replace")

    def status(self) -> Status:
        return Status(*_STATUS.unpack(self._ask(HEAD.pack(ord("X"), 0, 0))[1]))

    def get(self, key: bytes) -> tuple[int, bytes] | None:
        """Client flags and value."""
        request = bytes([len(key)]) + key
        _, answer = self._ask(HEAD.pack(ord("G"), 1, len(request)) + request)
        found, key_length, length, flags = struct.unpack_from("=BBBxI", answer)
        return (flags, answer[8 + key_length : 8 + key_length + length]) if found else None

    def put(self, key: bytes, value: bytes, flags: int = 0) -> None:
        request = struct.pack("=IB", flags, len(key)) + key + value
        self._ask(HEAD.pack(ord("S"), 1, len(request)) + request)

    def delete(self, key: bytes) -> bool:
        """Was it there?"""
        request = bytes([len(key)]) + key
        return self._ask(HEAD.pack(ord("D"), 1, len(request)) + request)[1] == b"\1"

    def entries(self) -> Iterator[bytes]:
        """All that HERD still has of what it was given, in pieces of whole entries: HERD's key and HERD's value."""
        cursor = 0
        while cursor != END:
            items, answer = self._ask(HEAD.pack(ord("K"), 0, 12) + struct.pack("=QI", cursor, PAGE))
            (cursor,) = struct.unpack_from("=Q", answer)
            if len(answer) != 8 + items * ENTRY_BYTES:
                raise BackendError(f"HERD's gate at {self.address} listed {items} keys in {len(answer)} bytes")
            yield answer[8:]

    def load(self, entries: bytes) -> None:
        """At most PAGE of them."""
        self._ask(HEAD.pack(ord("L"), len(entries) // ENTRY_BYTES, len(entries)) + entries)

    def empty(self) -> int:
        """Delete some keys; how many are left."""
        return int(struct.unpack("=Q", self._ask(HEAD.pack(ord("E"), 0, 4) + struct.pack("=I", PAGE))[1])[0])

    def _ask(self, request: bytes) -> tuple[int, bytes]:
        """Items and bytes of the answer."""
        try:
            self._socket.sendall(request)
            kind, items, length = HEAD.unpack(self._exactly(HEAD.size))
            if kind != request[0] or length > ANSWER_BYTES_MAX:
                raise BackendError(f"what answers at {self.address} is not HERD's gate")
            return items, self._exactly(length)
        except TimeoutError:
            raise BackendError(f"HERD's gate at {self.address} did not answer in time") from None
        except OSError as error:
            what = error.strerror or error
            raise BackendError(f"connection to HERD's gate at {self.address} lost: {what}") from None

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise BackendError(f"HERD's gate at {self.address} closed the connection")
            data += part
        return bytes(data)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
