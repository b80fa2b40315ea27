"""Random requests of all kinds, many under way at once, while one leader after the other is killed: what comes out is
what one exchange makes of the same log, to the byte."""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from musidecar.exchange_load import address
from musidecar.protocols.liquibook.driver import Connection
from musidecar.protocols.liquibook.exchange import Exchange
from musidecar.testbed import ClusterStatus, Testbed, wait_until
from tests.fault.cluster import another_serves, leader_of
from tests.fault.test_exchange import same_everywhere
from tests.unit.random_orders import Orders

TIMEOUT_S = 60.0
STREAMS = 4
BATCH = 64  # requests of a stream that are under way
SYMBOLS = ("AAPL", "MSFT")


class Stream(threading.Thread):
    """Requests in batches, each until all of it is answered, at the next node when a connection ends.

    `outcomes`: what was accepted in this round -> (where in the log, its time, a hash of the reply).
    """

    def __init__(self, number: int, addresses: list[tuple[str, int]], seed: int) -> None:
        super().__init__(daemon=True)
        self.outcomes: dict[bytes, tuple[int, int, bytes]] = {}
        self.answered = self.again = self.rejected = 0
        self.trouble = ""
        self._orders = Orders(seed, f"s{number}")
        self._nodes = itertools.cycle(addresses[number % len(addresses) :] + addresses[: number % len(addresses)])
        self._may = threading.Semaphore(0)
        self._ended = False
        self._socket: socket.socket | None = None
        self._input = b""

    def allow(self, batches: int) -> None:
        self._may.release(batches)

    def end(self) -> None:
        self._ended = True
        self._may.release()
        self.join(TIMEOUT_S)
        assert not self.is_alive()

    def next_round(self) -> None:
        """What is done is forgotten, so nothing of it is sent again."""
        self.outcomes.clear()
        self._orders.sent.clear()

    def run(self) -> None:
        while self._may.acquire() and not self._ended:
            lines = [self._orders.line().encode() for _ in range(BATCH)]
            while lines:
                lines = lines[self._send(lines) :]

    def _send(self, lines: list[bytes]) -> int:
        """How many were answered before the connection ended."""
        count = 0
        try:
            if self._socket is None:
                self._socket, self._input = socket.create_connection(next(self._nodes), TIMEOUT_S), b""
            self._socket.sendall(b"".join(line + b"\n" for line in lines))
            while count < len(lines):
                self._note(lines[count], self._reply())
                count += 1
        except OSError:
            self.again += len(lines) - count
            if self._socket is not None:
                self._socket.close()
            self._socket = None
        return count

    def _reply(self) -> bytes:
        assert self._socket is not None
        while not (self._input.startswith(b"END\n") or b"\nEND\n" in self._input):
            data = self._socket.recv(1 << 18)
            if not data:
                raise ConnectionResetError
            self._input += data
        reply, _, self._input = self._input.partition(b"END\n")
        return reply

    def _note(self, line: bytes, reply: bytes) -> None:
        self.answered += 1
        if reply.startswith(b"REJECT "):
            self.rejected += 1
        if not reply.startswith(b"EVENT ") or line.startswith(b"EVENTS "):
            return
        words = reply.split(b" ", 4)
        outcome = int(words[2].split(b".")[0]), int(words[3]), hashlib.sha256(reply).digest()
        if self.outcomes.setdefault(line, outcome) != outcome:
            self.trouble = f"{line!r} had two outcomes"


class Reference:
    """One exchange that is given what the log has, and never fails."""

    def __init__(self) -> None:
        self.exchange = Exchange(SYMBOLS)

    def follow(self, streams: list[Stream]) -> None:
        """What was accepted in this round, in the order of the log; each reply must be the same."""
        accepted: dict[int, tuple[int, bytes, bytes]] = {}
        for stream in streams:
            for line, (index, time_us, told) in stream.outcomes.items():
                assert accepted.setdefault(index, (time_us, line, told)) == (time_us, line, told)
        for index in sorted(accepted):
            time_us, line, told = accepted[index]
            reply = self.exchange.apply(b"@%d %d %b" % (index, time_us, line))
            assert hashlib.sha256(reply.removesuffix(b"END\n")).digest() == told, line

    def state(self) -> list[str]:
        """Of STATE: events, their hash, live orders."""
        return self.exchange.apply(b"STATE").decode().split("\n")[0].split(" ")[3:]


def without_place(snapshot: bytes) -> list[bytes]:
    """All of a snapshot but how far in the log it stands: what is rejected counts there, too."""
    head, *rows = snapshot.split(b"\n")
    return [json.dumps([*json.loads(head)[:2], *json.loads(head)[4:]]).encode(), *rows]


@pytest.fixture
def bed() -> Iterator[Testbed]:
    with Testbed(backend="liquibook") as made:
        yield made
    assert made.leftovers() == []


def _whole(bed: Testbed) -> ClusterStatus:
    return bed.wait_status("all nodes lead or follow", lambda s: s.leader is not None and len(s.followers) == 2, 60)


def play(bed: Testbed, operations: int, failovers: int) -> None:
    status, reference = _whole(bed), Reference()
    addresses = [node.client_address for node in status.nodes]
    streams = [Stream(number, addresses, seed=number) for number in range(STREAMS)]
    batches = operations // failovers // STREAMS // BATCH
    for stream in streams:
        stream.start()

    def wait(answered: int) -> None:
        wait_until(f"{answered} are answered", lambda: sum(each.answered for each in streams) >= answered, 90)

    for turn in range(failovers):
        so_far = sum(each.answered for each in streams)
        for stream in streams:
            stream.allow(batches)
        wait(so_far + STREAMS * batches * BATCH // 2)
        leader = leader_of(status)
        bed.kill(leader)
        status = another_serves(bed, status)
        wait(so_far + STREAMS * batches * BATCH)
        assert [each.trouble for each in streams] == [""] * STREAMS
        reference.follow(streams)
        with Connection(Path(leader_of(bed.status()).backend), TIMEOUT_S) as own:  # it has done all that is answered
            assert own.ask("STATE")[0].split(" ")[3:] == reference.state(), f"round {turn}"
        with Connection(address(leader_of(status).client_address), TIMEOUT_S) as text:
            assert text.ask("ROLL") == reference.exchange.apply(b"ROLL").decode().splitlines()[:-1]
        for stream in streams:
            stream.next_round()
        bed.start_again(leader)
        status = _whole(bed)
    for stream in streams:
        stream.end()
    same_everywhere(bed)
    for node in bed.status().nodes:
        with Connection(Path(node.backend), TIMEOUT_S) as own:
            assert without_place(own.snapshot()) == without_place(reference.exchange.snapshot()), node.id
    assert sum(each.again for each in streams) > 0, "no request was under way when a leader died"
    assert reference.exchange.events > operations // 2 and sum(each.rejected for each in streams) > operations // 20


def test_random_requests_are_what_one_exchange_makes_of_them(bed: Testbed) -> None:
    play(bed, operations=12_000, failovers=2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_million_random_requests_and_twenty_killed_leaders(bed: Testbed) -> None:
    play(bed, operations=1_000_000, failovers=20)
