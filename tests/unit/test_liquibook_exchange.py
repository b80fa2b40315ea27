"""Every request of the exchange, every reject, and what the package's engine is not asked for."""

import liquibook
import pytest

from musidecar.protocols.liquibook import exchange as module
from musidecar.protocols.liquibook.exchange import Exchange


@pytest.fixture
def exchange() -> Exchange:
    return Exchange(["AAPL", "MSFT"])


def ask(exchange: Exchange, *requests: str) -> list[str]:
    """The lines of the last one's reply, END left out."""
    for request in requests:
        *lines, end, nothing = exchange.apply(request.encode()).decode().split("\n")
        assert (end, nothing) == ("END", "")
    return lines


def kinds(lines: list[str]) -> list[str]:
    return [line.split()[4] for line in lines]


def status(exchange: Exchange, trader: str, name: str) -> tuple[str, int, int]:
    """Status, filled, open."""
    (line,) = ask(exchange, f"STATUS {trader} {name}")
    words = line.split()
    return words[9], int(words[10]), int(words[11])


# ---- orders --------------------------------------------------------------------------------------------------------


def test_a_limit_order_rests_and_is_met(exchange: Exchange) -> None:
    assert ask(exchange, "BUY alice a1 AAPL 100 850") == [
        "EVENT 1 1.1 0 ACCEPT 1 a1 - AAPL BUY 100 850 - - OPEN 0 100 0 0 0"
    ]
    assert ask(exchange, "SELL bob b1 AAPL 40 840") == [
        "EVENT 1 2.1 0 ACCEPT 2 b1 - AAPL SELL 40 840 - - OPEN 0 40 0 0 0",
        "EVENT 2 2.2 0 FILL 2 b1 - AAPL SELL 40 840 - - FILLED 40 0 34000 40 850",
    ]
    assert ask(exchange, "EVENTS alice 1") == [
        "EVENTS 1 2",
        "EVENT 2 2.3 0 FILL 1 a1 - AAPL BUY 100 850 - - OPEN 40 60 34000 40 850",
    ]
    assert ask(exchange, "STATUS alice a1") == ["ORDER 1 a1 AAPL BUY 100 850 - - OPEN 40 60 34000"]
    assert ask(exchange, "DEPTH AAPL") == ["BID 850 60 1", "LAST 850"]
    assert ask(exchange, "DEPTH MSFT") == ["LAST -"]


def test_price_comes_before_time_and_time_before_size(exchange: Exchange) -> None:
    ask(exchange, "BUY a first AAPL 1 10", "BUY a second AAPL 9 10", "BUY a better AAPL 1 11", "SELL b s AAPL 3 MKT")
    fills = [line.split() for line in ask(exchange, "EVENTS a 3")[1:]]
    assert [(words[6], words[18], words[19]) for words in fills] == [
        ("better", "1", "11"),
        ("first", "1", "10"),
        ("second", "1", "10"),
    ]


def test_a_market_order_does_not_rest(exchange: Exchange) -> None:
    assert kinds(ask(exchange, "BUY a m1 AAPL 5 MKT")) == ["ACCEPT", "CANCEL"]
    assert kinds(ask(exchange, "SELL b s AAPL 3 10", "BUY a m2 AAPL 5 MKT")) == ["ACCEPT", "FILL", "CANCEL"]
    assert status(exchange, "a", "m2") == ("CANCELLED", 3, 0)
    assert ask(exchange, "DEPTH AAPL") == ["LAST 10"]


def test_immediate_or_cancel(exchange: Exchange) -> None:
    assert kinds(ask(exchange, "SELL b s AAPL 3 10", "BUY a i AAPL 5 10 IOC")) == ["ACCEPT", "FILL", "CANCEL"]
    assert status(exchange, "a", "i") == ("CANCELLED", 3, 0)


def test_fill_or_kill(exchange: Exchange) -> None:
    assert kinds(ask(exchange, "SELL b s AAPL 3 10", "BUY a f1 AAPL 5 10 FOK")) == ["ACCEPT", "CANCEL"]
    assert status(exchange, "b", "s") == ("OPEN", 0, 3)
    assert kinds(ask(exchange, "BUY a f2 AAPL 3 10 FOK")) == ["ACCEPT", "FILL"]


