"""FIX 4.4 orders as lines of PROTOCOL.md, and its events as ExecutionReports."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from .fix_wire import Message, timestamp
from .grammar import NAME_BYTES_MAX

NEW, CANCEL, REPLACE, STATUS = "D", "F", "G", "H"
REPORT, CANCEL_REJECT, BUSINESS_REJECT = "8", "9", "j"

NAME = re.compile(rf"[!-~]{{1,{NAME_BYTES_MAX}}}")
PRICE = re.compile(r"-?[0-9]{1,22}(\.[0-9]{0,8})?")  # no exponents in FIX
Body = list[tuple[int, str | int]]

_SIDES = {"1": "BUY", "2": "SELL"}
_SIDE_OF = {word: code for code, word in _SIDES.items()}
_TIMES_IN_FORCE = {"": "", "0": "", "1": "", "3": "IOC", "4": "FOK"}
_REJECT_REASONS = {"symbol": 1, "id": 6, "order": 5}  # OrdRejReason; else 99, other
_CANCEL_REASONS = {"done": 0, "order": 1, "id": 6}  # CxlRejReason
_EXEC_TYPES = {"ACCEPT": "0", "FILL": "F", "CANCEL": "4", "REPLACE": "5", "TRIGGER": "L"}


class Unfit(Exception):
    """A message that no line can be made of. `reason`: SessionRejectReason; `tag`: the field."""

    def __init__(self, tag: int, reason: int, text: str) -> None:
        super().__init__(text)
        self.tag, self.reason, self.text = tag, reason, text


@dataclass(frozen=True, slots=True)
class Terms:
    """An order as STATUS and EVENT tell it."""

    order: str
    id: str
    symbol: str
    side: str
    quantity: int
    limit: str
    stop: str
    condition: str
    status: str
    filled: int
    open: int
    cost: int


@dataclass(frozen=True, slots=True)
class Event:
    number: int
    exec_id: str
    time_us: int
    kind: str
    original: str
    last: int
    at: int
    terms: Terms


def read_event(line: str) -> Event:
    """A line EVENT."""
    words = line.split(" ")
    terms = _read_terms([words[5], words[6], *words[8:18]])
    return Event(int(words[1]), words[2], int(words[3]), words[4], words[7], int(words[18]), int(words[19]), terms)


def read_order(line: str) -> Terms:
    """A line ORDER."""
    return _read_terms(line.split(" ")[1:])


def _read_terms(words: Sequence[str]) -> Terms:
    order, name, symbol, side, quantity, limit, stop, condition, status, filled, left, cost = words
    numbers = int(filled), int(left), int(cost)
    return Terms(order, name, symbol, side, int(quantity), limit, stop, condition, status, *numbers)


class Mapping:
    """For one trader. `decimals`: of prices; the exchange counts in ticks of 10^-decimals."""

    def __init__(self, trader: str, decimals: int) -> None:
        self.trader = trader
        self.decimals = decimals

    # ---- in --------------------------------------------------------------------------------------------------------

    def line(self, message: Message) -> str:
        """The request that the message is; Unfit."""
        match message.type:
            case "D":
                return self._new(message)
            case "F":
                return f"CANCEL {self.trader} {_name(message, 11)} {_name(message, 41)}"
            case "G":
                words = (_name(message, 11), _name(message, 41), _quantity(message), self._limit(message))
                return " ".join(("REPLACE", self.trader, *words))
            case "H":
                return self.status(_name(message, 11))
            case _:
                raise Unfit(35, 11, "unsupported message type")

    def status(self, name: str) -> str:
        return f"STATUS {self.trader} {name}"

    def _new(self, message: Message) -> str:
        side = _SIDES.get(message.get(54))
        if side is None:
            raise Unfit(54, 5 if message.get(54) else 1, "Side is not 1 or 2")
        words = [side, self.trader, _name(message, 11), _name(message, 55), _quantity(message), self._limit(message)]
        if message.get(40) in ("3", "4"):
            words += ["STOP", self._ticks(message, 99)]
        condition = _TIMES_IN_FORCE.get(message.get(59))
        if condition is None:
            raise Unfit(59, 5, "TimeInForce is not 0, 1, 3 or 4")
        if "G" in message.get(18).split(" "):
            condition = {"": "AON", "IOC": "FOK", "FOK": "FOK"}[condition]
        return " ".join([*words, condition] if condition else words)

    def _limit(self, message: Message) -> str:
        match message.get(40):
            case "1" | "3":
                return "MKT"
            case "2" | "4":
                return self._ticks(message, 44)
            case other:
                raise Unfit(40, 5 if other else 1, "OrdType is not 1, 2, 3 or 4")

    def _ticks(self, message: Message, tag: int) -> str:
        text = message.get(tag)
        if not text:
            raise Unfit(tag, 1, "a price is missing")
        if not PRICE.fullmatch(text):
            raise Unfit(tag, 6, "a price is no number")
        ticks = Decimal(text).scaleb(self.decimals)
        if ticks != ticks.to_integral_value():
            raise Unfit(tag, 5, f"a price has at most {self.decimals} decimals")
        return str(int(ticks))

    # ---- out -------------------------------------------------------------------------------------------------------

    def _price(self, ticks: int) -> str:
        return str(Decimal(ticks).scaleb(-self.decimals).quantize(Decimal(1).scaleb(-self.decimals)))

    def _average(self, terms: Terms) -> str:
        """AvgPx: eight decimals more than a price has."""
        if not terms.filled:
            return "0"
        exact = Decimal(terms.cost).scaleb(-self.decimals) / terms.filled
        return f"{exact.quantize(Decimal(1).scaleb(-self.decimals - 8)):f}"

    def _terms(self, terms: Terms) -> Body:
        body: Body = [
            (37, terms.order), (11, terms.id), (55, terms.symbol), (54, _SIDE_OF[terms.side]), (38, terms.quantity),
            (40, _order_type(terms)), (39, _order_status(terms)), (151, terms.open), (14, terms.filled),
            (6, self._average(terms)), (59, {"IOC": "3", "FOK": "4"}.get(terms.condition, "0")),
        ]  # fmt: skip
        if terms.limit != "MKT":
            body.append((44, self._price(int(terms.limit))))
        if terms.stop != "-":
            body.append((99, self._price(int(terms.stop))))
        if terms.condition == "AON":
            body.append((18, "G"))
        return body

    def report(self, event: Event) -> Body:
        """The ExecutionReport of an event."""
        body: Body = [(17, event.exec_id), (150, _EXEC_TYPES[event.kind]), *self._terms(event.terms)]
        if event.original != "-":
            body.append((41, event.original))
        if event.kind == "FILL":
            body += [(32, event.last), (31, self._price(event.at))]
        return [*body, (60, timestamp(event.time_us))]

    def status_report(self, terms: Terms, exec_id: str, now_us: int) -> Body:
        return [(17, exec_id), (150, "I"), *self._terms(terms), (60, timestamp(now_us))]

    def refused(
        self, message: Message, reject: str, about: Terms | None, exec_id: str, now_us: int
    ) -> tuple[str, Body]:
        """What a line REJECT is to whoever sent the message. `about`: the order that it named, if there is one."""
        _, code, text = reject.split(" ", 2)
        if message.type in (CANCEL, REPLACE):
            return CANCEL_REJECT, [
                (37, about.order if about else "NONE"), (11, message.get(11)), (41, message.get(41)),
                (39, _order_status(about) if about else "8"), (434, "1" if message.type == CANCEL else "2"),
                (102, _CANCEL_REASONS.get(code, 99)), (58, text), (60, timestamp(now_us)),
            ]  # fmt: skip
        kind: Body = [(150, "I" if message.type == STATUS else "8"), (39, "8")]
        return REPORT, [
            (37, "NONE"), (11, message.get(11)), (17, exec_id), *kind, (55, message.get(55, "[N/A]")),
            (54, message.get(54, "1")), (38, message.get(38, "0")), (151, 0), (14, 0), (6, 0),
            (103, _REJECT_REASONS.get(code, 99)), (58, text), (60, timestamp(now_us)),
        ]  # fmt: skip


def _name(message: Message, tag: int) -> str:
    value = message.get(tag)
    if not value:
        raise Unfit(tag, 1, "a required field is missing")
    if not NAME.fullmatch(value):
        raise Unfit(tag, 5, f"not 1 to {NAME_BYTES_MAX} printable characters without a blank")
    return value


def _quantity(message: Message) -> str:
    """As a whole number, which FIX may write with decimals."""
    text = message.get(38)
    if not text:
        raise Unfit(38, 1, "OrderQty is missing")
    match = re.fullmatch(r"(-?[0-9]{1,30})(?:\.0*)?", text)
    if match is None:
        raise Unfit(38, 6, "OrderQty is not a whole number")
    return match[1]


def _order_type(terms: Terms) -> str:
    if terms.stop != "-":
        return "3" if terms.limit == "MKT" else "4"
    return "1" if terms.limit == "MKT" else "2"


def _order_status(terms: Terms) -> str:
    match terms.status:
        case "FILLED":
            return "2"
        case "CANCELLED":
            return "4"
        case _:
            return "1" if terms.filled else "0"
