"""A liquibookd and FIX ports in front of it, as processes, and clients with sockets."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from socket import create_connection

from musidecar.closing import Closing
from musidecar.protocols.liquibook.driver import Connection, spawn
from musidecar.protocols.liquibook.fix_wire import Message
from tests.unit.fix_client import Peer

TIMEOUT_S = 20.0


class Port:
    """A FIX port in front of these text ports."""

    def __init__(self, port: int, addresses: str, log: Path) -> None:
        self.port = port
        command = [sys.executable, "-P", "-m", "musidecar.protocols.liquibook"]
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [*command, "--fix", f"127.0.0.1:{port}", "--to", addresses], stdout=subprocess.PIPE, stderr=output
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n", log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Exchange:
    """liquibookd, and as many FIX ports as are asked for, all gone at the end."""

    def __init__(self, folder: Path, first_port: int) -> None:
        self.folder, self._next_port = folder, first_port
        self.server = spawn(folder, folder / "x.sock", ["AAPL", "MSFT"])
        self.ports: list[Port] = []

    def fix_port(self, addresses: str = "") -> Port:
        self.ports.append(Port(self._next_port, addresses or str(self.server.address.path), self.folder / "fix.log"))
        self._next_port += 1
        return self.ports[-1]

    def ask(self, request: str) -> list[str]:
        with Connection(self.server.address.path) as connection:
            return connection.ask(request)

    def close(self) -> None:
        for port in self.ports:
            if port.process.poll() is None:
                port.kill()
        self.server.stop()


class Client(Closing):
    """A FIX client that keeps all it is told."""

    def __init__(self, port: Port, peer: Peer) -> None:
        self.peer = peer
        self.heard: list[Message] = []
        self._socket = create_connection(("127.0.0.1", port.port), TIMEOUT_S)

    def send(self, *parts: bytes) -> None:
        self._socket.sendall(b"".join(parts))

    def until(self, wanted: Callable[[Message], bool]) -> Message:
        """The first such one that has not been waited for before."""
        deadline, at = time.monotonic() + TIMEOUT_S, 0
        while True:
            for i in range(at, len(self.heard)):
                if wanted(self.heard[i]):
                    found = self.heard[i]
                    del self.heard[: i + 1]
                    return found
            at = len(self.heard)
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            data = self._socket.recv(1 << 16)
            assert data, f"closed; told {[m.type for m in self.heard]}"
            self.heard += self.peer.hear(data)

    def of_type(self, kind: str) -> Message:
        return self.until(lambda message: message.type == kind)

    def report(self, exec_type: str) -> Message:
        return self.until(lambda message: message.type == "8" and message.get(150) == exec_type)

    def log_on(self, *more: tuple[int, str | int]) -> Message:
        self.send(self.peer.logon(*more))
        return self.of_type("A")

    def close(self) -> None:
        self._socket.close()