def test_all_or_none_waits_for_enough(exchange: Exchange) -> None:
    ask(exchange, "SELL b s1 AAPL 3 10")
    assert kinds(ask(exchange, "BUY a all AAPL 5 10 AON")) == ["ACCEPT"]
    assert status(exchange, "a", "all") == ("OPEN", 0, 5)
    assert kinds(ask(exchange, "SELL b s2 AAPL 2 9")) == ["ACCEPT", "FILL", "FILL"]
    assert status(exchange, "a", "all") == ("FILLED", 5, 0)


def test_a_stop_waits_for_its_price(exchange: Exchange) -> None:
    ask(exchange, "SELL b s1 AAPL 1 100", "SELL b s2 AAPL 9 106", "SELL b s3 AAPL 9 120")
    assert kinds(ask(exchange, "BUY a high AAPL 1 MKT STOP 110")) == ["ACCEPT"]
    assert kinds(ask(exchange, "BUY a low AAPL 2 107 STOP 105")) == ["ACCEPT"]
    assert kinds(ask(exchange, "BUY a x AAPL 1 100")) == ["ACCEPT", "FILL"]
    assert status(exchange, "a", "low") == ("HELD", 0, 2)
    # A trade at 106 reaches the stop at 105, not the one at 110.
    assert kinds(ask(exchange, "BUY a y AAPL 1 106")) == ["ACCEPT", "FILL", "TRIGGER", "FILL"]
    assert status(exchange, "a", "low") == ("FILLED", 2, 0)
    assert status(exchange, "a", "high") == ("HELD", 0, 1)


def test_one_stop_may_reach_another_and_the_older_goes_first(exchange: Exchange) -> None:
    ask(exchange, "BUY b b1 AAPL 1 100", "BUY b b2 AAPL 1 90", "BUY b b3 AAPL 2 80")
    ask(exchange, "SELL a s1 AAPL 1 MKT STOP 95", "SELL a s2 AAPL 1 MKT STOP 100", "SELL a s3 AAPL 1 MKT STOP 100")
    told = [line.split() for line in ask(exchange, "SELL a go AAPL 1 100")]
    assert [(words[4], words[6]) for words in told[2:]] == [
        ("TRIGGER", "s2"),
        ("FILL", "s2"),
        ("TRIGGER", "s3"),
        ("FILL", "s3"),
        ("TRIGGER", "s1"),
        ("FILL", "s1"),
    ]


def test_a_stop_whose_price_was_reached_enters_at_once(exchange: Exchange) -> None:
    ask(exchange, "SELL b s AAPL 5 100", "BUY a x AAPL 1 100")
    assert kinds(ask(exchange, "BUY a y AAPL 1 MKT STOP 99")) == ["ACCEPT", "TRIGGER", "FILL"]
    assert kinds(ask(exchange, "BUY a z AAPL 9 100 STOP 99 IOC")) == ["ACCEPT", "TRIGGER", "FILL", "CANCEL"]


def test_a_cancel(exchange: Exchange) -> None:
    assert ask(exchange, "BUY a o AAPL 5 10", "CANCEL a c o") == [
        "EVENT 2 2.1 0 CANCEL 1 c o AAPL BUY 5 10 - - CANCELLED 0 0 0 5 0"
    ]
    assert ask(exchange, "DEPTH AAPL") == ["LAST -"]
    assert kinds(ask(exchange, "SELL a h AAPL 5 10 STOP 5", "CANCEL a c2 h")) == ["CANCEL"]
    ask(exchange, "BUY b t1 AAPL 1 4", "SELL b t2 AAPL 1 4")
    assert status(exchange, "a", "h") == ("CANCELLED", 0, 0)


