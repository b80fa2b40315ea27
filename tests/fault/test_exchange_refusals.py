"""What an exchange refuses: it is said why, at every node and over FIX, and nothing is logged."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from musidecar.ports import free_ports, give_back
from musidecar.testbed import ClusterStatus, Testbed
from tests.fault.cluster import leader_of
from tests.fault.test_exchange import Text, same_everywhere
from tests.fault.test_fix import TIMEOUT_S, fix_port
from tests.unit.fix_client import SENDING, Peer

LARGE = str(10**15 + 1)

# Line, what is said. alice has `open` and `done`, bob `bobs`.
REFUSED = [
    ("", "malformed"),
    ("BUY", "malformed"),
    ("BUY alice x AAPL 1", "malformed"),
    ("BUY alice x AAPL 1 1 GTC", "malformed"),
    ("BUY alice x AAPL one 1", "malformed"),
    ("BUY alice  x AAPL 1 1", "malformed"),
    ("BUY alice x\tAAPL 1 1", "malformed"),
    ("BUY alice " + "x" * 65 + " AAPL 1 1", "malformed"),
    ("@1 1 BUY alice x AAPL 1 1", "malformed"),
    ("CHECK BUY alice x AAPL 1 1", "malformed"),
    ("SNAPSHOT", "malformed"),
    ("RESTORE 10", "malformed"),
    ("BUY alice x NONE 1 1", "symbol"),
    ("BUY alice x AAP 1 1", "symbol"),
    ("BUY alice x AAPL 0 1", "quantity"),
    ("SELL alice x AAPL -5 1", "quantity"),
    ("SELL alice x AAPL 2147483648 1", "quantity"),
    ("SELL alice x AAPL 99999999999999999999 1", "quantity"),
    ("BUY alice x AAPL 1 0", "price"),
    ("BUY alice x AAPL 1 -1", "price"),
    (f"BUY alice x AAPL 1 {LARGE}", "price"),
    ("BUY alice x AAPL 1 18446744073709551617", "price"),
    (f"BUY alice x AAPL 1 1 STOP {LARGE}", "price"),
    ("CANCEL alice x never", "order"),
    ("CANCEL alice x bobs", "order"),
    ("CANCEL bob x open", "order"),
    ("CANCEL mallory x bobs", "order"),
    ("CANCEL alice x done", "done"),
    ("CANCEL alice open done", "id"),
    ("REPLACE alice x bobs 5 5", "order"),
    ("REPLACE alice x done 5 5", "done"),
    ("REPLACE alice x open 4 5", "quantity"),
    ("REPLACE alice x open 9 MKT", "price"),
    (f"REPLACE alice x open 9 {LARGE}", "price"),
    ("REPLACE alice x open 0 5", "quantity"),
    ("STATUS alice bobs", "order"),
    ("DEPTH NONE", "symbol"),
]


@pytest.fixture(scope="module")
def bed() -> Iterator[Testbed]:
    first = free_ports(3)
    with Testbed(backend="liquibook", arguments=("--fix-port", str(first))) as made:
        text = Text(leader_of(made.status()).client_address)
        for line in ("SELL bob bobs AAPL 9 200", "BUY alice open AAPL 10 50", "BUY alice done AAPL 1 60",
                     "SELL bob s AAPL 1 60", "SELL bob p AAPL 4 50"):  # fmt: skip
            assert text.ask(line)[0].startswith("EVENT"), line
        text.close()
        yield made
    assert made.leftovers() == []
    give_back(first)


def logged(status: ClusterStatus) -> tuple[int, str]:
    """How far the log has come, and its hash."""
    leader = leader_of(status)
    return leader.commit, leader.log_hash


def test_what_is_refused_is_not_logged(bed: Testbed) -> None:
    before = logged(bed.status())
    for node in bed.status().nodes:
        with closing(Text(node.client_address)) as text:
            for line, code in REFUSED:
                assert text.ask(line)[0].split(" ")[:2] == ["REJECT", code], line
            assert text.ask("STATUS alice open")[0].split(" ")[9:12] == ["OPEN", "4", "6"]
    assert logged(bed.status()) == before
    same_everywhere(bed)


def test_what_was_done_is_not_logged_again(bed: Testbed) -> None:
    with closing(Text(leader_of(bed.status()).client_address)) as text:
        assert text.ask("BUY alice again AAPL 3 20")[0].startswith("EVENT")
        done = [text.ask(line) for line in ("REPLACE alice r again 5 21", "CANCEL alice c r")]
        before = logged(bed.status())
        assert [text.ask(line) for line in ("REPLACE alice r again 5 21", "CANCEL alice c r")] == done
        assert text.ask("CANCEL alice c again") == ["REJECT id c was another request"]
        assert logged(bed.status()) == before


def test_a_line_without_an_end(bed: Testbed) -> None:
    before = logged(bed.status())
    for node in bed.status().nodes:
        with socket.create_connection(node.client_address, TIMEOUT_S) as connection:
            connection.sendall(b"BUY alice x AAPL 1 " + b"1" * 1100)
            with connection.makefile("rb") as told:
                assert told.read() == b"REJECT malformed line too long\nEND\n"
    assert logged(bed.status()) == before


def test_many_at_once_are_answered_in_order(bed: Testbed) -> None:
    """What is asked for first does not pass what was sent before, nor is it passed."""
    with socket.create_connection(leader_of(bed.status()).client_address, TIMEOUT_S) as connection:
        lines = []
        for i in range(200):
            lines += [f"BUY carol n{i} MSFT 5 {10 + i % 3}", f"REPLACE carol r{i} n{i} 7 {10 + i % 2}",
                      f"CANCEL carol c{i} r{i}", f"CANCEL carol d{i} r{i}"]  # fmt: skip
        connection.sendall("".join(f"{line}\n" for line in lines).encode())
        with connection.makefile("r") as told:
            replies = [_reply(told) for _ in lines]
    kinds = [[line.split(" ")[4] if line.startswith("EVENT") else line.split(" ")[1] for line in each]
             for each in replies]  # fmt: skip
    assert kinds == [["ACCEPT"], ["REPLACE"], ["CANCEL"], ["done"]] * 200
    same_everywhere(bed)


def _reply(told: Iterator[str]) -> list[str]:
    return list(iter(lambda: next(told).rstrip("\n"), "END"))


def _order(name: str, symbol: str = "AAPL", quantity: str = "1", price: str = "1") -> list[tuple[int, str]]:
    return [(11, name), (55, symbol), (54, "1"), (38, quantity), (40, "2"), (44, price), (60, SENDING)]


FIX_REFUSED: list[tuple[str, list[tuple[int, str]], str]] = [  # MsgType, body, MsgType of what is said
    ("D", _order("x", symbol="NONE"), "8"),
    ("D", _order("x", quantity="0"), "8"),
    ("D", _order("x", quantity="-5"), "8"),
    ("D", _order("x", quantity="1.5"), "3"),
    ("D", _order("x", price="0"), "8"),
    ("D", _order("x", price="-1"), "8"),
    ("D", _order("x", price="1" + "0" * 20), "8"),
    ("D", _order("x", price="1.001"), "3"),
    ("D", _order("x", price="1e3"), "3"),
    ("D", [(11, "x"), (55, "AAPL")], "3"),
    ("F", [(11, "x"), (41, "bobs"), (55, "AAPL"), (54, "1"), (60, SENDING)], "9"),
    ("F", [(11, "x"), (41, "done"), (55, "AAPL"), (54, "1"), (60, SENDING)], "9"),
    ("G", [(11, "x"), (41, "bobs"), *_order("", quantity="5")[1:]], "9"),
    ("H", [(11, "bobs"), (55, "AAPL"), (54, "1")], "8"),
    ("AE", [(571, "1")], "j"),
]


class Wire:
    """A FIX client of a node, as bytes."""

    def __init__(self, port: int) -> None:
        self.peer = Peer("alice")
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self.send(self.peer.logon((141, "Y")))
        self.wait("A")

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def wait(self, *kinds: str) -> str:
        """The kind of the first such message that is no execution told again."""
        while True:
            data = self._socket.recv(1 << 16)
            assert data, "closed"
            for message in self.peer.hear(data):
                if message.type in kinds and not message.flag(97):
                    return message.type

    def rest(self) -> bytes:
        """Until the other side closes."""
        found = b""
        while data := self._socket.recv(1 << 16):
            found += data
        return found

    def close(self) -> None:
        self._socket.close()


def test_what_is_refused_over_fix_is_not_logged(bed: Testbed) -> None:
    before = logged(bed.status())
    for node in bed.status().nodes:
        with closing(Wire(fix_port(node))) as wire:
            for kind, body, said in FIX_REFUSED:
                wire.send(wire.peer.say(kind, *body))
                assert wire.wait("3", "8", "9", "j") == said, (kind, body)
    assert logged(bed.status()) == before


def test_garbled_messages_are_passed_over_and_asked_for(bed: Testbed) -> None:
    node = leader_of(bed.status())
    before = logged(bed.status())
    with closing(Wire(fix_port(node))) as wire:
        good = wire.peer.say("D", *_order("x", symbol="AAPL"))
        tail = int(good[-4:-1])
        wire.send(good[:-4] + b"%03d\x01" % ((tail + 1) % 256))
        wire.send(wire.peer.say("0"))
        assert wire.wait("2") == "2", "what was garbled is asked for"
    with closing(Wire(fix_port(node))) as wire:
        good = wire.peer.say("D", *_order("x", symbol="AAPL"))
        wire.send(good.replace(b"\x019=", b"\x019=1", 1) + b"\0" * 2000)
        wire.send(wire.peer.say("0"))
        assert wire.wait("2") == "2"
    with closing(Wire(fix_port(node))) as wire:
        wire.send(wire.peer.say("D", *_order("x"), sequence=1))
        assert b"MsgSeqNum too low, expecting 2 but received 1" in wire.rest()
    assert logged(bed.status()) == before
