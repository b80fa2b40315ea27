"""Requests of the line protocol, read and checked as far as the line alone decides. lines.c reads them the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

LINE_BYTES_MAX = 1024  # the end of the line included
NAME_BYTES_MAX = 64  # of a trader, an id, a symbol
QUANTITY_MAX = 2**31 - 1  # the engine computes some quantities as C `int`
PRICE_MAX = 10**15  # ticks; the engine's are 64 bits
NUMBER_MAX = 2**63 - 1  # of an index, a time, an event
DEPTH_DEFAULT = 5
DEPTH_MAX = 1000
EVENTS_MAX = 1000  # in one reply

MARKET = 0  # the price of an order without a limit
CONDITIONS = ("AON", "IOC", "FOK")


class Reject(Exception):
    """A request that changes nothing: `code` is one of those that PROTOCOL.md lists."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class New:
    """BUY, SELL. `stop` 0: not a stop order."""

    buy: bool
    trader: str
    id: str
    symbol: str
    quantity: int
    price: int
    stop: int
    condition: str  # of CONDITIONS, or "-"


@dataclass(frozen=True, slots=True)
class Cancel:
    trader: str
    id: str
    original: str


@dataclass(frozen=True, slots=True)
class Replace:
    """`quantity` is the new total, what has been filled included."""

    trader: str
    id: str
    original: str
    quantity: int
    price: int


@dataclass(frozen=True, slots=True)
class Roll:
    """Forget what is done."""


@dataclass(frozen=True, slots=True)
class Status:
    trader: str
    id: str


@dataclass(frozen=True, slots=True)
class Depth:
    symbol: str
    levels: int


@dataclass(frozen=True, slots=True)
class Events:
    trader: str
    after: int
    most: int


@dataclass(frozen=True, slots=True)
class Plain:
    """PING, STATE, SYMBOLS, SNAPSHOT: no words behind the first."""

    word: str


@dataclass(frozen=True, slots=True)
class Check:
    """What would be said to it if it were sent?"""

    request: New | Cancel | Replace


Write = New | Cancel | Replace | Roll
Request = Write | Check | Status | Depth | Events | Plain
PLAIN = frozenset({"PING", "STATE", "SYMBOLS", "SNAPSHOT"})


@dataclass(frozen=True, slots=True)
class Stamp:
    """What who logged the request put in front: its place in the log, and the time then, microseconds since 1970."""

    index: int
    time_us: int


def malformed(text: str) -> Reject:
    return Reject("malformed", text)


def parse(line: bytes) -> tuple[Stamp | None, Request]:
    """One line without its end. Reject: what is wrong with it."""
    if len(line) >= LINE_BYTES_MAX:
        raise malformed("line too long")
    if not line.isascii() or not (text := line.decode("ascii")).isprintable():
        raise malformed("not printable ASCII")
    words = text.split(" ")
    if "" in words:
        raise malformed("empty line, or more than one blank between words")
    stamp = None
    if words[0].startswith("@"):
        if len(words) < 3:
            raise malformed("a stamp is @INDEX TIME, and a request behind it")
        stamp = Stamp(_number(words[0][1:], "malformed", "index"), _number(words[1], "malformed", "time", least=0))
        words = words[2:]
    reader = _READERS.get(words[0])
    if reader is None:
        raise malformed("unknown request")
    return stamp, reader(words)


def crc_text(line: bytes) -> bytes:
    """What must be the same of two requests with one id: the line without a stamp."""
    return line.split(b" ", 2)[2] if line.startswith(b"@") else line


def _number(word: str, code: str, what: str, least: int = 1, most: int = NUMBER_MAX) -> int:
    digits = word[1:] if word.startswith("-") else word
    if not digits.isdigit():
        raise malformed(f"{what} is not a number")
    value = int(word)
    if not least <= value <= most:
        raise Reject(code, f"{what} is not {least} to {most}")
    return value


def _quantity(word: str) -> int:
    return _number(word, "quantity", "quantity", most=QUANTITY_MAX)


def _price(word: str, what: str = "price") -> int:
    return _number(word, "price", what, most=PRICE_MAX)


def _limit(word: str) -> int:
    return MARKET if word == "MKT" else _price(word)


def _counted(words: Sequence[str], least: int, most: int) -> None:
    if not least <= len(words) - 1 <= most:
        raise malformed("wrong number of words")


def _named(words: Sequence[str]) -> None:
    if any(len(word) > NAME_BYTES_MAX for word in words):
        raise malformed(f"a name is longer than {NAME_BYTES_MAX}")


def _new(words: Sequence[str]) -> New:
    _counted(words, 5, 8)
    _named(words[1:4])
    rest, stop, condition = list(words[6:]), "", "-"
    if rest and rest[0] == "STOP":
        if len(rest) < 2:
            raise malformed("STOP without a price")
        stop, rest = rest[1], rest[2:]
    if rest:
        if len(rest) > 1 or rest[0] not in CONDITIONS:
            raise malformed("not STOP PRICE, AON, IOC or FOK")
        condition = rest[0]
    quantity, price = _quantity(words[4]), _limit(words[5])
    stop_price = _price(stop, "stop price") if stop else 0
    return New(words[0] == "BUY", words[1], words[2], words[3], quantity, price, stop_price, condition)


def _cancel(words: Sequence[str]) -> Cancel:
    _counted(words, 3, 3)
    _named(words[1:])
    return Cancel(*words[1:])


def _replace(words: Sequence[str]) -> Replace:
    _counted(words, 5, 5)
    _named(words[1:4])
    return Replace(words[1], words[2], words[3], _quantity(words[4]), _limit(words[5]))


def _roll(words: Sequence[str]) -> Roll:
    _counted(words, 0, 0)
    return Roll()


def _status(words: Sequence[str]) -> Status:
    _counted(words, 2, 2)
    _named(words[1:])
    return Status(words[1], words[2])


def _depth(words: Sequence[str]) -> Depth:
    _counted(words, 1, 2)
    _named(words[1:2])
    levels = _number(words[2], "malformed", "levels", most=DEPTH_MAX) if len(words) > 2 else DEPTH_DEFAULT
    return Depth(words[1], levels)


def _events(words: Sequence[str]) -> Events:
    _counted(words, 2, 3)
    _named(words[1:2])
    after = _number(words[2], "malformed", "event", least=0)
    most = _number(words[3], "malformed", "count", most=EVENTS_MAX) if len(words) > 3 else EVENTS_MAX
    return Events(words[1], after, most)


def _check(words: Sequence[str]) -> Check:
    if len(words) < 2 or words[1] not in ("BUY", "SELL", "CANCEL", "REPLACE"):
        raise malformed("CHECK, and a request that writes")
    request = _READERS[words[1]](words[1:])
    assert isinstance(request, New | Cancel | Replace)
    return Check(request)


def _plain(words: Sequence[str]) -> Plain:
    _counted(words, 0, 0)
    return Plain(words[0])


_READERS: dict[str, Callable[[Sequence[str]], Request]] = {
    "BUY": _new, "SELL": _new, "CANCEL": _cancel, "REPLACE": _replace, "ROLL": _roll,
    "STATUS": _status, "DEPTH": _depth, "EVENTS": _events, "CHECK": _check, **dict.fromkeys(PLAIN, _plain),
}  # fmt: skip
