"""Framing of replies: against hiredis, cut anywhere; nested as deep as a script makes redis-server go."""

from collections.abc import Iterable, Iterator

import hiredis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from private_redis import PrivateRedis, private_redis
from resp_wire import array

from musidecar._ffi import ffi, lib

RELAXED = settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))


class Reply:
    """A struct resp_reply, fed parts of a stream."""

    def __init__(self) -> None:
        self.state = ffi.new("struct resp_reply *")
        self._status = ffi.new("enum resp_status *")
        lib.resp_reply_reset(self.state)

    def feed(self, part: bytes) -> tuple[int, int]:
        """Bytes taken, and the status."""
        buffer = ffi.from_buffer("uint8_t[]", part) if part else ffi.NULL
        taken = lib.resp_reply_feed(self.state, buffer, len(part), self._status)
        assert taken <= len(part)
        return taken, self._status[0]

    def seen(self) -> tuple[str, bool, bool]:
        """Type, is it a push, is it null: of the outermost element."""
        return chr(self.state.type), self.state.is_push, self.state.is_null


def ends(stream: bytes, cuts: Iterable[int] = ()) -> list[int]:
    """Where the whole replies of a stream that comes in parts end; a last -1: not RESP."""
    reply, found, at = Reply(), [], 0
    for stop in [*sorted(cuts), len(stream)]:
        while at < stop:
            taken, status = reply.feed(stream[at:stop])
            at += taken
            if status == lib.RESP_BAD:
                return [*found, -1]
            if status == lib.RESP_MORE:
                assert at == stop
                break
            found.append(at)
            reply = Reply()
    return found


# message: what is seen of its outermost element
WHOLE = {
    b"+OK\r\n": ("+", False, False),
    b"+\r\n": ("+", False, False),
    b"+a\nb\rc\r\n": ("+", False, False),
    b"-ERR no\r\n": ("-", False, False),
    b":0\r\n": (":", False, False),
    b":-9223372036854775808\r\n": (":", False, False),
    b"$0\r\n\r\n": ("$", False, False),
    b"$5\r\n\r\n+\r\n\r\n": ("$", False, False),
    b"$-1\r\n": ("$", False, True),
    b"*-1\r\n": ("*", False, True),
    b"_\r\n": ("_", False, True),
    b"*0\r\n": ("*", False, False),
    b"*3\r\n$-1\r\n*-1\r\n_\r\n": ("*", False, False),
    b"*2\r\n*2\r\n:1\r\n*0\r\n+x\r\n": ("*", False, False),
    b"#t\r\n": ("#", False, False),
    b"#f\r\n": ("#", False, False),
    b",3.141592653589793\r\n": (",", False, False),
    b",inf\r\n": (",", False, False),
    b",-inf\r\n": (",", False, False),
    b",nan\r\n": (",", False, False),
    b"(3492890328409238509324850943850943825024385\r\n": ("(", False, False),
    b"=15\r\ntxt:Some string\r\n": ("=", False, False),
    b"~2\r\n+a\r\n+b\r\n": ("~", False, False),
    b"%2\r\n+a\r\n:1\r\n$1\r\nb\r\n%0\r\n": ("%", False, False),
    b">3\r\n+message\r\n+c\r\n$2\r\nhi\r\n": (">", True, False),
    b"%1\r\n*1\r\n:1\r\n~1\r\n*2\r\n_\r\n#t\r\n": ("%", False, False),
}
UNKNOWN_TO_HIREDIS = {
    b"!5\r\nERR x\r\n": ("!", False, False),
    b"|1\r\n+ttl\r\n:3600\r\n+OK\r\n": ("+", False, False),
    b"|0\r\n$-1\r\n": ("$", False, True),
    b"|1\r\n+a\r\n|1\r\n+b\r\n_\r\n_\r\n|1\r\n+c\r\n:1\r\n*2\r\n|1\r\n+x\r\n+y\r\n:1\r\n_\r\n": (
        "*",
        False,
        False,
    ),
    b"|1\r\n+a\r\n*2\r\n_\r\n$-1\r\n>1\r\n+p\r\n": (">", True, False),
}