def test_a_replacement_goes_to_the_end_and_may_trade(exchange: Exchange) -> None:
    ask(exchange, "BUY a o1 AAPL 5 10", "BUY a o2 AAPL 5 10", "SELL b s0 AAPL 2 10")
    assert ask(exchange, "REPLACE a o1r o1 7 10") == [
        "EVENT 4 4.1 0 REPLACE 1 o1r o1 AAPL BUY 7 10 - - OPEN 2 5 20 0 0"
    ]
    ask(exchange, "SELL b s1 AAPL 5 10")
    assert status(exchange, "a", "o2") == ("FILLED", 5, 0)
    assert status(exchange, "a", "o1") == status(exchange, "a", "o1r") == ("OPEN", 2, 5)
    ask(exchange, "SELL b s2 AAPL 9 12")
    assert kinds(ask(exchange, "REPLACE a again o1 8 12")) == ["REPLACE", "FILL"]
    assert status(exchange, "a", "again") == ("FILLED", 8, 0)


def test_a_held_stop_is_replaced(exchange: Exchange) -> None:
    assert kinds(ask(exchange, "BUY a o AAPL 5 10 STOP 8", "REPLACE a r o 6 11")) == ["REPLACE"]
    assert ask(exchange, "STATUS a r") == ["ORDER 1 r AAPL BUY 6 11 8 - HELD 0 6 0"]
    ask(exchange, "SELL b s AAPL 7 8", "BUY b t AAPL 1 8")
    assert status(exchange, "a", "o") == ("FILLED", 6, 0)


# ---- ids, stamps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", ["SELL b s AAPL 3 10", "CANCEL a c o", "REPLACE a r o 9 10"])
def test_a_duplicate_gets_the_stored_reply(exchange: Exchange, request_: str) -> None:
    ask(exchange, "BUY a o AAPL 5 10")
    first = ask(exchange, request_)
    before = exchange.snapshot()
    assert ask(exchange, request_) == first
    assert exchange.snapshot() == before
    assert ask(exchange, f"@99 5 {request_}") == first
    assert ask(exchange, "STATE")[0].split()[1:3] == ["99", "5"]


def test_an_id_is_its_traders_own(exchange: Exchange) -> None:
    assert kinds(ask(exchange, "BUY a same AAPL 1 10", "BUY b same AAPL 1 10")) == ["ACCEPT"]
    assert kinds(ask(exchange, "CANCEL b c same")) == ["CANCEL"]
    assert status(exchange, "a", "same") == ("OPEN", 0, 1)


def test_stamps_are_in_the_events(exchange: Exchange) -> None:
    assert ask(exchange, "@17 1700000000000001 BUY a o AAPL 1 10")[0].split()[1:6] == [
        "1", "17.1", "1700000000000001", "ACCEPT", "17",
    ]  # fmt: skip
    # Without one the index goes on and time stands still.
    assert ask(exchange, "BUY a p AAPL 1 10")[0].split()[2:4] == ["18.1", "1700000000000001"]
    assert ask(exchange, "@18 1700000000000002 BUY a q AAPL 1 10") == ["REJECT stale index 18 has been applied"]


def test_rolling_forgets_what_is_done_and_nothing_else(exchange: Exchange) -> None:
    ask(exchange, "BUY a done AAPL 1 10", "SELL b s AAPL 3 10", "CANCEL b c s", "BUY a live AAPL 2 9")
    assert ask(exchange, "ROLL") == ["ROLLED 2"]
    assert ask(exchange, "STATUS a done") == ["REJECT order a has no order done"]
    assert status(exchange, "a", "live") == ("OPEN", 0, 2)
    assert ask(exchange, "EVENTS a 0")[0] == "EVENTS 1 3"


