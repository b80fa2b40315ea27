"""A memcached as a node starts its own, and what a test asks it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from musidecar.protocols.memcached import driver
from musidecar.protocols.memcached.connection import Connection
from musidecar.protocols.server import Address, Server


@contextlib.contextmanager
def spawned_memcached(folder: Path, *arguments: str, **options: Any) -> Iterator[Server]:
    folder.mkdir(exist_ok=True)
    server = driver.spawn(folder, folder / "socket", options=options, arguments=arguments)
    try:
        yield server
    finally:
        server.stop()


def ask(address: Address, request: bytes, lines: int = 1) -> bytes:
    """The lines that answer it."""
    with Connection(address) as connection:
        connection.send(request + b"\r\n")
        return b"\n".join(connection.line() for _ in range(lines))
