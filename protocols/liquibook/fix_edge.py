"""The FIX port: sessions of clients on one side, a text port (liquibookd's own, or a sidecar's) on the other.

    python -m musidecar.protocols.liquibook --fix HOST:PORT --to ADDRESS[,ADDRESS...] --decimals 2

ADDRESS is HOST:PORT or a path; in the place of the first may stand the number of a descriptor that listens. A request
whose text connection ends before its reply has come is sent again on the next, to the next address: with the same id,
so it is done once. Executions come from EVENTS, never from replies: so a client is told of each event once and in
order, whoever caused it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Sequence

from . import FIX_DECIMALS, FIX_NAME
from .fix_orders import CANCEL, NAME, NEW, REPLACE, REPORT, STATUS, Mapping, Unfit, read_event, read_order
from .fix_session import Ledger, Session
from .fix_wire import Message
from .grammar import EVENTS_MAX

POLL_S = 0.005  # how late an execution that another client caused may be told
RETRY_S = 0.05
TEXT_TIMEOUT_S = 30.0
READ_BYTES = 1 << 16
REPLY_BYTES_MAX = 4 << 20

log = logging.getLogger("fix")


def now_us() -> int:
    return time.time_ns() // 1000


class Text:
    """A connection to a text port, made again when it is lost."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._next = 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, lines: Sequence[str]) -> list[list[str]]:
        """The replies, END left out. All lines are sent again until all are answered over one connection.

        TimeoutError after TEXT_TIMEOUT_S: whether they were done is not known.
        """
        async with asyncio.timeout(TEXT_TIMEOUT_S):
            return await self._ask(lines)

    async def _ask(self, lines: Sequence[str]) -> list[list[str]]:
        sent = "".join(f"{line}\n" for line in lines).encode()
        while True:
            try:
                reader, writer = self._streams or await self._connect()
                writer.write(sent)
                return [await self._reply(reader) for _ in lines]
            except (OSError, EOFError, asyncio.LimitOverrunError) as error:
                log.info("text port: %s", error)
                self.close()
                self._next += 1
                if self._next % len(self._addresses) == 0:
                    await asyncio.sleep(RETRY_S)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self._addresses[self._next % len(self._addresses)]
        if "/" in address:
            self._streams = await asyncio.open_unix_connection(address, limit=REPLY_BYTES_MAX)
        else:
            host, _, port = address.rpartition(":")
            self._streams = await asyncio.open_connection(host, int(port), limit=REPLY_BYTES_MAX)
        return self._streams

    @staticmethod
    async def _reply(reader: asyncio.StreamReader) -> list[str]:
        lines = []
        while (line := await reader.readuntil(b"\n")) != b"END\n":
            lines.append(line[:-1].decode())
        return lines

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Edge:
    """All sessions of one process. `name`: its CompID."""

    def __init__(self, name: str, addresses: Sequence[str], decimals: int) -> None:
        self.name = name
        self.addresses = addresses
        self.decimals = decimals
        self.ledgers: dict[str, Ledger] = {}
        self._connections: dict[str, Connection] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, to its end."""
        connection = Connection(self, reader, writer)
        try:
            await connection.run()
        except OSError as error:  # TimeoutError is one
            log.info("%s: %s", connection.client or "client", error or "the text port does not answer")
        finally:
            if self._connections.get(connection.client) is connection:
                del self._connections[connection.client]
            connection.close()

    def end(self) -> None:
        """Good-bye to all clients."""
        for connection in list(self._connections.values()):
            connection.end("this node stops")

    def ledger(self, client: str, connection: Connection) -> Ledger | None:
        """A client that is logged on already has lost that connection, as it has made another: the former is closed."""
        if not NAME.fullmatch(client):
            return None
        former = self._connections.get(client)
        if former is not None:
            former.end("logged on over another connection")
        self._connections[client] = connection
        return self.ledgers.setdefault(client, Ledger(client))


class Connection:
    def __init__(self, edge: Edge, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.client = ""
        self._edge = edge
        self._reader, self._writer = reader, writer
        self._text = Text(edge.addresses)
        self._mapping = Mapping("", edge.decimals)
        self._count = 0  # of its trader's events, when it logged on
        self._reports = 0
        self._session = Session(edge.name, self._ledger, lambda _: self._count, now_us())

    def _ledger(self, client: str) -> Ledger | None:
        self.client = client
        self._mapping = Mapping(client, self._edge.decimals)
        return self._edge.ledger(client, self)

    def end(self, why: str) -> None:
        self._session.logout(why)
        self._writer.write(self._session.take())
        self._writer.close()

    def close(self) -> None:
        self._text.close()
        self._writer.close()

    async def run(self) -> None:
        session = self._session
        while not session.closed:
            data = None
            with contextlib.suppress(TimeoutError):
                data = await asyncio.wait_for(self._reader.read(READ_BYTES), POLL_S)
            if data == b"":
                return
            messages: list[Message] = []
            if data is not None:
                if not session.logged_on:
                    await self._look(data)
                messages = session.receive(data, now_us())
            session.tick(now_us())
            if session.logged_on:
                await self._work(messages)
            self._writer.write(session.take())
            await self._writer.drain()
        log.info("%s: %s", self.client or "client", session.why)

    async def _look(self, data: bytes) -> None:
        """How many events the trader has had who is about to log on: the session is to know before it answers."""
        marker = b"\x0149="
        if marker in data and NAME.fullmatch(who := data.split(marker, 1)[1].split(b"\x01", 1)[0].decode("latin-1")):
            (told,) = await self._text.ask([f"EVENTS {who} 0 1"])
            self._count = int(told[0].split(" ")[2])

    # ---- requests and events ---------------------------------------------------------------------------------------

    async def _work(self, messages: Sequence[Message]) -> None:
        """Sends what the messages are, and asks for what has happened, in one go."""
        lines: list[str] = []
        about: list[tuple[Message, int]] = []
        for message in messages:
            try:
                line = self._mapping.line(message)
            except Unfit as unfit:
                self._unfit(message, unfit)
                continue
            about.append((message, len(lines)))
            lines.append(line)
            if message.type in (CANCEL, REPLACE):
                lines.append(self._mapping.status(message.get(41)))
        ledger = self._session.ledger
        assert ledger is not None
        replies = await self._text.ask([*lines, f"EVENTS {self.client} {ledger.told}"])
        if self._session.closed:  # replaced meanwhile
            return
        for message, at in about:
            self._answer(message, replies[at], replies[at + 1] if message.type in (CANCEL, REPLACE) else [])
        await self._tell(ledger, replies[-1])

    async def _tell(self, ledger: Ledger, told: list[str]) -> None:
        while True:
            for line in told[1:]:
                event = read_event(line)
                again = event.number <= ledger.retold_up_to
                self._session.send(REPORT, self._mapping.report(event), possibly_sent=again)
                ledger.told = event.number
            if len(told) <= EVENTS_MAX:
                return
            (told,) = await self._text.ask([f"EVENTS {self.client} {ledger.told}"])

    def _answer(self, message: Message, reply: Sequence[str], status: Sequence[str]) -> None:
        """What no event tells: refusals, statuses, and once more what became of a request that came twice."""
        if reply and reply[0].startswith("REJECT "):
            order = read_order(status[0]) if status and status[0].startswith("ORDER ") else None
            kind, body = self._mapping.refused(message, reply[0], order, self._report_id(), now_us())
            self._session.send(kind, body)
        elif message.type == STATUS:
            self._session.send(REPORT, self._mapping.status_report(read_order(reply[0]), self._report_id(), now_us()))
        elif message.type in (NEW, CANCEL, REPLACE):
            assert self._session.ledger is not None
            for event in map(read_event, reply):
                if event.number <= self._session.ledger.told:
                    self._session.send(REPORT, self._mapping.report(event), possibly_sent=True)

    def _report_id(self) -> str:
        """ExecID of a report that is no execution, and so has no place in the log."""
        self._reports += 1
        return f"-{now_us()}.{self._reports}"

    def _unfit(self, message: Message, unfit: Unfit) -> None:
        if unfit.tag == 35:
            body: list[tuple[int, str | int]] = [(45, message.get(34)), (372, message.type), (380, 3), (58, unfit.text)]
            self._session.send("j", body)
        else:
            self._session.reject(message, unfit.reason, f"{unfit.text} (tag {unfit.tag})")


async def _run(edge: Edge, listener: socket.socket) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with await asyncio.start_server(edge.serve, sock=listener):
        print("ready", flush=True)
        await ended.wait()
        edge.end()


def _listener(text: str) -> socket.socket:
    """HOST:PORT, or a descriptor's number. OSError when it cannot be had."""
    if text.isdigit():
        return socket.socket(fileno=int(text))
    host, _, port = text.rpartition(":")
    return socket.create_server((host, int(port)))


def main() -> int:
    """Command line of the FIX port."""
    arguments = argparse.ArgumentParser(description="FIX 4.4 in front of a text port of the exchange.")
    arguments.add_argument("--fix", required=True, metavar="HOST:PORT", help="where to listen, or a descriptor")
    arguments.add_argument("--to", required=True, metavar="ADDRESS,...", help="text ports: HOST:PORT or a path")
    arguments.add_argument("--name", default=FIX_NAME, help="this side's CompID")
    arguments.add_argument("--decimals", type=int, default=FIX_DECIMALS, help="of prices; the exchange counts in ticks")
    given = arguments.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        listener = _listener(given.fix)
    except OSError as error:
        print(f"cannot listen on {given.fix}: {error.strerror}", file=sys.stderr)
        return 1
    asyncio.run(_run(Edge(given.name, given.to.split(","), given.decimals), listener))
    return 0
