"""FIX engines that are not ours, at the FIX ports of a cluster whose leader is killed: each order has one outcome, each
execution reaches its client, and none is taken for new twice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from asyncfix import Journaler
from asyncfix.errors import FIXConnectionError

from musidecar.ports import free_ports, give_back
from musidecar.protocols.liquibook.driver import Connection
from musidecar.testbed import NodeStatus, Testbed, is_alive, wait_until
from tests.fault.cluster import a_follower_of, another_serves, leader_of
from tests.fault.test_exchange import Text, same_everywhere
from tests.unit.fix_client import Peer
from tests.unit.fix_engines import Asyncfix, Quickfix

TIMEOUT_S = 20.0
LOGON_S = 5.0
ORDERS = 120
KILL_AT = 40
PAUSE_S = 0.002  # of bob, who would leave no processor time to anybody


@pytest.fixture
def bed() -> Iterator[Testbed]:
    first = free_ports(3)
    with Testbed(backend="liquibook", arguments=("--fix-port", str(first))) as made:
        yield made
    assert made.leftovers() == []
    give_back(first)


def fix_port(node: NodeStatus) -> int:
    return int(str(node.more["fix"]).rpartition(":")[2])


def executions(node: NodeStatus, trader: str) -> dict[str, str]:
    """ExecID -> kind, of all of a trader's events, as a node's own exchange has them."""
    with Connection(Path(node.backend), TIMEOUT_S) as exchange:
        lines = exchange.ask(f"EVENTS {trader} 0")
    return {line.split()[2]: line.split()[4] for line in lines[1:]}


class Heard:
    """The executions a client was told of: ExecID -> kind, LastQty. An ExecID may come again only marked PossResend."""

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {}
        self.times: dict[str, str] = {}  # TransactTime
        self.bought = 0
        self.accepted: set[str] = set()  # ClOrdID
        self.again = 0

    def hear(self, report: Mapping[int, str]) -> None:
        exec_id, kind = report[17], {"0": "ACCEPT", "F": "FILL", "4": "CANCEL"}.get(report[150], "")
        if exec_id in self.kinds:
            assert report.get(97) == "Y", "an execution was told twice, as if it were new"
            assert report[60] == self.times[exec_id], "another node has another time for it"
            self.again += 1
            return
        self.kinds[exec_id], self.times[exec_id] = kind, report[60]
        if kind == "ACCEPT":
            assert report[11] not in self.accepted, "one order was accepted twice"
            self.accepted.add(report[11])
        elif kind == "FILL":
            self.bought += int(report[32])


class Bob(threading.Thread):
    """Sells to alice through the text ports, one order after the other, each until it is answered."""

    def __init__(self, bed: Testbed) -> None:
        super().__init__(daemon=True)
        self._nodes = itertools.cycle([node.client_address for node in bed.status().nodes])
        self._ended = threading.Event()
        self.sold = 0

    def run(self) -> None:
        number, text = 0, None
        while not self._ended.wait(PAUSE_S):
            try:
                text = text or Text(next(self._nodes))
                told = text.ask(f"SELL bob b{number} AAPL 2 1000 IOC")
            except OSError:
                text = None
                continue
            number += 1
            self.sold += sum(int(line.split()[18]) for line in told if line.split()[4] == "FILL")

    def end(self) -> None:
        self._ended.set()
        self.join(TIMEOUT_S)
        assert not self.is_alive()


async def _log_on(nodes: Iterator[NodeStatus], journal: Journaler) -> Asyncfix:
    """At the next node where that can be done."""
    for node in nodes:
        client = Asyncfix(fix_port(node), journal)
        with contextlib.suppress(OSError, TimeoutError):
            await client.connect()
            await asyncio.wait_for(client.active.wait(), LOGON_S)
            return client
        await client.leave()
    raise AssertionError


async def _hear(client: Asyncfix, heard: Heard) -> None:
    message = await asyncio.wait_for(client.told.get(), TIMEOUT_S)
    if message is None:
        raise FIXConnectionError
    heard.hear({int(tag): value for tag, value in message.items() if tag.isdigit()})


async def _trade(bed: Testbed, heard: Heard, bob: Bob) -> NodeStatus:
    """alice sends one order after the other, each until it has been accepted; the leader is killed, and returned."""
    status = bed.status()
    leader = leader_of(status)
    nodes = itertools.cycle([leader, *status.followers])
    journal = Journaler()
    client = await _log_on(nodes, journal)
    for number in range(ORDERS):
        while (name := f"a{number}") not in heard.accepted:
            try:
                await client.order(name, "1", 5, "10")
                if number == KILL_AT and is_alive(leader.pid):
                    bed.kill(leader)
                while name not in heard.accepted:
                    await _hear(client, heard)
            except (FIXConnectionError, OSError):
                await client.leave()
                client = await _log_on(nodes, journal)
    bob.end()
    wanted = executions(leader_of(another_serves(bed, status)), "alice")
    while heard.kinds != wanted:
        assert set(heard.kinds) <= set(wanted)
        await _hear(client, heard)
    await client.leave()
    third = next(node for node in status.followers if fix_port(node) != client.port)
    for node in (third, next(node for node in status.followers if node is not third)):
        again, client = heard.again, await _log_on(iter([node]), journal)  # unknown there; known, from before
        while node is third and heard.again < again + len(wanted):
            await _hear(client, heard)
        await client.leave()
    return leader


def test_asyncfix_loses_no_execution_when_the_leader_is_killed(bed: Testbed) -> None:
    heard, bob = Heard(), Bob(bed)
    bob.start()
    dead = asyncio.run(_trade(bed, heard, bob))
    assert heard.accepted == {f"a{number}" for number in range(ORDERS)}
    assert heard.bought == bob.sold > 0
    assert heard.again > KILL_AT, "the port after the kill knew the session"
    bed.start_again(dead)
    bed.wait_status("all are there again", lambda s: len(s.followers) == 2, 60)
    same_everywhere(bed)
    for node in bed.status().nodes:
        assert executions(node, "alice") == heard.kinds


def test_a_port_whose_process_dies_is_served_again(bed: Testbed) -> None:
    node = a_follower_of(bed.status())
    first = int(node.more["fix_pid"])
    with socket.create_connection(("127.0.0.1", fix_port(node)), TIMEOUT_S) as connection:
        connection.sendall(Peer("carol").logon())
        assert b"\x0135=A\x01" in connection.recv(1 << 16)
        os.kill(first, signal.SIGKILL)
        assert connection.recv(1 << 16) == b""
    with socket.create_connection(("127.0.0.1", fix_port(node)), TIMEOUT_S) as connection:  # it waits for the next one
        connection.sendall(Peer("carol").logon())
        assert b"\x0135=A\x01" in connection.recv(1 << 16)
    assert bed.status()[node.id].more["fix_pid"] != first


def test_a_node_that_stops_says_good_bye(bed: Testbed) -> None:
    node = a_follower_of(bed.status())
    with socket.create_connection(("127.0.0.1", fix_port(node)), TIMEOUT_S) as connection:
        connection.sendall(Peer("carol").logon())
        assert b"\x0135=A\x01" in connection.recv(1 << 16)
        os.kill(node.pid, signal.SIGTERM)
        assert b"\x0135=5\x01" in connection.recv(1 << 16)
        assert connection.recv(1 << 16) == b""
    wait_until("its FIX port has ended", lambda: not is_alive(int(node.more["fix_pid"])), TIMEOUT_S)


def test_quickfix_goes_on_at_another_node(bed: Testbed, folder: Path) -> None:
    status = bed.status()
    leader, follower = leader_of(status), a_follower_of(status)
    client, heard = Quickfix(folder, fix_port(leader), fix_port(follower)), Heard()
    try:
        for number in range(10):
            client.order(f"a{number}", "1", 5, "10")
        while len(heard.accepted) < 10:
            heard.hear(client.told.get(timeout=TIMEOUT_S))
        bed.kill(leader)
        text = Text(follower.client_address)
        assert text.ask("SELL bob b AAPL 12 1000")[0].split()[4] == "ACCEPT"
        client.logons.get(timeout=TIMEOUT_S)
        client.order("a9", "1", 5, "10")  # sent again, for all that the client knows of it
        client.order("last", "1", 5, "10")
        while "last" not in heard.accepted or heard.bought < 12:
            heard.hear(client.told.get(timeout=TIMEOUT_S))
        assert heard.kinds == executions(leader_of(another_serves(bed, status)), "alice")
        assert heard.again >= 10
    finally:
        client.stop()
    text.close()
