"""FIX engines that are not ours log on, trade, lose the port they are connected to, and lose no execution.

asyncfix comes with the other packages. quickfix is built from source, in about three minutes: `tools/setup --fix`.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asyncfix import AsyncFIXClient, ConnectionState, FIXMessage, FMsg, FTag, Journaler
from asyncfix.protocol import FIXProtocol44

from tests.unit.fix_client import SENDING, US
from tests.unit.fix_port import TIMEOUT_S, Exchange


@pytest.fixture
def exchange(folder: Path, free_port: int) -> Iterator[Exchange]:
    made = Exchange(folder, free_port)
    yield made
    made.close()


# ---- asyncfix --------------------------------------------------------------------------------------------------------


class Asyncfix(AsyncFIXClient):  # type: ignore[misc]
    """Keeps what it is told."""

    def __init__(self, port: int, journal: Journaler) -> None:
        super().__init__(FIXProtocol44(), "alice", US, journal, "127.0.0.1", port, heartbeat_period=5)
        self.told: asyncio.Queue[FIXMessage] = asyncio.Queue()
        self.active = asyncio.Event()

    async def on_connect(self) -> None:
        await self.send_msg(FIXMessage(FMsg.LOGON, {FTag.EncryptMethod: 0, FTag.HeartBtInt: 5}))

    async def on_message(self, message: FIXMessage) -> None:
        self.told.put_nowait(message)

    async def on_state_change(self, state: ConnectionState) -> None:
        if state == ConnectionState.ACTIVE:
            self.active.set()

    async def order(self, name: str, side: str, quantity: int, price: str) -> None:
        await self.send_msg(FIXMessage(FMsg.NEWORDERSINGLE, {
            FTag.ClOrdID: name, FTag.Symbol: "AAPL", FTag.Side: side, FTag.OrderQty: quantity, FTag.OrdType: "2",
            FTag.Price: price, FTag.TransactTime: SENDING,
        }))  # fmt: skip

    async def report(self, exec_type: str) -> FIXMessage:
        while True:
            message = await asyncio.wait_for(self.told.get(), TIMEOUT_S)
            if message.msg_type == FMsg.EXECUTIONREPORT and message[FTag.ExecType] == exec_type:
                return message


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


# ---- quickfix --------------------------------------------------------------------------------------------------------

SETTINGS = """
[DEFAULT]
ConnectionType=initiator
ReconnectInterval=1
HeartBtInt=5
UseDataDictionary=N
StartTime=00:00:00
EndTime=00:00:00
[SESSION]
BeginString=FIX.4.4
SenderCompID=alice
TargetCompID={us}
SocketConnectHost=127.0.0.1
SocketConnectPort={first}
SocketConnectHost1=127.0.0.1
SocketConnectPort1={second}
"""


class Quickfix:
    """quickfix's own engine, in its threads. `told`: ExecutionReports, fields by tag."""

    def __init__(self, folder: Path, first: int, second: int) -> None:
        quickfix = pytest.importorskip("quickfix", reason="tools/setup --fix builds it")
        self.quickfix = quickfix
        told: queue.Queue[dict[int, str]] = queue.Queue()
        logons: queue.Queue[Any] = queue.Queue()

        class Application(quickfix.Application):  # type: ignore[misc, name-defined]
            def onLogon(self, session: Any) -> None:
                logons.put(session)

            def fromApp(self, message: Any, _session: Any) -> None:
                text = message.toString()
                told.put({int(tag): value for tag, value in (f.split("=", 1) for f in text.split("\x01") if f)})

            def nothing(self, *_: object) -> None:
                pass

            onCreate = onLogout = toAdmin = fromAdmin = toApp = nothing

        settings = folder / "quickfix.cfg"
        settings.write_text(SETTINGS.format(us=US, first=first, second=second))
        self.told, self.logons = told, logons
        self._kept = (Application(), quickfix.MemoryStoreFactory(), quickfix.SessionSettings(str(settings)))
        self._initiator = quickfix.SocketInitiator(*self._kept)
        self._initiator.start()
        self.session = logons.get(timeout=TIMEOUT_S)

    def send(self, kind: str, *fields: tuple[int, str]) -> None:
        message = self.quickfix.Message()
        message.getHeader().setField(self.quickfix.MsgType(kind))
        for tag, value in fields:
            message.setField(self.quickfix.StringField(tag, value))
        self.quickfix.Session.sendToTarget(message, self.session)

    def order(self, name: str, side: str, quantity: int, price: str) -> None:
        fields = ((11, name), (55, "AAPL"), (54, side), (38, str(quantity)), (40, "2"), (44, price), (60, SENDING))
        self.send("D", *fields)

    def report(self, exec_type: str) -> dict[int, str]:
        while (told := self.told.get(timeout=TIMEOUT_S)).get(150) != exec_type:
            pass
        return told

    def stop(self) -> None:
        self._initiator.stop()


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
