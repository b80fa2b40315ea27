"""The state machine behind liquibookd: books, traders, and what became of every request. PROTOCOL.md has the rules.

`Exchange.apply()` takes one line and returns its reply. What it answers and how it changes is a function of the lines
so far and nothing else: it reads no clock, draws no random number, and iterates over nothing that has no order.
"""

from __future__ import annotations

import heapq
import json
import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from .book import CANCELLED, FILLED, HELD, OPEN, Book, Fill, Order
from .grammar import (
    MARKET,
    Cancel,
    Check,
    Depth,
    Events,
    New,
    Plain,
    Reject,
    Replace,
    Request,
    Roll,
    Stamp,
    Status,
    Write,
    crc_text,
    malformed,
    parse,
)

EVENTS_KEPT = 10_000  # of each trader
SNAPSHOT_VERSION = 1
HASH_BYTES = 16
END = b"END\n"


@dataclass(slots=True)
class Outcome:
    """What an id was used for: which request (its CRC), which order it is about, and the reply."""

    crc: int
    order: int
    reply: str


@dataclass(slots=True)
class Trader:
    """`count`: events so far; the last EVENTS_KEPT of them are here."""

    count: int = 0
    ids: dict[str, Outcome] = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))


def _terms(order: Order) -> str:
    """Symbol, side, quantity, limit, stop price, condition."""
    side, limit = "BUY" if order.buy else "SELL", "MKT" if order.price == MARKET else order.price
    return f"{order.symbol} {side} {order.quantity} {limit} {order.stop or '-'} {order.condition}"


