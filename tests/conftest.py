"""What all tests share: a folder short enough for Unix sockets, free ports, and the command itself."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from musidecar.ports import free_ports, give_back

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
def free_port() -> Iterator[int]:
    """The first of five neighbouring ports that are the test's own."""
    first = free_ports(5)
    yield first
    give_back(first)


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `musidecar ARGUMENTS...` to its end and returns what it said."""

    def run(*arguments: str | Path, timeout_s: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-P", "-m", "musidecar", *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, timeout=timeout_s, env=os.environ | more)

    return run
