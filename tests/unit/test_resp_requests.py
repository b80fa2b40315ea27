"""Framing of requests: against hiredis, and against redis-server itself, byte by byte."""

from collections.abc import Iterator
from typing import Any

import hiredis
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from private_redis import PrivateRedis, private_redis
from resp_wire import Framing, array, error_line, error_of, frame, limits, look_up

from musidecar._ffi import ffi, lib
from musidecar.protocols.redis import commands

RELAXED = settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))

# ---- whole requests, cut anywhere ------------------------------------------------------------------------------------

WHOLE = [
    array(b"PING"),
    array(b"SET", b"key:000000000001", b"x" * 64),
    array(b"", b"", b""),
    array(b"GET", b"\r\n$3\r\n\0*"),
    array(*[b"%d" % i for i in range(40)]),
    array(b"SET", b"k", b"v" * 40_000),
]
INLINE = {
    b"PING\r\n": (b"PING",),
    b"PING\n": (b"PING",),
    b"  SET\tk  v \r\n": (b"SET", b"k", b"v"),
    b'SET k "a b"\r\n': (b"SET", b"k", b"a b"),
    rb'SET k "\x41\n\r\t\b\a\q\"\xzz"' + b"\r\n": (b"SET", b"k", b'A\n\r\t\b\aq"xzz'),
    rb"SET k 'a\'b\n'" + b"\r\n": (b"SET", b"k", rb"a'b\n"),
    b"ECHO \"\" ''\r\n": (b"ECHO", b"", b""),
    b'a"b c"\r\n': (b"ab c",),
    b"a\x0bb c\x0b\r\n": (b"a\x0bb", b"c\x0b"),
    b"\x0b\x0ca\r\n": (b"a",),
    b"PING\rx\r\n": (b"PING", b"x"),
    b'"a"\x0bb\r\n': (b"a", b"b"),
    b" ".join(b"%d" % i for i in range(50)) + b"\n": tuple(b"%d" % i for i in range(50)),
}


@pytest.mark.parametrize("message", WHOLE, ids=range(len(WHOLE)))
def test_array_split_at_every_position_agrees_with_hiredis(message: bytes) -> None:
    positions = range(1, len(message)) if len(message) < 1000 else [*range(1, 60), 16384, *range(-60, 0)]
    for cut in positions:
        reader = hiredis.Reader(notEnoughData=Ellipsis)
        reader.feed(message[:cut])
        assert reader.gets() is Ellipsis
        reader.feed(message[cut:])
        cut %= len(message)
        framing = frame(message + b"*", [cut])
        assert framing.rest == 1 and framing.error is None
        assert [r.raw for r in framing.requests] == [message]
        assert list(framing.requests[0].arguments) == reader.gets()


@pytest.mark.parametrize("line", INLINE, ids=range(len(INLINE)))
def test_inline_split_at_every_position(line: bytes) -> None:
    for cut in range(len(line) + 1):
        framing = frame(line + array(b"PING"), [cut])
        assert [r.arguments for r in framing.requests] == [INLINE[line], (b"PING",)]
        assert framing.requests[0].raw == line


@pytest.mark.parametrize("line", [b"\r\n", b"\n", b"   \r\n", b"*0\r\n", b"*-1\r\n", b"*-2147483649\r\n"])
def test_nothing_to_do(line: bytes) -> None:
    for cut in range(len(line) + 1):
        framing = frame(line + array(b"PING"), [cut])
        assert [(r.raw, r.arguments) for r in framing.requests] == [(line, ()), (array(b"PING"), (b"PING",))]


def test_byte_by_byte() -> None:
    data = b"".join(WHOLE[:5]) + b"".join(INLINE)
    framing = frame(data, range(1, len(data)))
    assert framing == frame(data)
    assert len(framing.requests) == 5 + len(INLINE) and framing.rest == 0


@RELAXED
@given(st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=25), max_size=6), st.data())
def test_pipelines_in_random_parts_agree_with_hiredis(requests: list[list[bytes]], data: st.DataObject) -> None:
    message = b"".join(array(*request) for request in requests)
    framing = frame(message, data.draw(st.lists(st.integers(0, len(message)), max_size=10)))
    reader = hiredis.Reader(notEnoughData=Ellipsis)
    reader.feed(message)
    assert [list(r.arguments) for r in framing.requests] == list(iter(reader.gets, Ellipsis)) == requests


