"""The server of a machine: one thread of the user's own process, that owns it, behind a Unix socket."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from musidecar.protocols.server import BackendError, private_listener

from .replicated import Machine, MachineFailed, Replicated
from .wire import HEAD, STAMP, STAMP_HEAD, Malformed

READ_BYTES = 1 << 18  # what is committed in the meantime arrives at once
CALL_S = 60.0  # a snapshot, or a machine that is filled

log = logging.getLogger("musidecar.machine")

Done = Callable[[Any, BaseException | None], None]


class Ended(BackendError):
    """The machine's thread has ended."""


class _Connection:
    __slots__ = ("input", "output", "socket", "wanted")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.input = bytearray()  # the start of a frame
        self.wanted = 1  # nothing is to be done before so much of it is there
        self.output = memoryview(b"")  # what the other side did not take yet; until it has, nothing is read from it


class Server:
    """From `start()` to `stop()`. `failed` is called once, in the thread, when the machine has failed: it serves nobody
    any more."""

    def __init__(self, path: Path, state: Replicated, failed: Callable[[MachineFailed], None]) -> None:
        self.path = path
        self._state = state
        self._failed = failed
        self._connections: dict[int, _Connection] = {}
        self._lock = threading.Lock()
        self._todo: deque[tuple[int, Callable[[Machine], Any], Done]] = deque()
        self._waiting: list[tuple[int, int, Callable[[Machine], Any], Done]] = []  # heap, by stamp
        self._order = itertools.count()
        self._ended = False
        self._stopping = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._buffer = bytearray(READ_BYTES)
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listens when this returns. BackendError."""
        self._listener = _listen(self.path)
        self._thread = threading.Thread(target=self._run, name="machine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends when what is being applied is. Whoever waits for the machine gets Ended."""
        self._stopping = True
        self._awake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(CALL_S)

    def close(self) -> None:
        """After stop(): nobody calls any more."""
        with self._lock:
            if self._wake >= 0 and (self._thread is None or not self._thread.is_alive()):
                os.close(self._wake)
                self._wake = -1

    @property
    def alive(self) -> bool:
        return self._thread is not None and not self._ended

    @property
    def applied(self) -> int:
        """Records."""
        return self._state.applied

    # ---- what is done in the thread for others ----

    def when(self, stamp: int, action: Callable[[Machine], Any], done: Done) -> None:
        """Any thread: calls `action` with the machine once it holds what is logged up to `stamp`, between two batches,
        and then done(result, None) or done(None, error); both in the thread."""
        with self._lock:
            if not self._ended:
                self._todo.append((stamp, action, done))
                self._awake_locked()
                return
        done(None, Ended("the machine has ended"))

    def call(self, action: Callable[[Replicated], Any]) -> Any:
        """Any other thread: the same with all of the state, at once, waited for. What it raises; Ended; BackendError
        when it takes too long."""
        found: list[tuple[Any, BaseException | None]] = []
        came = threading.Event()

        def done(result: Any, error: BaseException | None) -> None:
            found.append((result, error))
            came.set()

        self.when(0, lambda _: action(self._state), done)
        if not came.wait(CALL_S):
            raise BackendError(f"the machine is at work for more than {CALL_S:g} s")
        result, error = found[0]
        if error is not None:
            raise error
        return result

    def _awake(self) -> None:
        with self._lock:
            self._awake_locked()

    def _awake_locked(self) -> None:
        if self._wake >= 0:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._wake, 1)

    # ---- the thread ----

    def _run(self) -> None:
        assert self._listener is not None
        poll = select.epoll()
        poll.register(self._listener, select.EPOLLIN)
        poll.register(self._wake, select.EPOLLIN)
        try:
            while not self._stopping:
                for fd, _ in poll.poll():
                    if fd == self._wake:
                        self._take_todo()
                    elif fd == self._listener.fileno():
                        self._accept(poll)
                    else:
                        self._serve(poll, self._connections[fd])
                if self._waiting:
                    self._run_due()
        except MachineFailed as error:
            self._failed(error)
        finally:
            self._end(poll)

    def _end(self, poll: select.epoll) -> None:
        with self._lock:
            self._ended = True
            left = [done for _, _, done in self._todo] + [done for _, _, _, done in self._waiting]
            self._todo.clear()
            self._waiting.clear()
        for done in left:
            done(None, Ended("the machine has ended"))
        for each in self._connections.values():
            each.socket.close()
        self._connections.clear()
        if self._listener is not None:
            self._listener.close()
        poll.close()
        self.path.unlink(missing_ok=True)

    def _take_todo(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._todo:
            stamp, action, done = self._todo.popleft()
            heapq.heappush(self._waiting, (stamp, next(self._order), action, done))

    def _run_due(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._state.stamp:
            _, _, action, done = heapq.heappop(self._waiting)
            try:
                result = action(self._state.machine)
            except MachineFailed as error:
                done(None, error)
                raise
            except BaseException as error:
                done(None, error)
            else:
                done(result, None)

    def _accept(self, poll: select.epoll) -> None:
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        self._connections[connection.fileno()] = _Connection(connection)
        poll.register(connection, select.EPOLLIN)

    def _serve(self, poll: select.epoll, connection: _Connection) -> None:
        try:
            if connection.output:
                connection.output = connection.output[connection.socket.send(connection.output) :]
                if not connection.output:
                    poll.modify(connection.socket, select.EPOLLIN)
                return
            size = connection.socket.recv_into(self._buffer)
            if size > 0:
                self._work(poll, connection, size)
                return
        except BlockingIOError:
            return
        except Malformed as error:
            log.error("a connection to the machine is closed: %s", error)
        except OSError:  # also of the first reply to one that is closed: nothing more of what it had sent is applied
            pass
        poll.unregister(connection.socket)
        del self._connections[connection.socket.fileno()]
        connection.socket.close()

    def _work(self, poll: select.epoll, connection: _Connection, size: int) -> None:
        """What has come is applied, and answered at once."""
        with memoryview(self._buffer) as view:
            data = bytes(view[:size])
        if connection.input:
            connection.input += data
            if len(connection.input) < connection.wanted:
                return
            data = bytes(connection.input)
        replies, used = self._state.feed(data)
        connection.input = bytearray(data[used:])
        connection.wanted = _wanted(connection.input)
        if not replies:
            return
        try:
            sent = connection.socket.send(replies)
        except BlockingIOError:
            sent = 0
        if sent < len(replies):
            connection.output = memoryview(replies)[sent:]
            poll.modify(connection.socket, select.EPOLLOUT)


def _wanted(start: bytearray) -> int:
    """How much of it must be there before there is something to do."""
    at = STAMP_HEAD.size if start[:1] == bytes([STAMP]) else 0
    if len(start) < at + HEAD.size:
        return at + HEAD.size
    return at + int.from_bytes(start[at + 4 : at + 8], "little")


def _listen(path: Path) -> socket.socket:
    try:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(FileNotFoundError):
            try:
                probe.connect(str(path))
                raise BackendError(f"{path} is in use: another machine listens there")
            except ConnectionRefusedError:
                path.unlink()  # of one that was killed
        return private_listener(path, 16)
    except OSError as error:
        raise BackendError(f"{path}: cannot listen here: {error.strerror}") from None
