"""FIX clients against a real liquibookd: what they send is done, once, and each is told of all that is its own."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from musidecar.protocols.liquibook.driver import Connection, spawn
from tests.unit.fix_client import SENDING, Peer
from tests.unit.fix_port import Client, Exchange

BUY, SELL = "1", "2"


@pytest.fixture
def exchange(folder: Path, free_port: int) -> Iterator[Exchange]:
    made = Exchange(folder, free_port)
    yield made
    made.close()


@pytest.fixture
def alice(exchange: Exchange) -> Iterator[Client]:
    with Client(exchange.fix_port(), Peer("alice")) as client:
        client.log_on()
        yield client


@pytest.fixture
def bob(exchange: Exchange, alice: Client) -> Iterator[Client]:
    with Client(exchange.ports[0], Peer("bob")) as client:
        client.log_on()
        yield client


def test_two_clients_trade(alice: Client, bob: Client) -> None:
    alice.send(alice.peer.order("a1", BUY, 100, "10.50"))
    new = alice.report("0")
    assert [new.get(tag) for tag in (11, 37, 17, 39, 55, 54, 38, 44, 151, 14, 6)] == [
        "a1", "1", "1.1", "0", "AAPL", "1", "100", "10.50", "100", "0", "0",
    ]  # fmt: skip
    bob.send(bob.peer.order("b1", SELL, 30, "10.25"), bob.peer.order("b2", SELL, 30, "10.49"))
    assert bob.report("F").get(39) == bob.report("F").get(39) == "2"
    first, second = alice.report("F"), alice.report("F")
    assert [first.get(tag) for tag in (11, 17, 39, 32, 31, 151, 14, 6)] == [
        "a1", "2.3", "1", "30", "10.50", "70", "30", "10.5000000000",
    ]  # fmt: skip
    assert second.get(14) == "60"


def test_the_time_is_the_records(exchange: Exchange, alice: Client) -> None:
    exchange.ask("@7 1700000000123456 BUY alice t1 AAPL 1 100")
    report = alice.report("0")
    assert (report.get(60), report.get(17)) == ("20231114-22:13:20.123456", "7.1")


def test_replace_cancel_status(alice: Client, bob: Client) -> None:
    alice.send(alice.peer.order("o", BUY, 10, "10"))
    alice.send(alice.peer.say("G", (11, "r"), (41, "o"), (55, "AAPL"), (54, BUY), (38, 20), (40, "2"), (44, "10.1")))
    replaced = alice.report("5")
    assert [replaced.get(tag) for tag in (11, 41, 37, 39, 38, 44)] == ["r", "o", "1", "0", "20", "10.10"]
    bob.send(bob.peer.order("s", SELL, 5, "10"))
    alice.report("F")
    alice.send(alice.peer.say("H", (11, "r"), (55, "AAPL"), (54, BUY)))
    status = alice.report("I")
    assert [status.get(tag) for tag in (39, 14, 151)] == ["1", "5", "15"]
    alice.send(alice.peer.say("F", (11, "c"), (41, "r"), (55, "AAPL"), (54, BUY)))
    cancelled = alice.report("4")
    assert [cancelled.get(tag) for tag in (11, 41, 39, 151, 14)] == ["c", "r", "4", "0", "5"]


def test_all_kinds_of_orders(alice: Client, bob: Client) -> None:
    bob.send(bob.peer.order("s", SELL, 5, "10"), bob.peer.order("s2", SELL, 5, "12"))
    bob.report("0"), bob.report("0")
    head = ((55, "AAPL"), (54, BUY), (60, SENDING))
    alice.send(
        alice.peer.say("D", (11, "fok"), *head, (38, 9), (40, "2"), (44, "10"), (59, "4")),
        alice.peer.say("D", (11, "aon"), *head, (38, 9), (40, "2"), (44, "11"), (18, "G")),
        alice.peer.say("D", (11, "stop"), *head, (38, 1), (40, "3"), (99, "10")),
        alice.peer.say("D", (11, "ioc"), *head, (38, 2), (40, "2"), (44, "10"), (59, "3")),
        alice.peer.say("D", (11, "limit"), *head, (38, 1), (40, "4"), (44, "9"), (99, "11")),
        alice.peer.say("D", (11, "market"), *head, (38, 2), (40, "1")),
    )
    told = [alice.of_type("8") for _ in range(11)]
    assert [(report.get(11), report.get(150)) for report in told] == [
        ("fok", "0"), ("fok", "4"), ("aon", "0"), ("stop", "0"), ("ioc", "0"), ("ioc", "F"),
        ("stop", "L"), ("stop", "F"), ("limit", "0"), ("market", "0"), ("market", "F"),
    ]  # fmt: skip
    assert [report.get(40) for report in told if report.get(150) == "0"] == ["2", "2", "3", "2", "4", "1"]
    assert told[2].get(18) == "G" and told[3].get(99) == "10.00"


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("D", [(11, "x"), (55, "NONE"), (54, "1"), (38, "1"), (40, "2"), (44, "1")], "1"),
        ("D", [(11, "x"), (55, "AAPL"), (54, "1"), (38, "0"), (40, "2"), (44, "1")], "99"),
        ("D", [(11, "x"), (55, "AAPL"), (54, "1"), (38, "-5"), (40, "2"), (44, "1")], "99"),
        ("D", [(11, "x"), (55, "AAPL"), (54, "1"), (38, "1"), (40, "2"), (44, "0")], "99"),
        ("D", [(11, "x"), (55, "AAPL"), (54, "1"), (38, "1"), (40, "2"), (44, "1" + "0" * 20)], "99"),
        ("D", [(11, "done"), (55, "AAPL"), (54, "1"), (38, "2"), (40, "2"), (44, "1")], "6"),
        ("F", [(11, "x"), (41, "never")], "1"),
        ("F", [(11, "x"), (41, "bobs")], "1"),
        ("F", [(11, "x"), (41, "done")], "0"),
        ("F", [(11, "done"), (41, "done")], "6"),
        ("G", [(11, "x"), (41, "done"), (38, "9"), (40, "2"), (44, "1")], "0"),
        ("H", [(11, "never"), (55, "AAPL"), (54, "1")], "5"),
    ],
)
def test_refusals(
    exchange: Exchange, alice: Client, bob: Client, kind: str, body: list[tuple[int, str]], reason: str
) -> None:
    bob.send(bob.peer.order("bobs", SELL, 5, "20"))
    bob.report("0")
    alice.send(alice.peer.order("done", BUY, 1, "1", (59, "3")))
    alice.report("4")
    before = exchange.ask("STATE")
    alice.send(alice.peer.say(kind, *body))
    refusal = alice.of_type("9" if kind in "FG" else "8")
    assert refusal.get(102 if kind in "FG" else 103) == reason and refusal.get(58)
    if kind in "FG":
        wanted = ("4", "2") if body[1][1] == "done" else ("8", "NONE")
        assert (refusal.get(39), refusal.get(37)) == wanted
        assert (refusal.get(434), refusal.get(41)) == ("1" if kind == "F" else "2", body[1][1])
    else:
        assert (refusal.get(39), refusal.get(37)) == ("8", "NONE")
    assert exchange.ask("STATE") == before


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ([(55, "AAPL"), (54, "1"), (38, "1"), (40, "1")], "1"),
        ([(11, "a b"), (55, "AAPL"), (54, "1"), (38, "1"), (40, "1")], "5"),
        ([(11, "x\ny"), (55, "AAPL"), (54, "1"), (38, "1"), (40, "1")], "5"),
        ([(11, "x"), (55, "AAPL"), (54, "3"), (38, "1"), (40, "1")], "5"),
        ([(11, "x"), (55, "AAPL"), (54, "1"), (38, "1.5"), (40, "1")], "6"),
        ([(11, "x"), (55, "AAPL"), (54, "1"), (38, "1"), (40, "P")], "5"),
        ([(11, "x"), (55, "AAPL"), (54, "1"), (38, "1"), (40, "2")], "1"),
        ([(11, "x"), (55, "AAPL"), (54, "1"), (38, "1"), (40, "2"), (44, "1.005")], "5"),
        ([(11, "x"), (55, "AAPL"), (54, "1"), (38, "1"), (40, "2"), (44, "NaN")], "6"),
        ([(11, "x"), (55, "AAPL"), (54, "1"), (38, "1"), (40, "2"), (44, "1e999999999")], "6"),
        ([(11, "x"), (55, "AAPL"), (54, "1"), (38, "1"), (40, "1"), (59, "6")], "5"),
    ],
)
def test_a_message_that_is_no_order_is_rejected(alice: Client, body: list[tuple[int, str]], reason: str) -> None:
    alice.send(alice.peer.say("D", *body))
    reject = alice.of_type("3")
    assert (reject.get(373), reject.get(372), reject.get(45)) == (reason, "D", "2")
    alice.send(alice.peer.say("V"))
    assert alice.of_type("j").get(380) == "3"


def test_who_comes_back_is_sent_what_it_missed(exchange: Exchange, alice: Client) -> None:
    alice.send(alice.peer.order("o", BUY, 10, "10"))
    alice.report("0")
    alice.close()
    exchange.ask("SELL carol s1 AAPL 4 1000")
    with Client(exchange.ports[0], alice.peer) as again:
        again.log_on()
        assert (fill := again.report("F")).get(14) == "4" and not fill.flag(97)


def test_another_port_takes_the_session_up(exchange: Exchange, alice: Client) -> None:
    """The first port's process is killed: with it the session's numbers, and what was sent over it."""
    order = [(11, "o"), (55, "AAPL"), (54, BUY), (38, "10"), (40, "2"), (44, "10"), (60, SENDING)]
    alice.send(alice.peer.say("D", *order), *(alice.peer.say("0") for _ in range(20)))
    first = alice.report("0")
    exchange.ports[0].kill()
    exchange.ask("SELL carol s1 AAPL 4 1000")
    second = exchange.fix_port()
    with Client(second, alice.peer) as again:
        expected = again.peer.next_in
        again.peer.next_in = 0  # whatever it is
        number = again.log_on().number(34)
        assert number is not None and number > expected
        told = [again.report("0"), again.report("F")]
        assert all(report.flag(97) for report in told)
        assert told[0].get(17) == first.get(17) and told[1].get(14) == "4"
        # That number was beyond what the client expected: it asks for what is between, and is told that it is nothing.
        again.send(again.peer.say("2", (7, expected), (16, 0)))
        gap = again.of_type("4")
        assert [gap.get(tag) for tag in (34, 36, 123, 43)] == [str(expected), str(number + 1), "Y", "Y"]
        assert [again.report(kind).get(43) for kind in ("0", "F")] == ["Y", "Y"]
        # It does not know whether its order was done: sent once more it gets the same answer.
        again.send(again.peer.say("D", *order, _97="Y"))
        assert again.report("0").get(17) == first.get(17)
        assert len(exchange.ask("DEPTH AAPL 9")) == 2
        again.send(again.peer.order("next", BUY, 1, "9"))
        assert not again.report("0").flag(97)


def test_a_text_port_that_dies_is_followed_by_the_next(exchange: Exchange, folder: Path) -> None:
    """With the state of the first: what was sent to that, and not answered, is done once."""
    port = exchange.fix_port(f"{exchange.server.address.path},{folder / 'y.sock'}")
    second = spawn(folder, folder / "not-yet.sock", ["AAPL"])
    try:
        with Client(port, Peer("alice")) as alice:
            alice.log_on()
            alice.send(alice.peer.order("o1", BUY, 1, "10"))
            first = alice.report("0")
            with Connection(exchange.server.address.path) as before, Connection(second.address.path) as after:
                exchange.server.process.send_signal(signal.SIGSTOP)
                alice.send(alice.peer.order("o2", BUY, 1, "10"), alice.peer.order("o1", BUY, 1, "10", (97, "Y")))
                exchange.server.process.send_signal(signal.SIGCONT)
                # Told or not, o2 is in this state: the port asks again, or has its answer.
                alice.report("0")
                state = before.snapshot()
                exchange.server.process.kill()
                after.restore(state)
            alice.send(alice.peer.order("o2", BUY, 1, "10"), alice.peer.order("o3", BUY, 1, "10"))
            (folder / "not-yet.sock").rename(folder / "y.sock")
            told = {report.get(11): report for report in (alice.report("0"), alice.report("0"), alice.report("0"))}
            assert told["o3"].get(37) == "3" and first.get(37) == "1"
            with Connection(folder / "y.sock") as connection:
                assert connection.ask("DEPTH AAPL")[0] == "BID 1000 3 3"
    finally:
        second.stop()
