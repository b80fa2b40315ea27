"""Replica: calls that wait. Any number of threads."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from musidecar.api.host import Host, Leadership, check_config, check_machine, wake
from musidecar.config import Cluster
from musidecar.protocols.own import wire
from musidecar.protocols.own.proposals import Proposals, Unknown
from musidecar.protocols.own.replicated import Rejected
from musidecar.protocols.own.wire import Malformed

READ_BYTES = 1 << 18
WINDOW = 32  # batches under way of one propose_many()
PAUSE_S_MIN, PAUSE_S_MAX = 0.001, 0.1  # between attempts to connect
CLOSE_S = 0.5  # for the machines to hear that this client asks for nothing any more

Result = TypeVar("Result")


class _Cell:
    """A call's outcome."""

    __slots__ = ("done", "error", "value")

    def __init__(self) -> None:
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None

    def set(self, value: Any, error: BaseException | None) -> None:
        self.value, self.error, self.done = value, error, True

    def get(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class _Line:
    """The connection to the own node's clients' port, for all threads. Whoever waits reads for the others, too: a call
    costs no change of threads here."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._changed = threading.Condition()
        self._proposals = Proposals()
        self._socket: socket.socket | None = None
        self._pumping = False
        self._pause_s = PAUSE_S_MIN
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def propose(self, records: list[bytes]) -> _Cell:
        cell = _Cell()
        with self._changed:
            self._check()
            self._proposals.propose(records, cell.set)
            self._send()
        return cell

    def read(self) -> _Cell:
        """Its value is a stamp."""
        cell = _Cell()
        with self._changed:
            self._check()
            self._proposals.read(cell.set)
            self._send()
        return cell

    def _check(self) -> None:
        if self._closed or not self._host.runs:
            raise self._host.why_ended()

    def wait(self, cell: _Cell, deadline: float | None) -> None:
        """TimeoutError at the deadline (of time.monotonic())."""
        with self._changed:
            while not cell.done:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError("no outcome yet: it is under way")
                if self._pumping:
                    self._changed.wait(left)
                    continue
                if not self._host.runs:
                    self._end()
                    continue
                self._pump(left)

    def _pump(self, wait_s: float | None) -> None:
        """With the lock, which is free while this waits."""
        self._pumping = True
        connection, more = self._socket, bool(self._proposals.output)
        data: bytes | None = b""
        made: socket.socket | None = None
        self._changed.release()
        try:
            if connection is None:
                made = self._connect(wait_s)
            else:
                data = self._receive(connection, more, wait_s)
        finally:
            self._changed.acquire()
            self._pumping = False
            if made is not None:
                self._socket = made
                self._proposals.connected()
            self._take(data)
            self._changed.notify_all()

    def _connect(self, wait_s: float | None) -> socket.socket | None:
        try:
            made = socket.create_connection(self._host.connect_to(), 1.0 if wait_s is None else min(wait_s, 1.0))
        except OSError:  # it does not listen yet, or any more
            self._pause(wait_s)
            return None
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        return made

    def _pause(self, wait_s: float | None) -> None:
        pause_s = self._pause_s if wait_s is None else min(self._pause_s, wait_s)
        self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.poll(pause_s * 1000)

    def _receive(self, connection: socket.socket, more: bool, wait_s: float | None) -> bytes | None:
        """None: the connection has ended."""
        poll = select.poll()
        poll.register(connection, select.POLLIN | (select.POLLOUT if more else 0))
        poll.register(self._wake, select.POLLIN)
        for fd, events in poll.poll(None if wait_s is None else wait_s * 1000):
            if fd == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif events & ~select.POLLOUT:
                try:
                    return connection.recv(READ_BYTES) or None
                except BlockingIOError:
                    pass
                except OSError:
                    return None
        return b""

    def _take(self, data: bytes | None) -> None:
        try:
            if data:
                self._pause_s = PAUSE_S_MIN
                self._proposals.feed(data)
        except Malformed:
            data = None
        if data is None:
            self._lose()
        self._send()

    def _send(self) -> None:
        """What the socket takes now; who pumps sends the rest."""
        output = self._proposals.output
        if self._socket is None or not output:
            return
        try:
            del output[: self._socket.send(output)]
        except BlockingIOError:
            pass
        except OSError:
            if not self._pumping:  # else who pumps notices, and nobody closes what that one waits for
                self._lose()
                return
        if output and self._pumping:
            wake(self._wake)

    def _lose(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ended(self) -> None:
        """The node has: whoever waits is to hear of it."""
        with self._changed:
            if not self._closed:
                wake(self._wake)
                self._changed.notify_all()

    def _end(self) -> None:
        self._lose()
        self._proposals.give_up(until_closed(self._host))

    def leave(self) -> None:
        """Before the node ends: the machines are told, if they can be, that this client asks for nothing any more."""
        with self._changed:
            if self._socket is None or self._proposals.under_way or not self._host.leadership.serving:
                return
            cell = _Cell()
            self._proposals.close(cell.set)
            self._send()
        with contextlib.suppress(TimeoutError):
            self.wait(cell, time.monotonic() + CLOSE_S)

    def close(self) -> None:
        """After the node has ended."""
        with self._changed:
            while self._pumping:
                self._changed.wait()
            self._end()
            self._changed.notify_all()
            if not self._closed:
                self._closed = True
                os.close(self._wake)


class Replica:
    """One node of a replicated machine, in this process; docs/api.md.

    config: a file (configs/cluster.toml), or what musidecar.config.load() made of it; every node's backend is
    `{ kind = "own", socket = "..." }`. node: which of its nodes this is. machine: see Machine; from here on it belongs
    to a thread of the replica. check: apply everything a second time in another process, and compare. replace_data: as
    `musidecar run --replace-data`.

    ConfigError when the configuration cannot be used, TypeError when the machine is none.
    """

    def __init__(
        self, config: Cluster | Path | str, node: int, machine: Any, *, check: bool = False, replace_data: bool = False
    ) -> None:
        check_machine(machine, copies=check)
        self._lock = threading.Lock()
        self._listeners: list[queue.SimpleQueue[Leadership | None]] = []
        self._host = Host(
            check_config(config), node, machine, check=check, replace_data=replace_data, told=self._tell,
            ended=self._node_ended,
        )  # fmt: skip
        self._line = _Line(self._host)

    def start(self) -> None:
        """Returns once all nodes have met and formed the cluster, or this one has joined it where it runs, and a
        majority and this node hold what it began with. BackendError, EngineError, MeshError, ConfigError: it cannot."""
        self._host.start()

    def close(self) -> None:
        """Ends this node; the others go on. Again, or unstarted: nothing."""
        self._line.leave()
        self._host.stop()
        self._line.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- calls ----

    def propose(self, record: bytes, timeout_s: float | None = None) -> bytes:
        """What this node's apply() returned for it, once it is committed.

        Waits for as long as there is no leader, and beyond the death of any. Rejected: as apply() raised it. Closed:
        nothing was proposed. Unknown: this replica was closed meanwhile. MachineFailed: this node's machine did, and
        the record may be the reason. TimeoutError after `timeout_s`: it is under way, and will be applied, if ever,
        once.
        """
        (batch,) = wire.split([record])
        cell = self._line.propose(batch)
        self._line.wait(cell, _deadline(timeout_s))
        result: bytes | Rejected = cell.get()[0]
        if isinstance(result, Rejected):
            raise result
        return result

    def propose_many(self, records: Iterable[bytes], timeout_s: float | None = None) -> list[bytes | Rejected]:
        """The results in order, a Rejected in the place of its own. The records are applied in this order; in batches,
        so another's may come between them. What is raised is as with propose(): then a part of them may be applied."""
        deadline, results = _deadline(timeout_s), []
        under_way: deque[_Cell] = deque()
        for batch in wire.split(records):
            if len(under_way) == WINDOW:
                self._line.wait(under_way[0], deadline)
                results += under_way.popleft().get()
            under_way.append(self._line.propose(batch))
        for cell in under_way:
            self._line.wait(cell, deadline)
            results += cell.get()
        return results

    def read(self, fn: Callable[[Any], Result], timeout_s: float | None = None) -> Result:
        """fn(machine), linearizable: all is applied that any node acknowledged before this call. It runs in the
        machine's thread, between two batches: keep it short, change nothing, return no part of the machine that
        changes."""
        deadline = _deadline(timeout_s)
        cell = self._line.read()
        self._line.wait(cell, deadline)
        came: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._host.when(cell.get(), fn, lambda result, error: came.put((result, error)))
        try:
            result, error = came.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError("the machine is not there yet") from None
        if error is not None:
            raise error if self._host.runs else self._host.why_ended() from error
        found: Result = result
        return found

    # ---- leadership ----

    @property
    def leadership(self) -> Leadership:
        """As this node was last told."""
        return self._host.leadership

    def events(self) -> Iterator[Leadership]:
        """As it was last told, and then every change, until the replica ends; waits for each."""
        came: queue.SimpleQueue[Leadership | None] = queue.SimpleQueue()
        with self._lock:
            came.put(self._host.leadership)
            if self._host.runs:
                self._listeners.append(came)
            else:
                came.put(None)
        return self._listen(came)

    def _listen(self, came: queue.SimpleQueue[Leadership | None]) -> Iterator[Leadership]:
        try:
            while (found := came.get()) is not None:
                yield found
        finally:
            with self._lock:
                if came in self._listeners:
                    self._listeners.remove(came)

    def _tell(self, leadership: Leadership | None) -> None:
        with self._lock:
            for each in self._listeners:
                each.put(leadership)

    def _node_ended(self) -> None:
        self._tell(None)
        self._line.ended()


def until_closed(host: Host) -> Callable[[str], BaseException]:
    """What is told who waits for a "proposal" or a "read" when the node has ended."""
    unknown = Unknown("this replica was closed before there was an outcome: it may be in the log, or not")
    return lambda what: host.why_ended() if host.error or what == "read" else unknown


def _deadline(timeout_s: float | None) -> float | None:
    return None if timeout_s is None else time.monotonic() + timeout_s