# ---- long ones -------------------------------------------------------------------------------------------------------


def feed_in_parts(message: bytes, part: int) -> Any:
    """Feeds in parts and spoils every byte that was fed more than a line ago: looking back would show."""
    buffer = bytearray(message)
    whole = ffi.from_buffer("uint8_t[]", buffer)
    request = ffi.new("struct resp_request *")
    lib.resp_request_reset(request)
    spoilt, status = 0, lib.RESP_MORE
    for stop in range(part, len(message) + part, part):
        assert status == lib.RESP_MORE
        end = min(stop, len(message))
        status = lib.resp_request_feed(request, whole, end, limits())
        if end > 64:
            buffer[spoilt : end - 64] = b"\xff" * (end - 64 - spoilt)
            spoilt = end - 64
        if status == lib.RESP_BAD:
            raise AssertionError(error_of(request))
    assert status == lib.RESP_DONE
    return request


def test_a_million_arguments_never_looks_back() -> None:
    message = array(b"MSET", *[b"%d" % i for i in range(999_999)])
    request = feed_in_parts(message, 16 * 1024)
    assert request.argc == 1_000_000 and request.length == len(message)


def test_a_bulk_of_64_mb_never_looks_back() -> None:
    message = array(b"SET", b"k", b"v" * (64 << 20))
    request = feed_in_parts(message, 16 * 1024)
    assert request.length == len(message) and request.arguments[2].length == 64 << 20


def test_the_millionth_argument_is_found() -> None:
    message = array(b"MSET", *[b"%d" % i for i in range(99_999)])
    request = feed_in_parts(message, 1 << 20)
    place = lib.resp_request_argument(request, ffi.from_buffer("uint8_t[]", message), 99_999)
    assert message[place.offset : place.offset + place.length] == b"99998"


def test_an_endless_line_is_looked_at_once() -> None:
    """60,000 bytes in 60,000 parts; the bytes already seen are turned into ends of line, which must not be found."""
    for first in (b"*", b"x", b"*1\r\n$"):
        line = first + b"7" * 60_000
        buffer = bytearray(line)
        whole = ffi.from_buffer("uint8_t[]", buffer)
        request = ffi.new("struct resp_request *")
        lib.resp_request_reset(request)
        for end in range(1, len(line) + 1):
            assert lib.resp_request_feed(request, whole, end, limits()) == lib.RESP_MORE
            if end > len(first):
                buffer[end - 1] = ord("\r") if first[:1] == b"*" else ord("\n")


def test_nothing_is_stored_for_a_count() -> None:
    framing = frame(b"*1000000000\r\n$1\r\na\r\n")
    assert framing == Framing((), None, 20)
    assert ffi.sizeof("struct resp_request") <= 320


@pytest.mark.parametrize(
    ("request_bytes_max", "message"),
    [
        (100, b"*2\r\n$50\r\n" + b"x" * 50 + b"\r\n$50\r\n"),
        (100, b"*1\r\n$91\r\n"),
        (100, b"*100\r\n" + b"$1\r\na\r\n" * 14),
        (1 << 63, b"*2\r\n$4294967290\r\n"),
        (1 << 63, b"*1\r\n$9223372036854775807\r\n"),
    ],
)
def test_too_long_altogether_closes_without_a_word(request_bytes_max: int, message: bytes) -> None:
    limit = limits(request_bytes_max=request_bytes_max, bulk_bytes_max=(1 << 63) - 1)
    for cuts in ((), range(1, len(message))):
        assert frame(message, cuts, limit).error == ""
    assert frame(b"*1\r\n$89\r\n", limit=limits(request_bytes_max=100)).error is None


# ---- against redis-server --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis() -> Iterator[PrivateRedis]:
    with private_redis() as server:
        yield server


@pytest.fixture(scope="module")
def locked_redis() -> Iterator[PrivateRedis]:
    with private_redis("--requirepass", "secret") as server:
        yield server


@pytest.fixture(scope="module")
def table(redis: PrivateRedis) -> Any:
    return commands.command_table(commands.rows(commands.fetch(redis.path)))


KNOWN = {b"ping", b"echo", b"get"}