def test_of_the_events_the_last_are_kept(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_KEPT", 3)
    ask(exchange, *(f"BUY a o{i} AAPL 1 1" for i in range(5)))
    assert [line.split()[1] for line in ask(exchange, "EVENTS a 0")] == ["3", "3", "4", "5"]
    assert [line.split()[1] for line in ask(exchange, "EVENTS a 3 1")] == ["3", "4"]
    assert ask(exchange, "EVENTS a 9") == ["EVENTS 3 5"]
    assert ask(exchange, "EVENTS nobody 0") == ["EVENTS 1 0"]


def test_the_rest(exchange: Exchange) -> None:
    assert ask(exchange, "PING") == ["PONG"]
    assert ask(exchange, "SYMBOLS") == ["SYMBOL AAPL", "SYMBOL MSFT"]
    assert ask(exchange, "STATE") == [f"STATE 0 0 0 {'00' * 16} 0"]
    ask(exchange, *(f"BUY a o{i} AAPL 1 {i}" for i in range(1, 9)), *(f"SELL a s{i} AAPL 2 {i}" for i in range(10, 19)))
    assert ask(exchange, "DEPTH AAPL 2") == ["BID 8 1 1", "BID 7 1 1", "ASK 10 2 1", "ASK 11 2 1", "LAST -"]
    assert len(ask(exchange, "DEPTH AAPL")) == 11


# ---- rejects -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ("", "malformed"),
        ("WHAT", "malformed"),
        ("buy a x AAPL 1 1", "malformed"),
        ("BUY a x AAPL 1", "malformed"),
        ("BUY a  x AAPL 1 1", "malformed"),
        (" BUY a x AAPL 1 1", "malformed"),
        ("BUY a x AAPL 1 1 ", "malformed"),
        ("BUY a x AAPL 1 1\r", "malformed"),
        ("BUY a x\0 AAPL 1 1", "malformed"),
        ("BUY a é AAPL 1 1", "malformed"),
        ("BUY a x AAPL one 1", "malformed"),
        ("BUY a x AAPL 1.5 1", "malformed"),
        ("BUY a x AAPL +1 1", "malformed"),
        ("BUY a x AAPL 1 1 STOP", "malformed"),
        ("BUY a x AAPL 1 1 STOP 1 STOP", "malformed"),
        ("BUY a x AAPL 1 1 AON IOC", "malformed"),
        ("BUY a x AAPL 1 1 AON STOP 1", "malformed"),
        ("BUY a x AAPL 1 1 SOON", "malformed"),
        (f"BUY a {'x' * 65} AAPL 1 1", "malformed"),
        (f"PING {'x' * 1024}", "malformed"),
        ("CANCEL a c", "malformed"),
        ("REPLACE a r o 1", "malformed"),
        ("ROLL on", "malformed"),
        ("DEPTH AAPL 0", "malformed"),
        ("EVENTS a", "malformed"),
        ("EVENTS a -1", "malformed"),
        ("@5 BUY a x AAPL 1 1", "malformed"),
        ("@0 0 BUY a x AAPL 1 1", "malformed"),
        ("@x 0 BUY a x AAPL 1 1", "malformed"),
        ("@5 0 PING", "malformed"),
        ("@5 0 @6 0 BUY a x AAPL 1 1", "malformed"),
        (f"@{2**63} 0 BUY a x AAPL 1 1", "malformed"),
        ("BUY a x AAPL 0 1", "quantity"),
        ("BUY a x AAPL -5 1", "quantity"),
        (f"BUY a x AAPL {2**31} 1", "quantity"),
        ("REPLACE a r o 0 1", "quantity"),
        ("REPLACE a r part 3 10", "quantity"),
        ("BUY a x AAPL 1 0", "price"),
        ("BUY a x AAPL 1 -1", "price"),
        (f"BUY a x AAPL 1 {10**15 + 1}", "price"),
        (f"BUY a x AAPL 1 {10**40}", "price"),
        ("BUY a x AAPL 1 1 STOP 0", "price"),
        ("REPLACE a r o 5 MKT", "price"),
        ("BUY a x NONE 1 1", "symbol"),
        ("DEPTH NONE", "symbol"),
        ("CANCEL a c never", "order"),
        ("REPLACE a r never 1 1", "order"),
        ("STATUS a never", "order"),
        ("CANCEL mallory c o", "order"),
        ("REPLACE mallory r o 1 1", "order"),
        ("CANCEL a c done", "done"),
        ("REPLACE a r done 9 1", "done"),
        ("BUY a o AAPL 6 10", "id"),
        ("CANCEL a o o", "id"),
    ],
)
def test_rejects(exchange: Exchange, request_: str, code: str) -> None:
    ask(exchange, "SELL a done AAPL 1 12", "CANCEL a c0 done", "SELL a part AAPL 9 11", "BUY b x AAPL 3 11")
    ask(exchange, "BUY a o AAPL 5 10")
    before = exchange.snapshot()
    (line,) = ask(exchange, request_)
    assert line.split()[:2] == ["REJECT", code], line
    assert exchange.snapshot() == before