class Exchange:
    """All of it. Without stamps, the index counts on by one with each request that changes something."""

    def __init__(self, symbols: Iterable[str] = ()) -> None:
        self.index = 0
        self.time_us = 0
        self.entered = 0  # places given to orders so far
        self.events = 0
        self.hash = b"\0" * HASH_BYTES  # of all events, each with the hash before it
        self.books = {symbol: Book(symbol) for symbol in symbols}
        self.orders: dict[int, Order] = {}
        self.traders: dict[str, Trader] = {}
        self._part = 0  # events of this request so far
        self._reply: list[str] = []
        self._trader = ""

    # ---- requests --------------------------------------------------------------------------------------------------

    def apply(self, line: bytes) -> bytes:
        """One request without its end; the reply, END included."""
        try:
            stamp, request = parse(line)
            return self._answer(line, stamp, request) + END
        except Reject as reject:
            return f"REJECT {reject.code} {reject.text}\n".encode() + END

    def _answer(self, line: bytes, stamp: Stamp | None, request: Request) -> bytes:
        if isinstance(request, New | Cancel | Replace | Roll):
            return self._write(line, stamp, request)
        if stamp is not None:
            raise malformed("only what is logged has a stamp")
        match request:
            case Check():
                return self._would(line, request.request)
            case Status():
                return f"{self._describe(self._order(request.trader, request.id))}\n".encode()
            case Depth():
                return self._depth(request)
            case Events():
                return self._told(request)
            case Plain():
                return self._plain(request.word)

    def _write(self, line: bytes, stamp: Stamp | None, request: Write) -> bytes:
        """A stamp counts even where nothing else changes: STATE tells how far in the log this is."""
        crc = zlib.crc32(crc_text(line))
        known = None if isinstance(request, Roll) else self._known(request.trader, request.id, crc)
        if stamp is not None:
            if stamp.index > self.index:
                self.index, self.time_us = stamp.index, stamp.time_us
            elif known is None:
                raise Reject("stale", f"index {stamp.index} has been applied")
        if isinstance(request, Roll):
            self._count(stamp)
            return self._roll()
        return (self._once(request, crc, stamp) if known is None else known).encode()

    def _would(self, line: bytes, request: New | Cancel | Replace) -> bytes:
        """What would be said to the request behind CHECK, if that would change nothing."""
        known = self._known(request.trader, request.id, zlib.crc32(line.split(b" ", 1)[1]))
        if known is None:
            self._check(request)
        return b"CLEAR\n" if known is None else known.encode()

    def _count(self, stamp: Stamp | None) -> None:
        if stamp is None:
            self.index += 1

    def _known(self, trader: str, name: str, crc: int) -> str | None:
        """The stored reply to this request, had it been here before."""
        who = self.traders.get(trader)
        outcome = who.ids.get(name) if who is not None else None
        if outcome is None:
            return None
        if outcome.crc != crc:
            raise Reject("id", f"{name} was another request")
        return outcome.reply

    def _once(self, request: New | Cancel | Replace, crc: int, stamp: Stamp | None) -> str:
        found = self._check(request)
        self._count(stamp)
        self._part, self._reply, self._trader = 0, [], request.trader
        if isinstance(request, New):
            order = self._new(request)
        else:
            assert found is not None
            order = found
            if isinstance(request, Cancel):
                self._cancel(request, order)
            else:
                self._replace(request, order)
        reply = "".join(self._reply)
        self.traders[request.trader].ids[request.id] = Outcome(crc, order.number, reply)
        return reply

    # ---- what changes something ------------------------------------------------------------------------------------

    def _check(self, request: New | Cancel | Replace) -> Order | None:
        """All that can be wrong with it by the state, before anything changes; the order that it is about."""
        if isinstance(request, New):
            self._book(request.symbol)
            return None
        order = self._order(request.trader, request.original)
        if not order.is_live:
            raise Reject("done", f"{request.original} is {order.status}")
        if isinstance(request, Replace):
            if request.quantity <= order.filled:
                raise Reject("quantity", f"{order.filled} are filled")
            if (request.price == MARKET) != (order.price == MARKET):
                raise Reject("price", "a limit order stays one, and a market order too")
        return order

    def _new(self, request: New) -> Order:
        order = Order(
            self.index, request.trader, request.id, request.symbol, request.buy,
            request.quantity, request.price, request.stop, request.condition,
        )  # fmt: skip
        if order.stop:
            order.status = HELD
        self.orders[order.number] = order
        self._tell(order, "ACCEPT")
        self._enter(order)
        return order

    def _cancel(self, request: Cancel, order: Order) -> None:
        self.books[order.symbol].withdraw(order)
        self._cancelled(order, request.id)

    def _replace(self, request: Replace, order: Order) -> None:
        self.books[order.symbol].withdraw(order)
        before, order.id = order.id, request.id
        order.quantity, order.price = request.quantity, request.price
        self._tell(order, "REPLACE", before)
        self._enter(order)

    def _roll(self) -> bytes:
        done = {number for number, order in self.orders.items() if not order.is_live}
        self.orders = {number: order for number, order in self.orders.items() if number not in done}
        for trader in self.traders.values():
            trader.ids = {name: outcome for name, outcome in trader.ids.items() if outcome.order not in done}
        return f"ROLLED {len(done)}\n".encode()

    def _enter(self, order: Order) -> None:
        """Into the book, or among the stops; then the stops that its trades reach, and so on."""
        book, waiting = self.books[order.symbol], deque([order])
        self._place(order)
        if order.status == HELD and not book.is_reached(order):
            book.hold(order)
            return
        while waiting:
            entering = waiting.popleft()
            if entering.status == HELD:
                entering.status = OPEN
                self._tell(entering, "TRIGGER")
                self._place(entering)
            fills = book.submit(entering)
            self._tell_fills(fills)
            if entering.open and not entering.rests:
                self._cancelled(entering, None)
            waiting.extend(book.reached(fills))

    def _place(self, order: Order) -> None:
        self.entered += 1
        order.entered = self.entered

    def _cancelled(self, order: Order, request: str | None) -> None:
        left = order.open
        order.status = CANCELLED
        before = order.id
        if request is not None:
            order.id = request
        self._tell(order, "CANCEL", before if request is not None else "-", left)

    # ---- events ----------------------------------------------------------------------------------------------------

    def _tell_fills(self, fills: Sequence[Fill]) -> None:
        """Both sides of each trade. The orders have had all of them already: each event is about the state it made."""
        after: dict[int, list[int]] = {}
        for fill in fills:
            for order in (fill.first, fill.second):
                at = after.setdefault(order.number, [order.filled, order.cost])
                at[0] -= fill.quantity
                at[1] -= fill.quantity * fill.price
        for fill in fills:
            for order in (fill.first, fill.second):
                at = after[order.number]
                at[0] += fill.quantity
                at[1] += fill.quantity * fill.price
                status = FILLED if at[0] == order.quantity else OPEN
                left = order.quantity - at[0]
                self._append(order, "FILL", "-", status, at[0], left, at[1], fill.quantity, fill.price)

    def _tell(self, order: Order, kind: str, original: str = "-", quantity: int = 0) -> None:
        self._append(order, kind, original, order.status, order.filled, order.open, order.cost, quantity, 0)

    def _append(
        self, order: Order, kind: str, original: str, status: str, filled: int, left: int, cost: int, last: int, at: int
    ) -> None:
        trader = self.traders.get(order.trader)
        if trader is None:
            trader = self.traders[order.trader] = Trader()
        trader.count += 1
        self._part += 1
        self.events += 1
        line = (
            f"EVENT {trader.count} {self.index}.{self._part} {self.time_us} {kind} {order.number} "
            f"{order.id} {original} {_terms(order)} {status} {filled} {left} {cost} {last} {at}\n"
        )
        trader.events.append(line)
        self.hash = blake2b(f"{order.trader} {line}".encode(), digest_size=HASH_BYTES, key=self.hash).digest()
        if order.trader == self._trader:
            self._reply.append(line)

    # ---- what changes nothing --------------------------------------------------------------------------------------

    def _order(self, trader: str, name: str) -> Order:
        who = self.traders.get(trader)
        if who is None or name not in who.ids:
            raise Reject("order", f"{trader} has no order {name}")
        return self.orders[who.ids[name].order]

    def _book(self, symbol: str) -> Book:
        book = self.books.get(symbol)
        if book is None:
            raise Reject("symbol", "there is no such book")
        return book

    @staticmethod
    def _describe(order: Order) -> str:
        return (
            f"ORDER {order.number} {order.id} {_terms(order)} {order.status} {order.filled} {order.open} {order.cost}"
        )

    def _depth(self, request: Depth) -> bytes:
        book = self._book(request.symbol)
        rows = []
        for word, best, side in (
            ("BID", heapq.nlargest, book.levels[True]),
            ("ASK", heapq.nsmallest, book.levels[False]),
        ):
            rows += [f"{word} {price} {side[price][0]} {side[price][1]}\n" for price in best(request.levels, side)]
        rows.append(f"LAST {book.last or '-'}\n")
        return "".join(rows).encode()

    def _told(self, request: Events) -> bytes:
        trader = self.traders.get(request.trader, Trader())
        before = trader.count - len(trader.events)  # events that are not kept
        start = max(request.after, before) - before
        rows = [trader.events[i] for i in range(start, min(start + request.most, len(trader.events)))]
        return "".join([f"EVENTS {before + 1} {trader.count}\n", *rows]).encode()

    def _plain(self, word: str) -> bytes:
        match word:
            case "PING":
                return b"PONG\n"
            case "SYMBOLS":
                return "".join(f"SYMBOL {symbol}\n" for symbol in self.books).encode()
            case "STATE":
                live = sum(order.is_live for order in self.orders.values())
                return f"STATE {self.index} {self.time_us} {self.events} {self.hash.hex()} {live}\n".encode()
            case _:
                return self.snapshot()

    # ---- all of the state ------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """Lines of JSON, none of which is END. Equal states give equal bytes."""
        head = ["liquibook", SNAPSHOT_VERSION, self.index, self.time_us, self.entered, self.events, self.hash.hex()]
        rows: list[list[Any]] = [head]
        rows += [["book", book.symbol, book.last] for book in self.books.values()]
        for order in self.orders.values():
            rows.append([
                "order", order.number, order.trader, order.id, order.symbol, order.buy, order.quantity, order.price,
                order.stop, order.condition, order.status, order.filled, order.cost, order.entered,
            ])  # fmt: skip
        for name, trader in self.traders.items():
            rows.append(["trader", name, trader.count, list(trader.events)])
            rows += [["id", key, known.crc, known.order, known.reply] for key, known in trader.ids.items()]
        rows.append(["end", len(rows)])
        return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode()

    @classmethod
    def restored(cls, data: bytes) -> Exchange:
        """The exchange whose snapshot this is. Reject: it is none, or not all of one."""
        try:
            rows = [json.loads(line) for line in data.splitlines()]
            if rows[-1] != ["end", len(rows) - 1] or rows[0][:2] != ["liquibook", SNAPSHOT_VERSION]:
                raise malformed("not a snapshot, or of another version")
            made = cls()
            made._take(rows)
            return made
        except (ValueError, TypeError, LookupError) as error:
            raise malformed(f"not a snapshot: {type(error).__name__}") from None

    def _take(self, rows: Sequence[Sequence[Any]]) -> None:
        self.index, self.time_us, self.entered, self.events = rows[0][2:6]
        self.hash = bytes.fromhex(rows[0][6])
        lasts, trader = {}, Trader()
        for kind, *values in rows[1:-1]:
            match kind:
                case "book":
                    self.books[values[0]] = Book(values[0])
                    lasts[values[0]] = values[1]
                case "order":
                    self.orders[values[0]] = Order(*values)
                case "trader":
                    trader = self.traders[values[0]] = Trader(values[1])
                    trader.events.extend(values[2])
                case "id":
                    trader.ids[values[0]] = Outcome(*values[1:])
                case _:
                    raise malformed("not a snapshot: a line of an unknown kind")
        live: dict[str, list[Order]] = {symbol: [] for symbol in self.books}
        for order in sorted(self.orders.values(), key=lambda order: order.entered):
            if order.is_live:
                live[order.symbol].append(order)
        for symbol, book in self.books.items():
            book.restore(live[symbol], lasts[symbol])