def run(table: Any, arguments: tuple[bytes, ...], authenticated: bool) -> bytes:
    """What Redis answers to PING, ECHO, GET (of nothing), and to what is no command."""
    verdict, info = look_up(table, array(*arguments))
    if verdict != lib.COMMAND_OK:
        return error_line(table, array(*arguments))
    name = ffi.string(info.name)
    assert name in KNOWN, name
    if not authenticated:
        return b"-NOAUTH Authentication required.\r\n"
    if name == b"get":
        return b"$-1\r\n"
    if len(arguments) == 1:
        return b"+PONG\r\n"
    if len(arguments) > 2:
        return b"-ERR wrong number of arguments for 'ping' command\r\n"
    return b"$%d\r\n%s\r\n" % (len(arguments[1]), arguments[1])


def expected(table: Any, data: bytes, authenticated: bool = True) -> bytes:
    framing = frame(data, limit=limits(authenticated=authenticated))
    answer = b"".join(run(table, r.arguments, authenticated) for r in framing.requests if r.arguments)
    if framing.error is not None:
        answer += b"-ERR " + framing.error.encode("latin-1") + b"\r\n"
    return answer


PROTOCOL_ERRORS = {
    b"*\r\n": "invalid multibulk length",
    b"*x\r\n": "invalid multibulk length",
    b"*01\r\n": "invalid multibulk length",
    b"*-0\r\n": "invalid multibulk length",
    b"*+1\r\n": "invalid multibulk length",
    b"* 1\r\n": "invalid multibulk length",
    b"*2147483648\r\n": "invalid multibulk length",
    b"*9223372036854775808\r\n": "invalid multibulk length",
    b"*99999999999999999999999\r\n": "invalid multibulk length",
    b"*1\r\nx\r\n": "expected '$', got 'x'",
    b"*1\r\n\r\n": "expected '$', got ' '",
    b"*1\r\n\n\r\n": "expected '$', got ' '",
    b"*1\r\n\xff\r\n": "expected '$', got '\xff'",
    b"*1\r\n*1\r\n": "expected '$', got '*'",
    b"*1\r\n$-5\r\n": "invalid bulk length",
    b"*1\r\n$-1\r\n": "invalid bulk length",
    b"*1\r\n$\r\n": "invalid bulk length",
    b"*1\r\n$03\r\nabc\r\n": "invalid bulk length",
    b"*1\r\n$536870913\r\n": "invalid bulk length",
    b"*1\r\n$18446744073709551617\r\n": "invalid bulk length",
    b"*2\r\n$3\r\nGET\r\n:1\r\n": "expected '$', got ':'",
    b'SET k "\r\n': "unbalanced quotes in request",
    b"SET k 'a'b\r\n": "unbalanced quotes in request",
    b'SET k "a\\"\r\n': "unbalanced quotes in request",
    b'SET k "a"b\r\n': "unbalanced quotes in request",
    b"x" * 70_000: "too big inline request",
    b"*" + b"1" * 70_000: "too big mbulk count string",
    b"*1\r\n$" + b"1" * 70_000: "too big bulk count string",
    b"*1\0\r\n" + b"x" * 70_000: "too big mbulk count string",
    b"*1\r\n$4\0\r\n" + b"x" * 70_000: "too big bulk count string",
    b"PING\0\r\n" + b"x" * 70_000: "too big inline request",
}


@pytest.mark.parametrize("data", PROTOCOL_ERRORS, ids=lambda data: repr(data[:16]))
def test_protocol_errors_are_those_of_redis(data: bytes, redis: PrivateRedis, table: Any) -> None:
    error = "Protocol error: " + PROTOCOL_ERRORS[data]
    for first in (b"", array(b"PING"), b"PING\r\n"):
        assert frame(first + data).error == error
    cuts = range(1, len(data)) if len(data) < 1000 else range(16384, len(data), 16384)
    assert frame(data, cuts).error == error
    assert redis.answer(array(b"PING") + data) == expected(table, array(b"PING") + data)


@pytest.mark.parametrize(
    "data",
    [
        b"*2147483647\r\n$4\r\nPING\r\n",
        b"*1000000000\r\n",
        b"*1\r\n$536870912\r\n",
        b"*1\0\r\n$4\r\nPING\r\n",
        b"PING\0\r\nPING\r\n",
        b"*1\r\n$4\0\r\nPING\r\n",
        b"*1\r",
        b"*1\r\n$4\r",
        b"*1\r\n$4\r\nPING\r",
        b"PING\r",
        b"x" * 65_536,
    ],
    ids=lambda data: repr(data[:16]),
)
def test_redis_waits_for_more_and_so_do_we(data: bytes, redis: PrivateRedis) -> None:
    framing = frame(data)
    assert (framing.requests, framing.error, framing.rest) == ((), None, len(data))
    assert redis.answer(data) == b""


