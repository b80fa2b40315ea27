"""What clients of HERD may say, as to a memcached or in RESP; what is logged of it, and what they are answered."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memcached_wire import Buffer, Reader, Request, limits, rewrite

from musidecar._ffi import ffi, lib

PROTOCOL = lib.herd_protocol
TOO_LONG = b"SERVER_ERROR object too large for cache: HERD keeps values of up to 33 bytes\r\n"
ONLY = b"SERVER_ERROR HERD knows get, set and delete\r\n"
NO_OPTIONS = b"-ERR HERD keeps no expiry and knows no conditions: SET takes a key and a value\r\n"
KEY = b"k" * 250


def resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def requests(data: bytes, cut: int = 0) -> list[Request]:
    reader = Reader(limits(), PROTOCOL)
    return [*reader.feed(data[:cut]), *reader.feed(data[cut:])]


def wire(kind: bytes, items: int, payload: bytes) -> bytes:
    return struct.pack("=cxHI", kind, items, len(payload)) + payload


def keys(*names: bytes) -> bytes:
    return b"".join(bytes([len(name)]) + name for name in names)


def put(key: bytes, value: bytes, flags: int = 0) -> bytes:
    return wire(b"S", 1, struct.pack("=I", flags) + keys(key) + value)


# What a client sends, what it is, what is logged or asked.
GIVEN = [
    (b"get a\r\n", "read", wire(b"G", 1, keys(b"a"))),
    (b"get  a  bc \r\n", "read", wire(b"G", 2, keys(b"a", b"bc"))),
    (b"get " + KEY + b"\r\n", "read", wire(b"G", 1, keys(KEY))),
    (b"set a 5 0 3\r\nabc\r\n", "write", put(b"a", b"abc", 5)),
    (b"set a 0 0 0\r\n\r\n", "write", put(b"a", b"")),
    (b"set a 4294967295 0 33 noreply\r\n" + b"v" * 33 + b"\r\n", "write", put(b"a", b"v" * 33, 2**32 - 1)),
    (b"delete a\r\n", "write", wire(b"D", 1, keys(b"a"))),
    (b"delete a noreply\r\n", "write", wire(b"D", 1, keys(b"a"))),
    (resp(b"GET", b"a"), "read", wire(b"G", 1, keys(b"a"))),
    (resp(b"get", b""), "read", wire(b"G", 1, keys(b""))),
    (resp(b"MGET", b"a", b"b\r\n\0"), "read", wire(b"G", 2, keys(b"a", b"b\r\n\0"))),
    (resp(b"EXISTS", b"a", b"a"), "read", wire(b"G", 2, keys(b"a", b"a"))),
    (resp(b"SET", b"a", b"abc"), "write", put(b"a", b"abc")),
    (resp(b"set", KEY, b"v" * 33), "write", put(KEY, b"v" * 33)),
    (resp(b"DEL", b"a"), "write", wire(b"D", 1, keys(b"a"))),
    (resp(b"DEL", *[b"%d" % i for i in range(40)]), "write", wire(b"D", 40, keys(*[b"%d" % i for i in range(40)]))),
]


@pytest.mark.parametrize(("sent", "kind", "given_"), GIVEN, ids=range(len(GIVEN)))
def test_what_the_gate_is_given(sent: bytes, kind: str, given_: bytes) -> None:
    (request,) = requests(sent)
    assert (request.kind, request.length, request.text) == (kind, len(sent), b"")
    assert rewrite(request, 1, PROTOCOL) == given_


SAID = [
    (b"set a 0 0 34\r\n" + b"v" * 34 + b"\r\n", TOO_LONG),
    (b"set a 0 0 34 noreply\r\n" + b"v" * 34 + b"\r\n", b""),
    (b"set a 0 1 1\r\nv\r\n", b"SERVER_ERROR HERD keeps no expiry: exptime has to be 0\r\n"),
    (b"set a 0 -1 1\r\nv\r\n", b"SERVER_ERROR HERD keeps no expiry: exptime has to be 0\r\n"),
    (b"add a 0 0 1\r\nv\r\n", ONLY),
    (b"cas a 0 0 1 7\r\nv\r\n", ONLY),
    (b"incr a 1\r\n", ONLY),
    (b"touch a 1\r\n", ONLY),
    (b"gets a\r\n", ONLY),
    (b"gat 0 a\r\n", ONLY),
    (b"mg a v\r\n", ONLY),
    (b"ms a 1\r\nv\r\n", ONLY),
    (b"flush_all\r\n", ONLY),
    (b"stats\r\n", ONLY),
    (b"watch\r\n", ONLY),
    (b"version\r\n", b"VERSION 1.6.18-herd\r\n"),
    (b"get " + KEY + b"k\r\n", b"CLIENT_ERROR bad command line format\r\n"),
    (b"get" + b" k" * 1025 + b"\r\n", b"CLIENT_ERROR more than 1024 keys\r\n"),
    (b"nothing\r\n", b"ERROR\r\n"),
    (resp(b"SET", b"a", b"v" * 34), b"-ERR the value is too long: HERD keeps values of up to 33 bytes\r\n"),
    (resp(b"SET", b"a", b"v", b"EX", b"9"), NO_OPTIONS),
    (resp(b"SET", b"a"), b"-ERR wrong number of arguments for 'SET' command\r\n"),
    (resp(b"SET", KEY + b"k", b"v"), b"-ERR a key is longer than 250 bytes\r\n"),
    (resp(b"GET", KEY + b"k"), b"-ERR a key is longer than 250 bytes\r\n"),
    (resp(b"GET", b"a", b"b"), b"-ERR wrong number of arguments for 'GET' command\r\n"),
    (resp(b"MGET", *[b"k"] * 1025), b"-ERR more than 1024 keys\r\n"),
    (resp(b"INCR", b"a"), b"-ERR unknown command 'INCR': HERD knows GET, MGET, SET, DEL, EXISTS\r\n"),
    (resp(b"a\r\nb"), b"-ERR unknown command 'a??b': HERD knows GET, MGET, SET, DEL, EXISTS\r\n"),
    (resp(b"PING"), b"+PONG\r\n"),
    (resp(b"PING", b"hi"), b"$2\r\nhi\r\n"),
    (resp(b"ECHO", b"hi"), b"$2\r\nhi\r\n"),
    (resp(b"SELECT", b"0"), b"+OK\r\n"),
    (resp(b"SELECT", b"1"), b"-ERR DB index is out of range\r\n"),
    (resp(b"CLIENT", b"SETINFO", b"LIB-NAME", b"x"), b"+OK\r\n"),
    (resp(b"COMMAND", b"DOCS"), b"*0\r\n"),
    (resp(b"HELLO", b"3"), b"-NOPROTO unsupported protocol version\r\n"),
]


@pytest.mark.parametrize(("sent", "said"), SAID, ids=range(len(SAID)))
def test_what_is_said_without_herd(sent: bytes, said: bytes) -> None:
    """Nothing is logged, and the connection goes on behind it."""
    request, after = requests(sent + b"get a\r\n")
    assert (request.kind, request.text) == ("answer", said)
    assert after.kind == "read"


@pytest.mark.parametrize(
    ("sent", "said"),
    [(b"quit\r\n", b""), (resp(b"QUIT"), b"+OK\r\n"), (b"\x80\x00", b""), (b"set a\r\n", b"ERROR\r\n"),
     (b"*1\r\n$-5\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
     (b"*2\r\n$3\r\nGET\r\n$99999999\r\n", b"-ERR Protocol error: invalid bulk length\r\n")],
)  # fmt: skip
def test_what_ends_the_connection(sent: bytes, said: bytes) -> None:
    (request,) = requests(sent)
    assert (request.kind, request.text) == ("close", said)


def test_a_value_far_too_long_is_passed_over() -> None:
    data = b"set a 0 0 3000000\r\n" + b"v" * 3_000_000 + b"\r\nget a\r\n"
    first, second = requests(data)
    assert first.text == TOO_LONG and second.kind == "read"


def test_requests_may_be_cut_anywhere() -> None:
    stream = b"".join(sent for sent, *_ in GIVEN[:2] + GIVEN[3:])
    stream += b"".join(sent for sent, _ in SAID if len(sent) < 600)
    whole = [(each.kind, each.length, each.text) for each in requests(stream)]
    for cut in range(1, len(stream)):
        assert [(each.kind, each.length, each.text) for each in requests(stream, cut)] == whole


SENT = [sent for sent, *_ in GIVEN] + [sent for sent, _ in SAID]


@given(st.lists(st.sampled_from(SENT) | st.binary(max_size=40), max_size=5).map(b"".join))
def test_any_bytes_do_no_harm(data: bytes) -> None:
    for request in requests(data):
        if request.kind in ("read", "write"):
            rewritten = rewrite(request, 1, PROTOCOL)
            kind, items, length = struct.unpack_from("=cxHI", rewritten)
            assert kind in b"GSD" and 1 <= items <= 1024 and len(rewritten) == 8 + length
        else:
            assert request.kind in ("answer", "nothing", "close")


# ---- answers ---------------------------------------------------------------------------------------------------------


def found(key: bytes, value: bytes | None, flags: int = 0) -> bytes:
    return struct.pack("=BBBxI", value is not None, len(key), len(value or b""), flags) + key + (value or b"")


ANSWERS = [
    (b"get a b\r\n", wire(b"G", 2, found(b"a", b"hi", 7) + found(b"b", None)), b"VALUE a 7 2\r\nhi\r\nEND\r\n"),
    (b"get a\r\n", wire(b"G", 1, found(b"a", None)), b"END\r\n"),
    (b"set a 0 0 1\r\nv\r\n", wire(b"S", 0, b""), b"STORED\r\n"),
    (b"set a 0 0 1 noreply\r\nv\r\n", wire(b"S", 0, b""), b""),
    (b"delete a\r\n", wire(b"D", 1, b"\1"), b"DELETED\r\n"),
    (b"delete a\r\n", wire(b"D", 1, b"\0"), b"NOT_FOUND\r\n"),
    (b"delete a noreply\r\n", wire(b"D", 1, b"\0"), b""),
    (resp(b"GET", b"a"), wire(b"G", 1, found(b"a", b"\r\n")), b"$2\r\n\r\n\r\n"),
    (resp(b"GET", b"a"), wire(b"G", 1, found(b"a", None)), b"$-1\r\n"),
    (resp(b"MGET", b"a", b"b"), wire(b"G", 2, found(b"a", None) + found(b"b", b"")), b"*2\r\n$-1\r\n$0\r\n\r\n"),
    (resp(b"EXISTS", b"a", b"b"), wire(b"G", 2, found(b"a", b"x") + found(b"b", b"y")), b":2\r\n"),
    (resp(b"SET", b"a", b"v"), wire(b"S", 0, b""), b"+OK\r\n"),
    (resp(b"DEL", b"a", b"b"), wire(b"D", 2, b"\1\0"), b":1\r\n"),
]


def answer(sent: bytes, ack: bytes) -> bytes | None:
    (request,) = requests(sent)
    out = Buffer()
    good = PROTOCOL.answer(request.c.style, ffi.NULL, 0, ffi.from_buffer(ack), len(ack), 1, out.c)
    return out.take() if good else None


@pytest.mark.parametrize(("sent", "ack", "given_"), ANSWERS, ids=range(len(ANSWERS)))
def test_what_the_client_is_given(sent: bytes, ack: bytes, given_: bytes) -> None:
    assert answer(sent, ack) == given_
    for length in range(len(ack)):
        assert answer(sent, ack[:length]) is None, "an answer that is not whole is none"
    for other, foreign, _ in ANSWERS:
        if foreign[0] != ack[0]:
            assert answer(other, ack) is None


def ends(data: bytes, cut: int) -> list[int]:
    """Lengths of the answers in it."""
    state, status, lengths, length = ffi.new("struct protocol_reply *"), ffi.new("enum protocol_status *"), [], 0
    for part in (data[:cut], data[cut:]):
        while part:
            used = PROTOCOL.reply(state, 1, ffi.from_buffer(part), len(part), status)
            assert status[0] != lib.PROTOCOL_REPLY_BAD
            length += used
            part = part[used:]
            if status[0] == lib.PROTOCOL_REPLY_WHOLE:
                lengths.append(length)
                state, length = ffi.new("struct protocol_reply *"), 0
    assert length == 0
    return lengths


def test_answers_end_where_they_do_wherever_they_are_cut() -> None:
    acks = [ack for _, ack, _ in ANSWERS]
    stream = b"".join(acks)
    for cut in range(len(stream)):
        assert ends(stream, cut) == [len(ack) for ack in acks]


@pytest.mark.parametrize("head", [struct.pack("=cBHI", b"G", 1, 1, 0), struct.pack("=cxHI", b"G", 1, 1 << 30)])
def test_what_is_no_answer_is_told(head: bytes) -> None:
    status = ffi.new("enum protocol_status *")
    PROTOCOL.reply(ffi.new("struct protocol_reply *"), 1, ffi.from_buffer(head), len(head), status)
    assert status[0] == lib.PROTOCOL_REPLY_BAD
