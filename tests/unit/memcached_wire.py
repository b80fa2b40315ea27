"""protocols/memcached from Python, the way the engine drives it: used by its tests."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from private_memcached import PrivateMemcached

from musidecar._ffi import ffi, lib

PROTOCOL = lib.memcached_protocol
ITEM_BYTES_MAX = 1 << 20
TERM = 7
TOKEN_MASK = (1 << 48) - 1
NAMES = {
    lib.PROTOCOL_MORE: "more",
    lib.PROTOCOL_NOTHING: "nothing",
    lib.PROTOCOL_READ: "read",
    lib.PROTOCOL_WRITE: "write",
    lib.PROTOCOL_DECIDE: "decide",
    lib.PROTOCOL_ANSWER: "answer",
    lib.PROTOCOL_LOCAL: "local",
    lib.PROTOCOL_STREAM: "stream",
    lib.PROTOCOL_STATUS: "status",
    lib.PROTOCOL_CLOSE: "close",
}


class Buffer:
    """A struct buffer."""

    def __init__(self) -> None:
        self.c = ffi.gc(ffi.new("struct buffer *"), lib.buffer_free)

    def take(self) -> bytes:
        """Its bytes; it is empty then."""
        b = self.c
        taken = bytes(ffi.buffer(b.data + b.start, b.end - b.start)) if b.end > b.start else b""
        b.start = b.end = 0
        return taken


@dataclass
class Request:
    """One request as it was read: `c` and `bytes` are what the other functions want."""

    c: Any
    bytes: Any
    kind: str
    length: int
    swallow: int
    text: bytes
    why: bytes | None

    @property
    def key_hash(self) -> int:
        return int(self.c.key_hash)


def limits(exact: bool = True, item_bytes_max: int = ITEM_BYTES_MAX) -> Any:
    return ffi.new("struct protocol_limits *", {"item_bytes_max": item_bytes_max, "exact": exact})


class Reader:
    """What a client sends, as the engine reads it: fed in parts, it tells the requests."""

    def __init__(self, bounds: Any | None = None, protocol: Any = PROTOCOL) -> None:
        self._protocol = protocol
        self.limits = bounds if bounds is not None else limits()
        self.held = b""
        self.swallow = 0
        self.closed = False
        self.wanted = 0
        self.scanned = 0
        self._answer = Buffer()

    def feed(self, data: bytes) -> Iterator[Request]:
        self.held += data
        while not self.closed:
            gone = min(self.swallow, len(self.held))
            self.held = self.held[gone:]
            self.swallow -= gone
            if not self.held or len(self.held) < self.wanted:
                return
            request = self.read(self.held)
            if request.kind == "more":
                self.wanted, self.scanned = int(request.c.wanted), int(request.c.scanned)
                return
            self.wanted = self.scanned = 0
            self.held = self.held[request.length :]
            self.swallow = request.swallow
            self.closed = request.kind == "close"
            yield request

    def read(self, data: bytes) -> Request:
        c = ffi.new("struct protocol_request *")
        c.scanned = self.scanned
        kept = ffi.new("uint8_t[]", data) if data else ffi.NULL
        self._protocol.request(self.limits, kept, len(data), c, self._answer.c)
        why = None if c.why == ffi.NULL else ffi.string(c.why)
        return Request(c, kept, NAMES[getattr(c, "class")], c.length, c.swallow, self._answer.take(), why)


def rewrite(request: Request, now_s: int, protocol: Any = PROTOCOL) -> bytes:
    out = Buffer()
    protocol.rewrite(request.c, request.bytes, now_s * 1_000_000, out.c)
    return out.take()


def question(request: Request) -> tuple[bytes, int]:
    out = Buffer()
    answers = PROTOCOL.question(request.c, request.bytes, out.c)
    return out.take(), answers


class Item:
    """What a key holds, as the backend said it or a decision left it."""

    def __init__(self) -> None:
        self.c = ffi.gc(ffi.new("struct memcached_item *"), PROTOCOL.item_free)

    def read(self, answer: bytes, now_s: int) -> bool:
        return bool(PROTOCOL.item(self.c, answer, len(answer), now_s))

    @property
    def value(self) -> bytes:
        b = self.c.value
        return bytes(ffi.buffer(b.data + b.start, b.end - b.start)) if b.end > b.start else b""


def read_item(answer: bytes, now_s: int) -> Item:
    item = Item()
    assert item.read(answer, now_s), answer
    return item


@dataclass
class Decision:
    writes: bool
    command: bytes
    reply: bytes
    style: int


def decide(request: Request, item: Item, now_s: int, term: int = TERM) -> Decision:
    command, reply, style = Buffer(), Buffer(), ffi.new("uint32_t *")
    writes = PROTOCOL.decide(request.c, request.bytes, item.c, term, now_s, command.c, reply.c, style)
    return Decision(bool(writes), command.take(), reply.take(), style[0])


def answer(style: int, reply: bytes, ack: bytes, term: int = TERM) -> bytes | None:
    """What the client is given; None: they do not belong together."""
    out = Buffer()
    good = PROTOCOL.answer(style, reply, len(reply), ack, len(ack), term, out.c)
    return out.take() if good else None


def reply_end(data: bytes, answers: int = 1, parts: Sequence[int] = ()) -> tuple[str, int]:
    """("whole" | "more" | "bad", bytes taken), fed in parts of these lengths and then the rest."""
    state, status, at = ffi.new("struct protocol_reply *"), ffi.new("enum protocol_status *"), 0
    for part in [*parts, len(data)]:
        piece = data[at : at + part]
        at += PROTOCOL.reply(state, answers, piece, len(piece), status)
        if status[0] != lib.PROTOCOL_REPLY_MORE:
            return ("whole" if status[0] == lib.PROTOCOL_REPLY_WHOLE else "bad"), at
    return "more", at


class Backend:
    """An ordered connection to a memcached: what it is given, and its answers, each framed by the code under test."""

    def __init__(self, server: PrivateMemcached) -> None:
        self.socket = server.connect()
        self.held = b""

    def ask(self, data: bytes, answers: int = 1) -> bytes:
        self.socket.sendall(data)
        while True:
            state, taken = reply_end(self.held, answers)
            assert state != "bad", (data, self.held)
            if state == "whole":
                whole, self.held = self.held[:taken], self.held[taken:]
                return whole
            part = self.socket.recv(1 << 20)
            assert part, "the backend closed the connection"
            self.held += part

    def close(self) -> None:
        assert self.held == b""
        self.socket.close()


@dataclass
class Sidecar:
    """A leader with its backend and those of followers, and nothing of replication: what is logged is given to all."""

    backends: Sequence[Backend]
    bounds: Any = field(default_factory=limits)
    term: int = TERM
    log: list[bytes] = field(default_factory=list)

    def now_s(self) -> int:
        return int(time.time())

    def write(self, command: bytes) -> bytes:
        self.log.append(command)
        for follower in self.backends[1:]:
            follower.ask(command)
        return self.backends[0].ask(command)

    def serve(self, request: Request) -> bytes:
        """The client's answer to one request, ANSWER, CLOSE, READ, WRITE, DECIDE or LOCAL."""
        if request.kind in ("answer", "close"):
            return request.text
        now_s = self.now_s()
        if request.kind == "decide":
            asked, answers = question(request)
            item = read_item(self.backends[0].ask(asked, answers), now_s)
            done = decide(request, item, now_s, self.term)
            ack = self.write(done.command) if done.writes else b""
            given = answer(done.style, done.reply, ack, self.term)
        else:
            put = rewrite(request, now_s)
            ack = self.write(put) if request.kind == "write" else self.backends[0].ask(put)
            given = answer(request.c.style, b"", ack, self.term)
        assert given is not None, (request.bytes, ack)
        return given


@dataclass
class Client:
    """A connection to the sidecar."""

    sidecar: Sidecar

    def __post_init__(self) -> None:
        self.reader = Reader(self.sidecar.bounds)
        self.why: bytes | None = None
        self.taken = 0  # bytes of what was sent

    def ask(self, data: bytes) -> bytes:
        given = b""
        for request in self.reader.feed(data):
            given += self.sidecar.serve(request)
            self.why = request.why
            self.taken += (request.length if request.why != b"a line is too long" else 0) + request.swallow
        self.taken -= self.reader.swallow
        return given

    @property
    def closed(self) -> bool:
        return self.reader.closed
