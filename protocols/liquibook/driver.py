"""A liquibookd of the sidecar's own: started, asked, its state taken and given."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path

from musidecar.closing import Closing
from musidecar.protocols import server
from musidecar.protocols.server import START_TIMEOUT_S, Address, BackendError, Server

END_LINE = b"\nEND\n"
READ_BYTES = 1 << 18


class Connection(Closing):
    """A connection, to liquibookd itself (a path) or to whatever speaks like it. BackendError when it cannot be made,
    is lost, or stays silent for `timeout_s`."""

    def __init__(self, at: Path | str | Address, timeout_s: float = 5.0) -> None:
        self.at = at if isinstance(at, Address) else Address(path=str(at))
        self._input = bytearray()
        try:
            self._socket = self.at.connect(timeout_s)
        except OSError as error:
            raise BackendError(f"cannot connect to liquibookd at {self.at}: {error.strerror or error}") from None

    def ask(self, request: str) -> list[str]:
        """The lines of its reply, END left out."""
        return self._ask(request.encode() + b"\n").decode().splitlines()

    def snapshot(self) -> bytes:
        """All of its state."""
        return self._ask(b"SNAPSHOT\n")

    def restore(self, snapshot: bytes) -> None:
        """Put this state in the place of its own."""
        reply = self._ask(b"RESTORE %d\n%b" % (len(snapshot), snapshot))
        if not reply.startswith(b"RESTORED "):
            raise BackendError(f"liquibookd at {self.at}: {reply.decode(errors='replace').strip()}")

    def _ask(self, request: bytes) -> bytes:
        try:
            self._socket.sendall(request)
            searched = 0
            while True:
                end = self._input.find(END_LINE, max(0, searched - len(END_LINE)))
                if end >= 0 or self._input.startswith(END_LINE[1:]):
                    reply = bytes(self._input[: end + 1])
                    del self._input[: end + len(END_LINE)]
                    return reply
                searched = len(self._input)
                part = self._socket.recv(READ_BYTES)
                if not part:
                    raise BackendError(f"liquibookd at {self.at} closed the connection")
                self._input += part
        except OSError as error:
            raise BackendError(f"connection to liquibookd at {self.at} lost: {error.strerror or error}") from None

    def close(self) -> None:
        self._socket.close()


def version() -> str:
    """Of the package `liquibook`."""
    return importlib.metadata.version("liquibook")


def events(address: Address, timeout_s: float) -> int:
    """How many events it has had: 0 only if nothing was done. BackendError when it does not answer."""
    with Connection(address.path, timeout_s) as connection:
        return int(connection.ask("STATE")[0].split(" ")[3])


def symbols(address: Address, timeout_s: float) -> list[str]:
    """Of its books. BackendError when it does not answer."""
    with Connection(address.path, timeout_s) as connection:
        return [line.split(" ")[1] for line in connection.ask("SYMBOLS")]


def spawn(
    directory: Path,
    socket_path: Path,
    symbols: Sequence[str],
    *,
    binary: str = sys.executable,
    timeout_s: float = START_TIMEOUT_S,
) -> Server:
    """Start liquibookd on `socket_path` and wait until it listens. As with server.start(). binary: a Python."""
    address = Address(path=str(socket_path))
    if _answers_at(address):
        raise BackendError(f"{socket_path} is in use: another liquibookd listens there")
    words = ["-P", "-m", "musidecar.protocols.liquibook", "--socket", str(socket_path), "--symbols", ",".join(symbols)]
    command = server.programs(binary, "python3")
    return server.start(command, words, directory, address, _answers_at, timeout_s)


def _answers_at(address: Address) -> bool:
    try:
        with Connection(address.path, 1.0) as connection:
            return connection.ask("PING") == ["PONG"]
    except BackendError:
        return False