@pytest.mark.parametrize("message", [*WHOLE, *UNKNOWN_TO_HIREDIS], ids=lambda message: repr(message[:14]))
def test_split_at_every_position(message: bytes) -> None:
    for cut in range(len(message) + 1):
        reply = Reply()
        if cut < len(message):
            assert reply.feed(message[:cut]) == (cut, lib.RESP_MORE)
            assert reply.feed(message[cut:] + b"+next") == (len(message) - cut, lib.RESP_DONE)
        else:
            assert reply.feed(message) == (len(message), lib.RESP_DONE)
        assert reply.seen() == {**WHOLE, **UNKNOWN_TO_HIREDIS}[message]
    assert ends(message, range(1, len(message))) == [len(message)]


REFUSED_BY_HIREDIS = (b"+a\nb\rc\r\n", b"%1\r\n*1")  # ends of line in a text; an unhashable key


@pytest.mark.parametrize(
    "message",
    [message for message in WHOLE if not message.startswith(REFUSED_BY_HIREDIS)],
    ids=lambda message: repr(message[:14]),
)
def test_hiredis_sees_the_same_ends(message: bytes) -> None:
    for cut in range(1, len(message)):
        reader = hiredis.Reader(notEnoughData=Ellipsis)
        reader.feed(message[:cut])
        assert reader.gets() is Ellipsis
        reader.feed(message[cut:])
        assert reader.gets() is not Ellipsis
        assert not reader.has_data()


@pytest.mark.parametrize(
    "stream",
    [
        b"OK\r\n", b"\r\n", b"\0", b"$a\r\n", b"$-2\r\n", b"*-2\r\n", b"~-1\r\n", b"%-1\r\n", b"$\r\n", b"*\r\n",
        b"$?\r\n", b"*?\r\n", b";4\r\n", b".\r\n", b"#x\r\n", b"#tt\r\n", b"_x\r\n", b":\r\n", b":-\r\n", b":1a\r\n",
        b"$3\r\nabcd\r\n", b"$3\r\nabc\n\n", b"$3\nabc\r\n", b"$3\rxabc\r\n", b"*1\r\nx", b":" + b"1" * 40,
        b"$" + b"9" * 19 + b"\r\n", b"=-1\r\n", b"!-1\r\n",
        b"*999999999999999999\r\n" + b"%999999999999999999\r\n" * 20,
    ],
    ids=lambda stream: repr(stream[:14]),
)  # fmt: skip
def test_what_is_not_resp(stream: bytes) -> None:
    for cut in range(len(stream)):
        assert ends(stream, [cut]) == [-1]
    reply = Reply()
    assert reply.feed(stream)[1] == lib.RESP_BAD
    assert reply.feed(b"+OK\r\n") == (0, lib.RESP_BAD)


def encode(value: object) -> bytes:
    """RESP3 of what the strategy below draws."""
    match value:
        case None:
            return b"_\r\n"
        case bool():
            return b"#t\r\n" if value else b"#f\r\n"
        case int():
            return b":%d\r\n" % value
        case float():
            return b",%r\r\n" % value
        case bytes():
            return b"$%d\r\n%s\r\n" % (len(value), value)
        case str():
            return b"+%s\r\n" % value.encode()
        case list():
            return b"*%d\r\n" % len(value) + b"".join(map(encode, value))
        case tuple():
            return b"~%d\r\n" % len(value) + b"".join(map(encode, value))
        case dict():
            return b"%%%d\r\n" % len(value) + b"".join(encode(k) + encode(v) for k, v in value.items())
    raise TypeError(value)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=40)
    | st.text("abc ", max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(SCALARS, max_size=5).map(tuple)
        | st.dictionaries(st.integers(-9, 9), inner, max_size=4)
    ),
    max_leaves=12,
)


