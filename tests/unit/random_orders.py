"""Requests of all kinds to an exchange, random but the same for the same seed, and what must hold of its answers."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator

from musidecar.protocols.liquibook.exchange import Exchange

SYMBOLS = ("AAPL", "MSFT", "IBM")
TRADERS = ("alice", "bob", "carol", "dave")
MIDDLE, SPREAD = 1000, 12  # prices: few, so that levels are deep
REMEMBERED = 400  # the ids that requests name; what is older is cancelled, so that books do not grow for ever


class Orders:
    """An endless stream of lines. Some are resent, some are wrong: an unknown symbol, another's order, nonsense. Where
    there are several streams, each has a `prefix` for its ids."""

    def __init__(self, seed: int, prefix: str = "") -> None:
        self.dice = random.Random(seed)
        self.prefix = prefix
        self.count = 0
        self.names: list[tuple[str, str]] = []  # trader, id
        self.sent: list[str] = []

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield self.line().encode()

    def line(self) -> str:
        dice = self.dice
        kind = dice.random()
        self.count += 1
        if len(self.names) > REMEMBERED:
            trader, original = self.names.pop(0)
            line = f"CANCEL {trader} {self.prefix}c{self.count} {original}"
        elif kind < 0.62 or not self.names:
            line = self._new()
        elif kind < 0.76:
            trader, original = dice.choice(self.names)
            line = f"CANCEL {trader} {self.prefix}c{self.count} {original}"
        elif kind < 0.90:
            trader, original = dice.choice(self.names)
            price = self._price() if dice.random() < 0.95 else "MKT"
            line = f"REPLACE {trader} {self.prefix}r{self.count} {original} {dice.randint(1, 60)} {price}"
            self.names.append((trader, f"{self.prefix}r{self.count}"))
        elif kind < 0.95 and self.sent:
            return dice.choice(self.sent)
        else:
            return self._wrong()
        self.sent.append(line)
        del self.sent[:-REMEMBERED]
        return line

    def _price(self) -> str:
        return str(MIDDLE + self.dice.randint(-SPREAD, SPREAD))

    def _new(self) -> str:
        dice, trader, name = self.dice, self.dice.choice(TRADERS), f"{self.prefix}n{self.count}"
        words = [dice.choice(("BUY", "SELL")), trader, name, dice.choice(SYMBOLS), str(dice.randint(1, 50))]
        words.append("MKT" if dice.random() < 0.08 else self._price())
        if dice.random() < 0.12:
            words += ["STOP", self._price()]
        if dice.random() < 0.3:
            words.append(dice.choice(("AON", "AON", "IOC", "FOK")))
        self.names.append((trader, name))
        return " ".join(words)

    def _wrong(self) -> str:
        trader, name = self.dice.choice(self.names)
        return self.dice.choice((
            f"BUY {trader} {self.prefix}w{self.count} NONE 1 1", f"CANCEL mallory {self.prefix}w{self.count} {name}",
            f"BUY {trader} w AAPL 0 5", f"SELL {trader} w AAPL 5 -1", f"BUY {trader} {name} AAPL 49 1", "WHAT", "",
            f"REPLACE {trader} w {name} 1 9 9", f"STATUS {trader} {name}", "DEPTH AAPL", f"EVENTS {trader} 0 3",
        ))  # fmt: skip


class Watcher:
    """Follows an exchange by its events alone, and checks them: prices within limits, quantities that add up."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.bought: dict[str, int] = defaultdict(int)
        self.sold: dict[str, int] = defaultdict(int)
        self.seen: dict[str, int] = defaultdict(int)
        self.fills = 0

    def look(self) -> None:
        """At the events since the last look, of which there may not be more than are kept."""
        for name, trader in self.exchange.traders.items():
            fresh = trader.count - self.seen[name]
            assert fresh <= len(trader.events)
            for i in range(len(trader.events) - fresh, len(trader.events)):
                self._check(trader.events[i].split())
            self.seen[name] = trader.count

    def _check(self, words: list[str]) -> None:
        kind, symbol, side, quantity, limit = words[4], words[8], words[9], int(words[10]), words[11]
        status, filled, left, last, at = words[14], int(words[15]), int(words[16]), int(words[18]), int(words[19])
        assert left in (quantity - filled, 0) and 0 <= filled <= quantity
        assert (left == 0) == (status in ("FILLED", "CANCELLED")), words
        if kind != "FILL":
            return
        self.fills += 1
        assert last > 0 and at > 0
        if limit != "MKT":
            assert at <= int(limit) if side == "BUY" else at >= int(limit), words
        (self.bought if side == "BUY" else self.sold)[symbol] += last

    def settle(self) -> None:
        """What must hold between requests: the engine has what the tables say, and nobody holds what he must not."""
        assert self.bought == self.sold
        for book in self.exchange.books.values():
            live = [order for order in self.exchange.orders.values() if order.is_live and order.symbol == book.symbol]
            resting = [order for order in live if order.engine is not None]
            held = [order for order in live if order.status == "HELD"]
            assert len(resting) + len(held) == len(live)
            assert all(order.stop and order.engine is None for order in held)
            assert all(order.rests and order.open for order in resting)
            assert not any(order.filled for order in live if order.condition == "AON")
            plain = {buy: [o.price for o in resting if o.buy == buy and o.condition == "-"] for buy in (True, False)}
            assert not all(plain.values()) or max(plain[True]) < min(plain[False])
            for buy, side in book.standing().items():
                mine = sorted(
                    (order for order in resting if order.buy == buy),
                    key=lambda order: (-order.price if order.buy else order.price, order.entered),
                )
                assert side == [(order.price, order.number, order.open) for order in mine]
                levels: dict[int, list[int]] = {}
                for order in mine:
                    level = levels.setdefault(order.price, [0, 0])
                    level[0] += order.open
                    level[1] += 1
                assert book.levels[buy] == levels