def test_the_largest_quantity_and_price(exchange: Exchange) -> None:
    most, price = 2**31 - 1, 10**15
    ask(exchange, f"SELL a s AAPL {most} {price}")
    assert ask(exchange, f"BUY b b AAPL {most} {price}")[1].endswith(f"FILLED {most} 0 {most * price} {most} {price}")


# ---- snapshots -----------------------------------------------------------------------------------------------------


def test_orders_that_cross_and_did_not_meet_are_restored_so(exchange: Exchange) -> None:
    """All-or-none orders that nothing has looked at again since what stood in their way was cancelled."""
    ask(exchange, "BUY a b60 AAPL 60 110 AON", "BUY a b70 AAPL 70 109 AON", "BUY a b30 AAPL 30 108")
    assert kinds(ask(exchange, "SELL b all AAPL 100 105 AON")) == ["ACCEPT"]
    assert kinds(ask(exchange, "CANCEL a c b60")) == ["CANCEL"]
    other = Exchange.restored(exchange.snapshot())
    assert other.books["AAPL"].standing() == exchange.books["AAPL"].standing()
    for request in ("BUY a more AAPL 1 107", "SELL b rest AAPL 7 1", "BUY a end AAPL 999 MKT"):
        assert ask(other, request) == ask(exchange, request)
    assert other.snapshot() == exchange.snapshot()


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]\n", b"[1]\n[2]\n", b"END\n", b"\xff"])
def test_what_is_no_snapshot_is_rejected(damage: bytes) -> None:
    with pytest.raises(module.Reject):
        Exchange.restored(damage)


def test_a_snapshot_that_was_cut_is_rejected(exchange: Exchange) -> None:
    ask(exchange, "BUY a o AAPL 5 10", "SELL b s AAPL 5 10")
    lines = exchange.snapshot().splitlines(keepends=True)
    for cut in range(len(lines)):
        with pytest.raises(module.Reject):
            Exchange.restored(b"".join(lines[:cut]))


# ---- why some of the engine is not used: as soon as one of these fails, it may be ------------------------------------


class Fills(liquibook.OrderListener):
    def __init__(self) -> None:
        super().__init__()
        self.prices: list[int] = []

    def on_fill(self, _first: object, _second: object, _quantity: int, price: int) -> None:
        self.prices.append(price)

    def nothing(self, *_: object) -> None:
        pass

    on_accept = on_reject = on_cancel = on_cancel_reject = on_replace = on_replace_reject = on_trigger_stop = nothing


def engine() -> tuple[liquibook.liquibook_book_OrderBook, Fills]:
    book, fills = liquibook.liquibook_book_OrderBook(), Fills()
    book.set_order_listener(fills)
    return book, fills


def test_the_engines_stop_waits_for_the_one_in_front_of_it() -> None:
    book, fills = engine()
    book.set_market_price(100)
    high, low = liquibook.SimpleOrder(True, 120, 1, 110), liquibook.SimpleOrder(True, 120, 1, 105)
    for order in (high, low):
        book.add(order)
    book.add(liquibook.SimpleOrder(False, 106, 9))
    book.add(liquibook.SimpleOrder(True, 106, 1))
    assert fills.prices == [106], "the stop at 105 was let through: the engine has been mended"


def test_the_engines_replacement_trades_at_the_old_price() -> None:
    book, fills = engine()
    waiting = liquibook.SimpleOrder(False, 105, 100)
    book.add(waiting, liquibook.oc_all_or_none)
    book.add(liquibook.SimpleOrder(True, 106, 50))
    order = liquibook.SimpleOrder(True, 90, 50)
    book.add(order)
    book.replace(order, 0, 106)
    assert fills.prices == [106, 90], "none below 105, where the seller's limit is: the engine has been mended"
