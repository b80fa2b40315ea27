"""A gate of the sidecar's own, and HERD behind it: started and waited for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musidecar.protocols import server
from musidecar.protocols.server import Address, BackendError, Server

from .connection import Connection

DEFAULTS: Mapping[str, Any] = {
    "answer_ms": 1000,
    "keys_max": 1 << 22,
    "port_index": 0,
    "registry": "127.0.0.1",
    "start_ms": 120_000,
    "workers": 12,  # as HERD comes
}
LOOK_S = 0.05
ANSWER_S = 5.0


def words(options: Mapping[str, Any]) -> list[str]:
    """The gate's command line for these options."""
    found = []
    for name, value in sorted({**DEFAULTS, **options}.items()):
        found += [f"--{name.replace('_', '-')}", str(value)]
    return found


def spawn(directory: Path, socket_path: Path, options: Mapping[str, Any], *, binary: str) -> Server:
    """Start a gate on `socket_path`; HERD is on its way when this returns. As with server.start(). binary: a Python."""
    address = Address(path=str(socket_path))
    if _answers_at(address):
        raise BackendError(f"{socket_path} is in use: another gate listens there")
    command = server.programs(binary, "python3")
    arguments = ["-P", "-m", "musidecar.protocols.herd", "--socket", str(socket_path), *words(options)]
    timeout_s = float({**DEFAULTS, **options}["start_ms"]) / 1000
    return server.start(command, arguments, directory, address, _answers, timeout_s)


def wait_served(started: Server, log_from: int) -> None:
    """Until HERD is there. BackendError when the gate gives it up, with its reason."""
    while awaited(started.address):
        if (how := started.gone()) is not None:
            raise BackendError(f"HERD did not start ({how}): {server.log_tail(started.log, log_from, 1)}")
        time.sleep(LOOK_S)


def awaited(address: Address) -> str:
    """What is missing before HERD can be asked; "": nothing. BackendError when no gate answers."""
    with Connection(address, ANSWER_S) as connection:
        return connection.awaited()


def _answers(address: Address) -> bool:
    with Connection(address, 1.0) as connection:
        connection.awaited()
    return True


def _answers_at(address: Address) -> bool:
    try:
        return _answers(address)
    except BackendError:
        return False
