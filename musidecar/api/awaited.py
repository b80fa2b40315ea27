"""AsyncReplica: the calls of Replica, awaited. All in the event loop that started it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, Self, TypeVar

from musidecar.api.blocking import CLOSE_S, PAUSE_S_MAX, PAUSE_S_MIN, READ_BYTES, WINDOW, until_closed
from musidecar.api.host import Host, Leadership, check_config, check_machine
from musidecar.config import Cluster
from musidecar.protocols.own import wire
from musidecar.protocols.own.proposals import Done, Proposals
from musidecar.protocols.own.replicated import Rejected
from musidecar.protocols.own.wire import Malformed

Result = TypeVar("Result")


def _settle(future: asyncio.Future[Any]) -> Done:
    def done(value: Any, error: BaseException | None) -> None:
        if future.done():  # given up by its caller
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    return done


class _Line:
    """The connection to the own node's clients' port, read whenever something has come."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._proposals = Proposals()
        self._socket: socket.socket | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._writes = False
        self._closed = False

    def propose(self, records: list[bytes]) -> asyncio.Future[list[bytes | Rejected]]:
        return self._begin(lambda done: self._proposals.propose(records, done))

    def read(self) -> asyncio.Future[int]:
        return self._begin(self._proposals.read)

    def _begin(self, ask: Callable[[Done], None]) -> asyncio.Future[Any]:
        if self._closed or not self._host.runs:
            raise self._host.why_ended()
        future: asyncio.Future[Any] = self._loop.create_future()
        ask(_settle(future))
        self._send()
        return future

    def _send(self) -> None:
        if self._socket is None:
            if self._connecting is None and not self._closed:
                self._connecting = self._loop.create_task(self._connect())
            return
        output = self._proposals.output
        try:
            if output and not self._writes:
                del output[: self._socket.send(output)]
        except BlockingIOError:
            pass
        except OSError:
            self._lose()
            return
        if bool(output) != self._writes:
            self._writes = bool(output)
            if self._writes:
                self._loop.add_writer(self._socket, self._writable)
            else:
                self._loop.remove_writer(self._socket)

    def _writable(self) -> None:
        if self._socket is not None:
            self._loop.remove_writer(self._socket)
            self._writes = False
            self._send()

    def _readable(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(READ_BYTES)
            if data:
                self._proposals.feed(data)
                self._send()
                return
        except BlockingIOError:
            return
        except (OSError, Malformed):
            pass
        self._lose()

    async def _connect(self) -> None:
        pause_s = PAUSE_S_MIN
        while not self._closed and self._host.runs:
            connection = socket.socket(self._host.family, socket.SOCK_STREAM)
            connection.setblocking(False)
            try:
                await self._loop.sock_connect(connection, self._host.connect_to())
            except OSError:  # it does not listen yet, or any more
                connection.close()
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)
                continue
            except asyncio.CancelledError:
                connection.close()
                raise
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket, self._connecting = connection, None
            self._loop.add_reader(connection, self._readable)
            self._proposals.connected()
            self._send()
            return
        self._connecting = None

    def _lose(self) -> None:
        """What is under way goes over the next connection."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._socket, self._writes = None, False
        if not self._closed and self._proposals.under_way:
            self._send()

    def ended(self) -> None:
        """Any thread: the node has."""
        with contextlib.suppress(RuntimeError):  # so has the loop
            self._loop.call_soon_threadsafe(self.close)

    async def leave(self) -> None:
        """Before the node ends: the machines are told, if they can be, that this client asks for nothing any more."""
        if self._socket is None or self._proposals.under_way or not self._host.leadership.serving:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._begin(self._proposals.close), CLOSE_S)

    def close(self) -> None:
        """In the loop, after the node has ended."""
        self._closed = True
        self._lose()
        if self._connecting is not None:
            self._connecting.cancel()
        self._proposals.give_up(until_closed(self._host))


class AsyncReplica:
    """As Replica, with its arguments and errors; made and used in one event loop. A call that is cancelled, or ended by
    asyncio.timeout(), is under way all the same."""

    def __init__(
        self, config: Cluster | Path | str, node: int, machine: Any, *, check: bool = False, replace_data: bool = False
    ) -> None:
        check_machine(machine, copies=check)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: list[asyncio.Queue[Leadership | None]] = []
        self._host = Host(
            check_config(config), node, machine, check=check, replace_data=replace_data, told=self._tell,
            ended=self._node_ended,
        )  # fmt: skip
        self._line: _Line | None = None

    async def start(self) -> None:
        """As Replica.start()."""
        self._loop = asyncio.get_running_loop()
        self._line = _Line(self._host)
        await asyncio.to_thread(self._host.start)

    async def close(self) -> None:
        """As Replica.close()."""
        if self._line is not None:
            await self._line.leave()
        await asyncio.to_thread(self._host.stop)
        if self._line is not None:
            self._line.close()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ---- calls ----

    def _running(self) -> _Line:
        if self._line is None:
            raise self._host.why_ended()
        return self._line

    async def propose(self, record: bytes) -> bytes:
        """As Replica.propose()."""
        (batch,) = wire.split([record])
        (result,) = await self._running().propose(batch)
        if isinstance(result, Rejected):
            raise result
        return result

    async def propose_many(self, records: Iterable[bytes]) -> list[bytes | Rejected]:
        """As Replica.propose_many()."""
        line, results = self._running(), []
        under_way: deque[asyncio.Future[list[bytes | Rejected]]] = deque()
        try:
            for batch in wire.split(records):
                if len(under_way) == WINDOW:
                    results += await under_way.popleft()
                under_way.append(line.propose(batch))
            while under_way:
                results += await under_way.popleft()
        finally:
            for left in under_way:
                left.cancel()
        return results

    async def read(self, fn: Callable[[Any], Result]) -> Result:
        """As Replica.read(): `fn` runs in the machine's thread."""
        stamp = await self._running().read()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        settle = _settle(future)

        def done(value: Any, error: BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(settle, value, error)

        self._host.when(stamp, fn, done)
        try:
            return await future
        except Exception as error:
            if self._host.runs:
                raise
            raise self._host.why_ended() from error

    # ---- leadership ----

    @property
    def leadership(self) -> Leadership:
        """As this node was last told."""
        return self._host.leadership

    async def events(self) -> AsyncIterator[Leadership]:
        """As it was last told, and then every change, until the replica ends."""
        came: asyncio.Queue[Leadership | None] = asyncio.Queue()
        came.put_nowait(self._host.leadership)
        if not self._host.runs:
            came.put_nowait(None)
        self._listeners.append(came)
        try:
            while (found := await came.get()) is not None:
                yield found
        finally:
            self._listeners.remove(came)

    def _tell(self, leadership: Leadership | None) -> None:
        """In the node's thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._tell_all, leadership)

    def _tell_all(self, leadership: Leadership | None) -> None:
        for each in self._listeners:
            each.put_nowait(leadership)

    def _node_ended(self) -> None:
        self._tell(None)
        if self._line is not None:
            self._line.ended()
