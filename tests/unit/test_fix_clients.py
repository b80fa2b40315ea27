"""FIX engines that are not ours log on, trade, lose the port they are connected to, and lose no execution.

asyncfix comes with the other packages. quickfix is built from source, in about three minutes: `tools/setup --fix`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from asyncfix import ConnectionState, FTag, Journaler

from tests.unit.fix_client import SENDING
from tests.unit.fix_engines import Asyncfix, Quickfix
from tests.unit.fix_port import TIMEOUT_S, Exchange


@pytest.fixture
def exchange(folder: Path, free_port: int) -> Iterator[Exchange]:
    made = Exchange(folder, free_port)
    yield made
    made.close()


def test_asyncfix_trades_and_is_sent_what_it_missed(exchange: Exchange) -> None:
    async def play() -> None:
        port, journal = exchange.fix_port(), Journaler()
        client = Asyncfix(port.port, journal)
        await client.connect()
        await asyncio.wait_for(client.active.wait(), TIMEOUT_S)
        await client.order("a1", "1", 10, "10.5")
        assert (await client.report("0"))[FTag.OrderID] == "1"
        exchange.ask("SELL bob b1 AAPL 4 1050")
        assert (await client.report("F"))[FTag.CumQty] == "4"
        await client.disconnect(ConnectionState.DISCONNECTED_WCONN_TODAY)
        exchange.ask("SELL bob b2 AAPL 6 1050")
        again = Asyncfix(port.port, journal)
        await again.connect()
        fill = await again.report("F")
        assert (fill[FTag.CumQty], fill[FTag.OrdStatus], fill[FTag.ExecID]) == ("10", "2", "3.3")
        await again.disconnect(ConnectionState.DISCONNECTED_WCONN_TODAY)

    asyncio.run(play())


def test_quickfix_trades_and_goes_on_at_another_port(exchange: Exchange, folder: Path) -> None:
    first = exchange.fix_port()
    client = Quickfix(folder, first.port, first.port + 1)
    try:
        client.order("a1", "1", 10, "10.5")
        new = client.report("0")
        client.send(
            "G", (11, "a2"), (41, "a1"), (55, "AAPL"), (54, "1"), (38, "20"), (40, "2"), (44, "10.6"), (60, SENDING)
        )
        assert client.report("5")[11] == "a2"
        exchange.ask("SELL bob b1 AAPL 4 1060")
        assert client.report("F")[14] == "4"
        first.kill()
        exchange.ask("SELL bob b2 AAPL 6 1060")
        second = exchange.fix_port()
        assert second.port == first.port + 1
        client.logons.get(timeout=TIMEOUT_S)
        # From a process that has never seen it: all again, marked, and what was missed.
        again = [client.told.get(timeout=TIMEOUT_S) for _ in range(4)]
        assert [(report[150], report[14]) for report in again] == [("0", "0"), ("5", "0"), ("F", "4"), ("F", "10")]
        assert again[0][17] == new[17]
        assert all(report[97] == "Y" for report in again)
        client.order("a3", "2", 5, "10.6")
        fills = [client.report("F"), client.report("F")]
        assert {(fill[11], fill[32]) for fill in fills} == {("a2", "5"), ("a3", "5")}
        client.send("F", (11, "c"), (41, "a2"), (55, "AAPL"), (54, "1"), (60, SENDING))
        assert client.report("4")[151] == "0"
        client.send("H", (11, "c"), (55, "AAPL"), (54, "1"))
        assert client.report("I")[39] == "4"
    finally:
        client.stop()
