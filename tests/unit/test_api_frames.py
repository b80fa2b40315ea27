"""The frames of musidecar.api in C: where they end, wherever they are cut, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musidecar._ffi import ffi, lib
from musidecar.protocols.own import wire

MORE, READ, WRITE, BAD = lib.FRAMES_MORE, lib.FRAMES_READ, lib.FRAMES_WRITE, lib.FRAMES_BAD


def read(data: bytes) -> tuple[int, int, str]:
    """Class, length (of MORE: how much is wanted), why."""
    request = ffi.new("struct frames_request *")
    kind = lib.frames_request_read(request, ffi.from_buffer("uint8_t[]", data) if data else ffi.NULL, len(data))
    why = ffi.string(request.why).decode() if request.why != ffi.NULL else ""
    return kind, request.wanted if kind == MORE else request.length, why


def propose(*records: bytes) -> bytes:
    return wire.request(wire.PROPOSE, 7, 1, 0, wire.batch(records))


FRAMES = {
    "ping": (b".", READ),
    "open": (wire.request(wire.OPEN, 7, 0, 0), WRITE),
    "close": (wire.request(wire.CLOSE, 7, 0, 0), WRITE),
    "read": (wire.request(wire.READ, 7, 3, 2), READ),
    "proposal": (propose(b"5"), WRITE),
    "batch": (propose(b"one", b"", b"three" * 5), WRITE),
    "no records": (propose(), WRITE),
}


@pytest.mark.parametrize(("frame", "kind"), FRAMES.values(), ids=FRAMES.keys())
def test_cut_at_every_byte(frame: bytes, kind: int) -> None:
    for cut in range(len(frame)):
        found, wanted, _ = read(frame[:cut])
        assert found == MORE and cut < wanted <= len(frame)
    for behind in (b"", b".", b"nonsense", frame):
        assert read(frame + behind) == (kind, len(frame), "")


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=12), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_any_batch_of_pythons_is_one_here(records: list[bytes], client: int, number: int) -> None:
    frame = wire.request(wire.PROPOSE, client, number, 0, wire.batch(records))
    assert read(frame + b"x") == (WRITE, len(frame), "")
    assert list(wire.parts(frame, wire.HEAD.size, len(frame))) == records


def changed(frame: bytes, at: int, to: bytes) -> bytes:
    return frame[:at] + to + frame[at + len(to) :]


TWO = propose(b"abc", b"de")
NO_BODY = "a frame with a body that has none"
LENGTH = "a frame's length is not 32 bytes to 16 MiB"
LENGTHS = "the lengths in a proposal do not add up"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET / HTTP/1.1\r\n", "not a frame of musidecar.api"),
        (wire.STAMP_HEAD.pack(wire.STAMP, 1) + TWO, "not a frame of musidecar.api"),
        (changed(TWO, 2, b"\1"), "a frame of a later musidecar.api"),
        (changed(TWO, 4, (31).to_bytes(4, "little")), LENGTH),
        (changed(TWO, 4, (wire.FRAME_BYTES_MAX + 1).to_bytes(4, "little")), LENGTH),
        (changed(TWO, 4, b"\xff\xff\xff\xff"), LENGTH),
        (changed(wire.request(wire.READ, 1, 1, 1), 4, (33).to_bytes(4, "little")), NO_BODY),
        (changed(TWO, 4, (32).to_bytes(4, "little")), LENGTHS),
        (changed(TWO, 32, (1).to_bytes(4, "little")), LENGTHS),
        (changed(TWO, 32, (3).to_bytes(4, "little")), LENGTHS),
        (changed(TWO, 32, b"\xff\xff\xff\xff"), LENGTHS),
        (changed(TWO, 36, (2).to_bytes(4, "little")), LENGTHS),
        (changed(TWO, 36, (4).to_bytes(4, "little")), LENGTHS),
        (changed(TWO, 40, b"\xff\xff\xff\xff"), LENGTHS),
    ],
)
def test_what_is_no_frame(data: bytes, why: str) -> None:
    assert read(data) == (BAD, 0, why)


def test_the_longest_record() -> None:
    frame = propose(bytes(wire.RECORD_BYTES_MAX))
    assert len(frame) == wire.FRAME_BYTES_MAX
    assert read(frame) == (WRITE, len(frame), "")
    assert read(frame[:-1])[0] == MORE


# ---- replies -------------------------------------------------------------------------------------------------------

REPLIES = (
    wire.reply(wire.OPENED, 0),
    b".",
    wire.reply(wire.RESULTS, 1, wire.batch([b"5", b"", b"no"], [1, 0, 2 | wire.REJECTED])),
    wire.reply(wire.PLACE, 2, bytes(8)),
    b"!",
    wire.reply(wire.FORGOTTEN, 2**64 - 1),
    wire.reply(wire.CLOSED, 3),
)


def ends(stream: bytes, cuts: tuple[int, ...] = ()) -> list[int]:
    """Where the replies of a stream that comes in parts end; -1: it is none from here on."""
    reply, status = ffi.new("struct frames_reply *"), ffi.new("enum frames_status *")
    found, at = [], 0
    for stop in (*sorted(cuts), len(stream)):
        while at < stop:
            at += lib.frames_reply_read(reply, ffi.from_buffer("uint8_t[]", stream[at:stop]), stop - at, status)
            if status[0] == lib.FRAMES_REPLY_WHOLE:
                found.append(at)
            elif status[0] == lib.FRAMES_REPLY_BAD:
                return [*found, -1]
    return found


def test_replies_cut_anywhere() -> None:
    stream, wanted = b"".join(REPLIES), []
    for reply in REPLIES:
        wanted.append((wanted or [0])[-1] + len(reply))
    assert ends(stream) == ends(stream, tuple(range(len(stream)))) == wanted
    for first in range(len(stream)):
        for second in range(first, len(stream), 5):
            assert ends(stream, (first, second)) == wanted


@pytest.mark.parametrize(
    ("length", "found"), [(15, [-1]), (0, [-1]), (2**30, []), (2**30 + 1, [-1]), (2**32 - 1, [-1])]
)
def test_lengths_that_a_reply_may_have(length: int, found: list[int]) -> None:
    reply = changed(wire.reply(wire.CLOSED, 1), 4, length.to_bytes(4, "little"))
    for cut in range(len(reply)):
        assert ends(reply, (cut,)) == found


def test_a_stamp_is_what_the_machine_reads() -> None:
    out = ffi.new("uint8_t[]", lib.FRAMES_STAMP_BYTES)
    lib.frames_stamp(0x0102030405060708, out)
    assert wire.STAMP_HEAD.unpack(bytes(ffi.buffer(out))) == (wire.STAMP, 0x0102030405060708)
    sizes = (lib.FRAMES_HEAD_BYTES, lib.FRAMES_STAMP_BYTES, lib.FRAMES_REPLY_HEAD_BYTES)
    assert sizes == (wire.HEAD.size, wire.STAMP_HEAD.size, wire.REPLY_HEAD.size)
