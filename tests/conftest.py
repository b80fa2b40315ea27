"""What all tests share: a folder short enough for Unix sockets, free ports, and the command itself."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The source tree."""
    return ROOT


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty private folder with a short path, removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="mu-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def free_port() -> int:
    """The first of five neighbouring free ports, outside the range the kernel gives to clients."""
    start = 20_000 + (os.getpid() * 37) % 8_000
    for port in range(start, start + 4_000, 5):
        probes = [socket.socket() for _ in range(5)]
        try:
            for i, probe in enumerate(probes):
                probe.bind(("127.0.0.1", port + i))
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
        return port
    raise RuntimeError("no five free ports in a row")


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `musidecar ARGUMENTS...` to its end and returns what it said."""

    def run(*arguments: str | Path, timeout_s: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-P", "-m", "musidecar", *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, env=os.environ | more)

    return run
