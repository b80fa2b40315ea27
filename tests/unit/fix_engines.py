"""FIX engines that are not ours, as clients: asyncfix, and quickfix where it has been built (tools/setup --fix)."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from pathlib import Path
from typing import Any

import pytest
from asyncfix import AsyncFIXClient, ConnectionState, FIXMessage, FMsg, FTag, Journaler
from asyncfix.errors import FIXConnectionError
from asyncfix.protocol import FIXProtocol44

from tests.unit.fix_client import SENDING, US
from tests.unit.fix_port import TIMEOUT_S

# ---- asyncfix --------------------------------------------------------------------------------------------------------


class Asyncfix(AsyncFIXClient):  # type: ignore[misc]
    """Keeps what it is told. `told`: None behind the last, when the connection is gone."""

    def __init__(self, port: int, journal: Journaler) -> None:
        super().__init__(FIXProtocol44(), "alice", US, journal, "127.0.0.1", port, heartbeat_period=5)
        self.port = port
        self.told: asyncio.Queue[FIXMessage | None] = asyncio.Queue()
        self.active = asyncio.Event()

    async def on_connect(self) -> None:
        await self.send_msg(FIXMessage(FMsg.LOGON, {FTag.EncryptMethod: 0, FTag.HeartBtInt: 5}))

    async def on_message(self, message: FIXMessage) -> None:
        self.told.put_nowait(message)

    async def on_disconnect(self) -> None:
        self.told.put_nowait(None)

    async def leave(self) -> None:
        """Ends the connection, and what would make it again."""
        self._aio_task_socket_read.cancel()
        self._aio_task_heartbeat.cancel()
        with contextlib.suppress(OSError, FIXConnectionError):
            await self.disconnect(ConnectionState.DISCONNECTED_WCONN_TODAY)

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
            assert message is not None, "the connection is gone"
            if message.msg_type == FMsg.EXECUTIONREPORT and message[FTag.ExecType] == exec_type:
                return message


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
