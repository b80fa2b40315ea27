"""A cluster of exchanges: clients at all nodes, leaders killed under load; each order done once, everywhere alike."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from musidecar.protocols.liquibook.driver import Connection
from musidecar.testbed import ClusterStatus, NodeStatus, Testbed, musidecar, wait_until
from tests.fault.cluster import a_follower_of, another_serves, leader_of
from tests.fault.nursery import Cradle, Nursery

TIMEOUT_S = 20.0
TRADERS = 4
ORDERS_KEPT = 30
WRITES_A_ROUND = 500  # of each trader: a round's leader is killed in the middle of them
FAILOVERS = 3


@pytest.fixture
def bed() -> Iterator[Testbed]:
    with Testbed(backend="liquibook") as made:
        yield made
    assert made.leftovers() == []


class Text:
    """A connection to a text port."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address, TIMEOUT_S)
        self._input = b""

    def ask(self, line: str) -> list[str]:
        """ConnectionError: it is not known what became of it."""
        self._socket.sendall(line.encode() + b"\n")
        while not (self._input.endswith(b"\nEND\n") or self._input == b"END\n"):
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            self._input += data
        lines, self._input = self._input.decode().splitlines()[:-1], b""
        return lines

    def close(self) -> None:
        self._socket.close()


class Trader(threading.Thread):
    """Sends as many writes as it may, one after the other, each until it has been answered, wherever that is.

    `told`: line -> reply.
    """

    def __init__(self, name: str, addresses: list[tuple[str, int]], seed: int) -> None:
        super().__init__(daemon=True)
        self.trader = name
        self.told: dict[str, list[str]] = {}
        self._may = threading.Semaphore(0)
        self._ended = False
        self.lost = 0
        self._dice = random.Random(seed)
        self._addresses = addresses
        self._ids: list[str] = []
        self._text: Text | None = None

    def run(self) -> None:
        while self._may.acquire() and not self._ended:
            line = self._line()
            self.told[line] = self._until_answered(line)

    def allow(self, writes: int) -> None:
        self._may.release(writes)

    def end(self) -> None:
        self._ended = True
        self._may.release()
        self.join(TIMEOUT_S)
        assert not self.is_alive()

    def _line(self) -> str:
        dice, name = self._dice, f"{len(self.told)}"
        if len(self._ids) > ORDERS_KEPT:  # many all-or-none orders that wait would make each order slow
            return f"CANCEL {self.trader} {name} {self._ids.pop(0)}"
        if self._ids and dice.random() < 0.25:
            original = dice.choice(self._ids)
            if dice.random() < 0.5:
                return f"CANCEL {self.trader} {name} {original}"
            return f"REPLACE {self.trader} {name} {original} {dice.randint(1, 40)} {dice.randint(95, 105)}"
        self._ids.append(name)
        words = [dice.choice(("BUY", "SELL")), self.trader, name, "AAPL", str(dice.randint(1, 30))]
        words.append("MKT" if dice.random() < 0.05 else str(dice.randint(95, 105)))
        if dice.random() < 0.1:
            words += ["STOP", str(dice.randint(95, 105))]
        if dice.random() < 0.2:
            words.append(dice.choice(("AON", "IOC", "FOK")))
        return " ".join(words)

    def _until_answered(self, line: str) -> list[str]:
        while True:
            try:
                if self._text is None:
                    self._text = Text(self._dice.choice(self._addresses))
                return self._text.ask(line)
            except OSError:
                self.lost += 1
                if self._text is not None:
                    self._text.close()
                self._text = None


def state(node: NodeStatus) -> tuple[str, bytes]:
    """STATE and the snapshot of a node's own liquibookd."""
    with Connection(Path(node.backend), TIMEOUT_S) as connection:
        return connection.ask("STATE")[0], connection.snapshot()


def same_everywhere(bed: Testbed) -> str:
    """Waits until all nodes' exchanges are the same, byte for byte; their STATE."""
    found: list[tuple[str, bytes]] = []

    def same() -> bool:
        nodes = bed.status().alive
        with contextlib.suppress(Exception):
            found[:] = [state(node) for node in nodes]
            return len(found) == bed.count and len(set(found)) == 1
        return False

    wait_until("all exchanges are the same", same, TIMEOUT_S)
    return found[0][0]


def _wait_told(traders: list[Trader], writes: int) -> None:
    wait_until(f"{writes} writes are answered", lambda: sum(len(each.told) for each in traders) >= writes, TIMEOUT_S)


def _wait_whole(bed: Testbed) -> ClusterStatus:
    def is_whole(status: ClusterStatus) -> bool:
        return status.leader is not None and len(status.followers) == bed.count - 1

    return bed.wait_status("all nodes lead or follow", is_whole, 60)


