"""One symbol's book: the engine of the package `liquibook`, and what it does not tell about the orders in it.

Of the engine the plain order book is used. Three of its rooms are not, and why:

* Its stop orders. It looks only at the one it put in front: a stop to buy at 105 waits until the price has passed
  another at 110, and one that comes before the first trade is let through at once. Here stops wait outside, and enter
  the book as ordinary orders when a trade at their price, or beyond, has been seen.
* Its `replace`. Trades of the new order may be made at the old price, where an all-or-none order waits on the other
  side. To replace is to cancel and to add: the engine's own puts the order at the end of its queue, too.
* Market orders that rest. They would be given whatever price the last trade had: what a market order does not get at
  once is cancelled.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import liquibook

from .grammar import MARKET

OPEN, HELD, FILLED, CANCELLED = "OPEN", "HELD", "FILLED", "CANCELLED"

_CONDITIONS = {
    "-": liquibook.oc_no_conditions,
    "AON": liquibook.oc_all_or_none,
    "IOC": liquibook.oc_immediate_or_cancel,
    "FOK": liquibook.oc_fill_or_kill,
}


@dataclass(slots=True, eq=False)
class Order:
    """An order of a trader. `number`: where it was accepted; `entered`: its place among all that rest or wait."""

    number: int
    trader: str
    id: str  # the last accepted of its ids
    symbol: str
    buy: bool
    quantity: int
    price: int
    stop: int
    condition: str
    status: str = OPEN
    filled: int = 0
    cost: int = 0
    entered: int = 0
    engine: Any = None  # the engine's order, while it is in there

    @property
    def open(self) -> int:
        return self.quantity - self.filled if self.status in (OPEN, HELD) else 0

    @property
    def is_live(self) -> bool:
        return self.status in (OPEN, HELD)

    @property
    def rests(self) -> bool:
        """Whether it waits in the book for what it did not get."""
        return self.price != MARKET and self.condition in ("-", "AON")


@dataclass(frozen=True, slots=True)
class Fill:
    """`first` met `second`, which stood in the book."""

    first: Order
    second: Order
    quantity: int
    price: int


class _Listener(liquibook.OrderListener):  # type: ignore[misc]
    """Notes what the engine says. It must not raise: the engine would go on, with an event less."""

    def __init__(self) -> None:
        super().__init__()
        self.fills: list[tuple[int, int, int, int]] = []

    def on_fill(self, first: Any, second: Any, quantity: int, price: int) -> None:
        self.fills.append((first.order_id_, second.order_id_, quantity, price))

    def _nothing(self, *_: object) -> None:
        pass

    on_accept = on_reject = on_cancel = on_cancel_reject = on_replace = on_replace_reject = on_trigger_stop = _nothing


class Book:
    """The orders of one symbol. Whoever calls tells traders and counts `entered`."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.last = 0  # price of the last trade; 0: none yet
        self.levels: dict[bool, dict[int, list[int]]] = {True: {}, False: {}}  # side -> price -> [quantity, orders]
        self._engine = liquibook.liquibook_book_OrderBook()
        self._listener = _Listener()
        self._engine.set_order_listener(self._listener)
        self._by_engine: dict[int, Order] = {}  # by the engine's own counter, which differs from process to process
        self._stops: dict[bool, list[tuple[int, int, Order]]] = {True: [], False: []}

    # ---- the engine ------------------------------------------------------------------------------------------------

    def submit(self, order: Order) -> list[Fill]:
        """Give it to the engine. It rests with what is left, or (not `rests`) that is to be cancelled by the caller."""
        order.status = OPEN
        inside = liquibook.SimpleOrder(order.buy, order.price, order.open)
        self._by_engine[inside.order_id_] = order
        condition = _CONDITIONS[order.condition]
        if order.price == MARKET:
            condition |= liquibook.oc_immediate_or_cancel
        self._engine.add(inside, condition)
        fills = self._collect()
        if order.open and order.rests:
            order.engine = inside
            self._level(order, order.open, 1)
        else:
            del self._by_engine[inside.order_id_]
        return fills

    def _collect(self) -> list[Fill]:
        """The fills of one call, done to the orders."""
        told, self._listener.fills = self._listener.fills, []
        fills = []
        for first, second, quantity, price in told:
            fill = Fill(self._by_engine[first], self._by_engine[second], quantity, price)
            for order in (fill.first, fill.second):
                order.filled += quantity
                order.cost += quantity * price
                done = order.filled == order.quantity
                if order.engine is not None:
                    self._level(order, -quantity, -done)
                if done:
                    order.status = FILLED
            fills.append(fill)
            self.last = price
        for fill in fills:
            for order in (fill.first, fill.second):
                if order.status == FILLED and order.engine is not None:
                    self._forget(order)
        return fills

    def withdraw(self, order: Order) -> None:
        """Take it out: of the engine, or of the stops. Its status is the caller's."""
        if order.engine is not None:
            self._level(order, -order.open, -1)
            self._engine.cancel(order.engine)
            self._forget(order)

    def _forget(self, order: Order) -> None:
        del self._by_engine[order.engine.order_id_]
        order.engine = None

    def _level(self, order: Order, quantity: int, orders: int) -> None:
        side = self.levels[order.buy]
        level = side.setdefault(order.price, [0, 0])
        level[0] += quantity
        level[1] += orders
        if not level[1]:
            del side[order.price]

    # ---- stops -----------------------------------------------------------------------------------------------------

    def is_reached(self, order: Order) -> bool:
        """Whether the last trade's price is at its stop price, or beyond."""
        return self.last != 0 and (self.last >= order.stop if order.buy else self.last <= order.stop)

    def hold(self, order: Order) -> None:
        order.status = HELD
        heapq.heappush(self._stops[order.buy], (order.stop if order.buy else -order.stop, order.entered, order))

    def reached(self, fills: Iterable[Fill]) -> list[Order]:
        """The stop orders that these trades reach, taken out of those that wait, the oldest first."""
        found = []
        for fill in fills:
            for side, price in ((self._stops[True], fill.price), (self._stops[False], -fill.price)):
                while side and side[0][0] <= price:
                    _, entered, order = heapq.heappop(side)
                    if order.status == HELD and order.entered == entered:  # else cancelled, or replaced since
                        found.append(order)
        return sorted(found, key=lambda order: order.entered)

    # ---- a book anew -----------------------------------------------------------------------------------------------

    def restore(self, orders: Iterable[Order], last: int) -> None:
        """Into an empty book: live orders in the order of `entered`.

        The engine would match as it adds, and all-or-none orders may rest although they cross: which of them met what
        depends on what has been there meanwhile. So each enters as a market order and is moved to its key by a
        replacement that its own object does not learn of. As long as no object has a price, there is none to trade at.
        Then all objects get theirs. The engine keeps orders of one key in the order in which they came.
        """
        for order in orders:
            if order.status == HELD:
                self.hold(order)
                continue
            inside = liquibook.SimpleOrder(order.buy, MARKET, order.open)
            self._by_engine[inside.order_id_] = order
            order.engine = inside
            self._engine.add(inside, _CONDITIONS[order.condition])
            self._engine.replace(inside, 0, order.price)
            self._level(order, order.open, 1)
        if self._listener.fills:
            raise RuntimeError(f"{self.symbol}: the engine traded while its book was restored")
        for order in self._by_engine.values():
            order.engine.accept()  # only then it takes a price
            order.engine.replace(0, order.price)
        self.last = last

    def standing(self) -> dict[bool, list[tuple[int, int, int]]]:
        """What the engine itself has, best first: per side (price, order number, open quantity). For checks."""
        sides: dict[bool, list[tuple[int, int, int]]] = {}
        for buy, side in ((True, self._engine.bids()), (False, self._engine.asks())):
            at, rows = side.begin(), []
            while at != side.end():
                key, tracker = at.value()
                rows.append((key.price(), self._by_engine[tracker.ptr().order_id_].number, tracker.open_qty()))
                at.incr()
            sides[buy] = rows
        return sides