@pytest.mark.parametrize("data", [b"*1\rX$4\rYPINGab" + array(b"PING"), b"*2\r\n$4\r\nECHO..$2\r\nhi\0\0PING\n"])
def test_bytes_that_redis_does_not_look_at(data: bytes, redis: PrivateRedis, table: Any) -> None:
    assert len(frame(data, range(len(data))).requests) == 2
    assert redis.answer(data) == expected(table, data)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"*11\r\n", "unauthenticated multibulk length"),
        (b"*2147483648\r\n", "invalid multibulk length"),
        (b"*1\r\n$16385\r\n", "unauthenticated bulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*10\r\n", None),
        (b"*1\r\n$16384\r\n", None),
    ],
)
def test_limits_before_authentication(data: bytes, error: str | None, locked_redis: PrivateRedis, table: Any) -> None:
    text = None if error is None else "Protocol error: " + error
    assert frame(data, range(len(data)), limits(authenticated=False)).error == text
    assert locked_redis.answer(data) == expected(table, data, authenticated=False)


TOKENS = [
    b"*1\r\n", b"*2\r\n", b"*3\r\n", b"*0\r\n", b"*-1\r\n", b"*11\r\n", b"$3\r\n", b"$4\r\n", b"$0\r\n", b"$-1\r\n",
    b"$1\r\n", b"PING", b"ECHO", b"GET", b"foo", b"CONFIG", b"echo ", b"ping ", b"\r\n", b"\r", b"\n", b"\0", b"*",
    b"$", b" ", b"\t", b"'", b'"', b"\\", b"\\x41", b"\x0b", b"\xff", b"2", b"a\r\nb",
    b"$200\r\n" + b"y" * 200 + b"\r\n", b"$16385\r\n",
    array(b"PING"), array(b"ECHO", b"x y"), array(b"get", b"k"), array(b"nope", b"a" * 100, b"b" * 100, b"c"),
]  # fmt: skip
SOUP = st.lists(st.sampled_from(TOKENS), max_size=14).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good pipeline with a few bytes changed, taken away or put in."""
    requests = st.sampled_from(
        [array(b"PING"), array(b"ECHO", b"hello"), array(b"GET", b"k"), b"PING\r\n", b"ECHO 'a b'\r\n"]
    )
    data = bytearray(b"".join(draw(st.lists(requests, min_size=1, max_size=5))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data) - 1)) if data else 0
        what = draw(st.sampled_from(["change", "delete", "insert"]))
        byte = draw(st.one_of(st.sampled_from(b"\r\n\0*$0123459-' \""), st.integers(0, 255)))
        data[at : at + (what != "insert")] = b"" if what == "delete" else bytes([byte])
    return bytes(data)


def skip_if_it_is_another_command(table: Any, data: bytes, authenticated: bool) -> bool:
    for request in frame(data, limit=limits(authenticated=authenticated)).requests:
        if request.arguments:
            verdict, info = look_up(table, array(*request.arguments))
            if verdict == lib.COMMAND_OK and ffi.string(info.name) not in KNOWN:
                return True
    return False


@settings(RELAXED, max_examples=400)
@example(b"PING\rECHO x\r\n")
@given(st.one_of(SOUP, mutated()))
def test_any_bytes_are_answered_as_redis_answers_them(redis: PrivateRedis, table: Any, data: bytes) -> None:
    if not skip_if_it_is_another_command(table, data, True):
        assert redis.answer(data) == expected(table, data)


@RELAXED
@given(SOUP)
def test_any_bytes_before_authentication(locked_redis: PrivateRedis, table: Any, data: bytes) -> None:
    if not skip_if_it_is_another_command(table, data, False):
        assert locked_redis.answer(data) == expected(table, data, authenticated=False)


@settings(RELAXED, max_examples=400)
@given(st.one_of(SOUP, mutated(), st.binary(max_size=100)), st.data())
def test_parts_make_no_difference(data: bytes, draw: st.DataObject) -> None:
    whole = frame(data)
    assert frame(data, range(1, len(data))) == whole
    assert frame(data, draw.draw(st.lists(st.integers(0, len(data)), max_size=5))) == whole