def check_outcomes(bed: Testbed, traders: list[Trader]) -> None:
    """Asked once more, each write has the same outcome; and each was done once."""
    text = Text(leader_of(bed.status()).client_address)
    for trader in traders:
        for line, reply in trader.told.items():
            if not reply[0].startswith("REJECT"):
                assert text.ask(line) == reply, line
        events = [line.split() for line in text.ask(f"EVENTS {trader.trader} 0")]
        first, last = int(events[0][1]), int(events[0][2])
        assert first == 1, "not all events were kept: the test is too long"
        after, accepted = len(events) - 1, [e[6] for e in events[1:] if e[4] in ("ACCEPT", "REPLACE")]
        while after < last:
            more = [line.split() for line in text.ask(f"EVENTS {trader.trader} {after}")][1:]
            accepted += [e[6] for e in more if e[4] in ("ACCEPT", "REPLACE")]
            after += len(more)
        assert len(accepted) == len(set(accepted))
        wanted = {
            line.split()[2] for line, reply in trader.told.items()
            if reply[0].startswith("EVENT") and not line.startswith("CANCEL")
        }  # fmt: skip
        assert set(accepted) == wanted
    text.close()


def test_every_node_is_the_exchange(bed: Testbed) -> None:
    status = bed.status()
    texts = [Text(node.client_address) for node in (leader_of(status), *status.followers)]
    assert texts[0].ask("BUY alice a AAPL 10 100")[0].split()[4] == "ACCEPT"
    fill = texts[1].ask("SELL bob b AAPL 4 100")[1].split()
    assert fill[4] == "FILL" and int(fill[3]) > 0, "the record's time"
    assert texts[2].ask("STATUS alice a")[0].split()[9:12] == ["OPEN", "4", "6"]
    for text in texts:
        assert text.ask("BUY alice c AAPL 0 1") == ["REJECT quantity quantity is not 1 to 2147483647"]
        assert text.ask("@5 5 BUY alice d AAPL 1 1") == ["REJECT malformed not for clients"]
        assert text.ask("SNAPSHOT") == ["REJECT malformed not for clients"]
        assert text.ask("DEPTH AAPL") == ["BID 100 6 1", "LAST 100"]
    written = bed.status()[status.leader or ""].more["writes"]
    assert written == 2, "what is malformed was logged"
    same_everywhere(bed)


def test_a_follower_s_exchange_is_not_behind(nursery: Nursery) -> None:
    """What is logged is collected for the others' exchanges, but not while they have nothing to do."""
    delay_us = 500_000
    with Cradle(nursery, 3, {"timing": {"feed_delay_us": delay_us}}, "liquibook") as bed:
        status = bed.status()
        text, exchange = Text(leader_of(status).client_address), Path(a_follower_of(status).backend)
        took_s = []
        for number in range(5):
            text.ask(f"BUY alice a{number} AAPL 1 100")
            answered_s = time.monotonic()
            with Connection(exchange, TIMEOUT_S) as own:
                wait_until(
                    "it has it", lambda o=own, n=number: int(o.ask("STATE")[0].split(" ")[3]) == n + 1, TIMEOUT_S
                )  # type: ignore[misc]
            took_s.append(time.monotonic() - answered_s)
        text.close()
    assert min(took_s) < delay_us / 1e6 / 4, took_s


def play(bed: Testbed, failovers: int) -> None:
    status = bed.status()
    addresses = [node.client_address for node in status.nodes]
    traders = [Trader(f"t{i}", addresses, seed=i) for i in range(TRADERS)]
    for trader in traders:
        trader.start()
    for turn in range(failovers):
        for trader in traders:
            trader.allow(WRITES_A_ROUND)
        all_told = TRADERS * WRITES_A_ROUND * (turn + 1)
        _wait_told(traders, all_told - TRADERS * WRITES_A_ROUND // 2)
        leader = leader_of(status)
        bed.kill(leader)
        status = another_serves(bed, status)
        bed.start_again(leader)
        _wait_told(traders, all_told)
        status = _wait_whole(bed)
    for trader in traders:
        trader.end()
    assert sum(trader.lost for trader in traders) > 0
    same_everywhere(bed)
    check_outcomes(bed, traders)


def test_killed_leaders_under_load(bed: Testbed) -> None:
    play(bed, FAILOVERS)


def test_the_demo_holds() -> None:
    done = musidecar("demo", "--backend", "liquibook", timeout_s=150)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout and "every fill exactly once" in done.stdout


def test_a_follower_that_was_killed_is_filled(bed: Testbed) -> None:
    status = bed.status()
    text = Text(leader_of(status).client_address)
    for i in range(300):
        text.ask(f"{'BUY' if i % 2 else 'SELL'} t o{i} AAPL {i % 7 + 1} {98 + i % 5}{' AON' if i % 3 else ''}")
    follower = a_follower_of(status)
    bed.kill(follower)
    text.ask("BUY t while AAPL 3 99")
    bed.start_again(follower)
    bed.wait_status("it follows", lambda s: s[follower.id].role == "follower", 60)
    text.ask("SELL t after AAPL 9 99")
    same_everywhere(bed)
    text.close()
