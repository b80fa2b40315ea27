"""The frames of frames.h, made and taken apart.

The body of a proposal, and of the reply to it: u32 count, u32 each length, the bytes. In a reply a length's highest
bit says that the machine has rejected this record, and the bytes are why, in UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct, pack, unpack_from

from musidecar._ffi import lib

OPEN, PROPOSE, CLOSE, READ, STAMP, PING = b"OPCRS."
RESULTS, OPENED, CLOSED, PLACE, FORGOTTEN, FULL = b"pocrf!"

HEAD = Struct("<B3xIQQQ")  # kind, bytes, client, number, received
STAMP_HEAD = Struct("<B7xQ")
REPLY_HEAD = Struct("<B3xIQ")
COUNT = Struct("<I")
U64 = Struct("<Q")

FRAME_BYTES_MAX: int = lib.FRAMES_BYTES_MAX
RECORD_BYTES_MAX = FRAME_BYTES_MAX - HEAD.size - 2 * COUNT.size
BATCH_BYTES = 48 << 10  # a frame of several records ends behind the record that gets it so far
REJECTED = 1 << 31
LENGTH = REJECTED - 1


class Malformed(Exception):
    """These bytes are no frame."""


def batch(parts: Sequence[bytes], lengths: Iterable[int] | None = None) -> bytes:
    """The body that holds these parts. lengths: of them, if they say more."""
    count = len(parts)
    return b"".join((pack(f"<{count + 1}I", count, *(map(len, parts) if lengths is None else lengths)), *parts))


def request(kind: int, client: int, number: int, received: int, body: bytes = b"") -> bytes:
    return HEAD.pack(kind, HEAD.size + len(body), client, number, received) + body


def reply(kind: int, number: int, body: bytes = b"") -> bytes:
    return REPLY_HEAD.pack(kind, REPLY_HEAD.size + len(body), number) + body


def lengths(data: bytes, at: int, end: int) -> tuple[int, ...]:
    """Of the parts of the body that stands there; they begin behind it. Malformed unless it fills its place."""
    if end - at < COUNT.size:
        raise Malformed("a body without a count")
    (count,) = COUNT.unpack_from(data, at)
    if count > (end - at) // COUNT.size - 1:
        raise Malformed(f"a body of {end - at} bytes with {count} parts")
    return unpack_from(f"<{count}I", data, at + COUNT.size)


def parts(data: bytes, at: int, end: int) -> Iterator[bytes]:
    """Of the body that stands there, whether rejected or not."""
    sizes = lengths(data, at, end)
    at += COUNT.size * (len(sizes) + 1)
    for size in sizes:
        yield data[at : at + (size & LENGTH)]
        at += size & LENGTH


def split(records: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The records in batches, in order. TypeError, ValueError for what cannot be one."""
    found: list[bytes] = []
    room = BATCH_BYTES
    for record in records:
        if type(record) is not bytes:
            raise TypeError(f"a record is bytes, not {type(record).__name__}")
        if len(record) > RECORD_BYTES_MAX:
            raise ValueError(f"a record of {len(record)} bytes: {RECORD_BYTES_MAX} are the most")
        found.append(record)
        room -= len(record) + COUNT.size
        if room <= 0:
            yield found
            found, room = [], BATCH_BYTES
    if found:
        yield found