@RELAXED
@given(st.lists(VALUES, min_size=1, max_size=4), st.data())
def test_any_replies_in_any_parts(values: list[object], data: st.DataObject) -> None:
    messages = [encode(value) for value in values]
    stream = b"".join(messages)
    expected = [len(b"".join(messages[: i + 1])) for i in range(len(messages))]
    assert ends(stream) == expected
    assert ends(stream, range(1, len(stream))) == expected
    assert ends(stream, data.draw(st.lists(st.integers(0, len(stream)), max_size=6))) == expected
    reader = hiredis.Reader(notEnoughData=Ellipsis)
    seen = []
    for i in range(len(stream)):
        reader.feed(stream[i : i + 1])
        try:
            if reader.gets() is not Ellipsis:
                seen.append(i + 1)
        except hiredis.ProtocolError:  # nested deeper than hiredis goes
            return
    assert seen == expected


@RELAXED
@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_parts_make_no_difference_to_garbage(stream: bytes, cuts: list[int]) -> None:
    stream = stream.replace(b"a", b"\r\n").replace(b"b", b"*2\r\n").replace(b"c", b"$1\r\nx\r\n")
    assert ends(stream, [cut for cut in cuts if cut <= len(stream)]) == ends(stream)


def test_a_bulk_of_64_mb() -> None:
    message = b"$%d\r\n%s\r\n" % (64 << 20, b"x" * (64 << 20))
    assert ends(message, range(16384, len(message), 16384)) == [len(message)]


# ---- redis-server's own replies --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis() -> Iterator[PrivateRedis]:
    with private_redis() as server:
        yield server


DEEP = b"local t = {1} for i = 1, %d do t = {t, i} end return t"


@pytest.mark.parametrize("depth", [1, 33, 500])
def test_a_script_nests_as_deep_as_it_likes(depth: int, redis: PrivateRedis) -> None:
    answer = redis.answer(array(b"EVAL", DEEP % depth, b"0") + array(b"PING"))
    last = b"+PONG\r\n"
    assert answer.endswith(last) and answer.count(b"*") == depth + 1
    assert ends(answer) == [len(answer) - len(last), len(answer)]


@pytest.mark.parametrize("protocol", [b"2", b"3"])
def test_the_long_replies_of_redis(protocol: bytes, redis: PrivateRedis) -> None:
    requests = [
        [b"HELLO", protocol],
        [b"COMMAND"],
        [b"COMMAND", b"DOCS"],
        [b"INFO"],
        [b"ACL", b"LIST"],
        [b"nope"],
    ]
    requests += [
        [b"CONFIG", b"GET", b"*"],
        [b"MEMORY", b"STATS"],
        [b"EVAL", b"return {1.5, false, {ok='x'}}", b"0"],
    ]
    last = b"$12\r\nthat was all\r\n"
    requests.append([b"ECHO", b"that was all"])
    answer = redis.long_answer(b"".join(array(*request) for request in requests), last)
    found = ends(answer, range(1, len(answer), 1000))
    assert found[-1] == len(answer) and len(found) == len(requests)


def test_debug_protocol_shows_what_it_says() -> None:
    with private_redis("--enable-debug-command", "yes") as server:
        hello = server.answer(array(b"HELLO", b"3"))
        for kind, seen in {
            b"attrib": ("$", False, False),
            b"bignum": ("(", False, False),
            b"verbatim": ("=", False, False),
            b"push": (">", True, False),
            b"map": ("%", False, False),
            b"set": ("~", False, False),
            b"double": (",", False, False),
            b"true": ("#", False, False),
            b"null": ("_", False, True),
        }.items():
            answer = server.answer(array(b"HELLO", b"3") + array(b"DEBUG", b"PROTOCOL", kind))
            start = ends(answer)[0]
            assert abs(start - len(hello)) < 8
            reply = Reply()
            taken, status = reply.feed(answer[start:])
            assert status == lib.RESP_DONE and reply.seen() == seen, kind
            assert start + taken == ends(answer)[1]
