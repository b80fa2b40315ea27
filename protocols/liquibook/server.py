"""liquibookd: one Exchange, its requests in the order in which they come, over a Unix socket.

    python -m musidecar.protocols.liquibook --socket PATH --symbols AAPL,MSFT

One thread, no timers: it sleeps until a socket is readable. Only its user may connect (mode 0600). It prints `ready`
once it listens.
"""

from __future__ import annotations

import argparse
import gc
import re
import selectors
import signal
import socket
import sys
from pathlib import Path

from ..server import private_listener, remove_leftover
from .exchange import END, Exchange
from .grammar import LINE_BYTES_MAX, NAME_BYTES_MAX, Reject, malformed

READ_BYTES = 1 << 18
OUTPUT_BYTES = 1 << 18  # of replies at once
RESTORE_BYTES_MAX = 1 << 34
SYMBOL = re.compile(rf"[!-~]{{1,{NAME_BYTES_MAX}}}")


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.input = bytearray()
        self.output = bytearray()
        self.body = -1  # bytes of a snapshot that are to come; -1: none
        self.ended = False  # it says nothing more
        self.broken = False  # what it says now is no request

    @property
    def interest(self) -> int:
        read = 0 if self.ended or self.broken or self.output else selectors.EVENT_READ
        return read | (selectors.EVENT_WRITE if self.output else 0)


class Server:
    """Listens on `path` from the moment it is made; `run()` serves until `stop()`."""

    def __init__(self, path: Path, exchange: Exchange) -> None:
        self.path = path
        self.exchange = exchange
        self._selector = selectors.DefaultSelector()
        remove_leftover(path)
        self._listener = private_listener(path, 128)
        self._wake, self._waker = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ, None)
        self._selector.register(self._wake, selectors.EVENT_READ, None)

    def stop(self) -> None:
        """Any thread, or a signal handler."""
        self._waker.send(b".")

    def run(self) -> None:
        try:
            while True:
                for key, events in self._selector.select():
                    if key.fileobj is self._wake:
                        return
                    if key.data is None:
                        self._accept()
                    else:
                        self._serve(key.data, events)
        finally:
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()
            self._waker.close()
            self._selector.close()
            self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, _Client(connection))

    def _serve(self, client: _Client, events: int) -> None:
        """Of a client that does not take its replies nothing is read, and nothing more is done, until it does."""
        before = client.interest
        try:
            if events & selectors.EVENT_READ:
                part = client.connection.recv(READ_BYTES)
                client.input += part
                client.ended = not part
            while self._work(client):
                del client.output[: client.connection.send(client.output)]
        except BlockingIOError:
            pass
        except OSError:
            client.ended = True
            client.output.clear()
        if (client.ended or client.broken) and not client.output:
            self._selector.unregister(client.connection)
            client.connection.close()
        elif client.interest != before:
            self._selector.modify(client.connection, client.interest, client)

    def _work(self, client: _Client) -> bool:
        """Whole requests, until there are many replies to take, or no more requests. Whether there are replies."""
        at = 0
        while not client.broken and len(client.output) < OUTPUT_BYTES:
            if client.body >= 0:
                if len(client.input) - at < client.body:
                    break
                client.output += self._restore(bytes(client.input[at : at + client.body]))
                at += client.body
                client.body = -1
                continue
            end = client.input.find(b"\n", at, at + LINE_BYTES_MAX)
            if end < 0 and len(client.input) - at < LINE_BYTES_MAX:
                break
            client.broken = end < 0
            line = bytes(client.input[at : at + LINE_BYTES_MAX if end < 0 else end])
            at = end + 1
            if line.startswith(b"RESTORE"):
                self._restore_begins(client, line)
            else:
                client.output += self.exchange.apply(line)
        del client.input[:at]
        return bool(client.output)

    @staticmethod
    def _restore_begins(client: _Client, line: bytes) -> None:
        match = re.fullmatch(rb"RESTORE ([0-9]{1,12})", line)
        if match is None or int(match[1]) > RESTORE_BYTES_MAX:
            client.output += _rejected(malformed("RESTORE BYTES, and so many bytes of a snapshot"))
            client.broken = True
        else:
            client.body = int(match[1])

    def _restore(self, data: bytes) -> bytes:
        try:
            self.exchange = Exchange.restored(data)
        except Reject as reject:
            return _rejected(reject)
        gc.collect()  # the former books and their listeners know each other
        return b"RESTORED %d\n" % self.exchange.index + END


def _rejected(reject: Reject) -> bytes:
    return f"REJECT {reject.code} {reject.text}\n".encode() + END


def main() -> int:
    """Command line of liquibookd."""
    arguments = argparse.ArgumentParser(prog="liquibookd", description="The engine of `liquibook`, served.")
    arguments.add_argument("--socket", type=Path, required=True, help="where to listen")
    arguments.add_argument("--symbols", required=True, help="the books, e.g. AAPL,MSFT; the same on all nodes")
    given = arguments.parse_args()
    symbols = given.symbols.split(",")
    if len(set(symbols)) < len(symbols) or not all(map(SYMBOL.fullmatch, symbols)):
        arguments.error(f"--symbols: 1 to {NAME_BYTES_MAX} printable characters each, and each once")
    try:
        server = Server(given.socket, Exchange(symbols))
    except OSError as error:
        print(f"liquibookd: {given.socket}: {error.strerror}", file=sys.stderr)
        return 1
    gc.disable()  # nothing here is circular, and to look through all orders takes tens of milliseconds
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    print("ready", flush=True)
    server.run()
    return 0
