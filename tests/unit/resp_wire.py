"""resp.h and commands.h from Python, the way the engine drives them: used by the tests of both."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from musidecar._ffi import ffi, lib

MB = 1 << 20


def limits(
    authenticated: bool = True,
    bulk_bytes_max: int = 512 * MB,
    request_bytes_max: int = 1024 * MB,
    inline_bytes_max: int = 64 * 1024,
) -> Any:
    return ffi.new(
        "struct resp_limits *",
        {
            "bulk_bytes_max": bulk_bytes_max,
            "request_bytes_max": request_bytes_max,
            "inline_bytes_max": inline_bytes_max,
            "authenticated": authenticated,
        },
    )


@dataclass(frozen=True)
class Framed:
    """One whole request: where it ends and, as bytes, its arguments (none: blank line, *0)."""

    raw: bytes
    arguments: tuple[bytes, ...]


@dataclass(frozen=True)
class Framing:
    """What became of some bytes: whole requests, then an error or `rest` bytes of a request that is not whole."""

    requests: tuple[Framed, ...]
    error: str | None
    rest: int


def error_of(request: Any) -> str:
    return ffi.string(request.error).decode("latin-1")


def parse(raw: bytes, limit: Any = None) -> tuple[Any, Any]:
    """A whole request and the buffer that it stands in."""
    request = ffi.new("struct resp_request *")
    buffer = ffi.new("uint8_t[]", raw)
    lib.resp_request_reset(request)
    status = lib.resp_request_feed(request, buffer, len(raw), limit or limits())
    assert status == lib.RESP_DONE and request.length == len(raw), (raw, status)
    return request, buffer


def arguments_of(request: Any, buffer: Any) -> tuple[bytes, ...]:
    """All arguments, through both ways to reach them, and of an inline request through its normal form."""
    size = lib.resp_request_normalised_bytes(request, buffer)
    out = ffi.new("uint8_t[]", size + 1)
    out[size] = 0xA5
    assert lib.resp_request_normalise(request, buffer, out) == size and out[size] == 0xA5
    if request.is_inline:
        inline_count = request.argc
        request, buffer = parse(bytes(ffi.buffer(out, size)))
        assert request.argc == inline_count
    else:
        assert bytes(ffi.buffer(out, size)) == bytes(ffi.buffer(buffer, request.length))
    found = []
    place = lib.resp_request_argument(request, buffer, 0)
    for i in range(request.argc):
        if i > 0:
            place = lib.resp_request_next(request, buffer, place)
        if i < 40:
            other = lib.resp_request_argument(request, buffer, i)
            assert (other.offset, other.length) == (place.offset, place.length)
        found.append(bytes(ffi.buffer(buffer + place.offset, place.length)))
    return tuple(found)


def frame(data: bytes, cuts: Iterable[int] = (), limit: Any = None) -> Framing:
    """Frames `data` that comes in parts ending at `cuts`. The buffer is a new one for every part, of exactly the
    bytes there are, so that under ASan no byte behind them is read unnoticed."""
    limit = limit or limits()
    request = ffi.new("struct resp_request *")
    lib.resp_request_reset(request)
    requests: list[Framed] = []
    start = 0
    for end in [*sorted(cuts), len(data)]:
        while True:
            held = data[start:end]
            buffer = ffi.from_buffer("uint8_t[]", held) if held else ffi.NULL
            status = lib.resp_request_feed(request, buffer, len(held), limit)
            if status == lib.RESP_BAD:
                assert lib.resp_request_feed(request, buffer, len(held), limit) == lib.RESP_BAD
                return Framing(tuple(requests), error_of(request), len(data) - start)
            if status == lib.RESP_MORE:
                break
            assert 0 < request.length <= len(held)
            arguments = arguments_of(request, buffer) if status == lib.RESP_DONE else ()
            requests.append(Framed(held[: request.length], arguments))
            start += request.length
            lib.resp_request_reset(request)
    return Framing(tuple(requests), None, len(data) - start)


def array(*arguments: bytes) -> bytes:
    """A request in array form."""
    return b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%s\r\n" % (len(a), a) for a in arguments)


def look_up(table: Any, raw: bytes) -> tuple[int, Any]:
    """Verdict and command_info (or NULL) of a whole request in array form."""
    request, buffer = parse(raw)
    info = ffi.new("struct command_info **")
    return lib.command_lookup(table, request, buffer, info), info[0]


def error_line(table: Any, raw: bytes, room: int = 1024) -> bytes:
    """What the client is told about a request that is no command."""
    request, buffer = parse(raw)
    info = ffi.new("struct command_info **")
    verdict = lib.command_lookup(table, request, buffer, info)
    out = ffi.new("char[]", room)
    length = lib.command_error(verdict, info[0], request, buffer, out, room)
    assert length <= room
    return bytes(ffi.buffer(out, length))
