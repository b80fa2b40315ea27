"""A cluster of machines on this host, for the bench and the tests: a folder with its configuration, and Python programs
that are its nodes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from musidecar import secret
from musidecar.config import load
from musidecar.ports import free_ports, give_back
from musidecar.status import collect

STOP_S = 20.0


def write_config(folder: Path, port: int, nodes: int = 3, more: str = "") -> Path:
    """cluster.toml, with its secret, of nodes that listen on `port` and the next. more: what stands at its end."""
    secret.create(folder / "secret")
    lines = ["[cluster]", 'name = "machines"', 'secret_file = "secret"', 'directory = "run"']
    for node in range(1, nodes + 1):
        backend = f'{{ kind = "own", socket = "machine-{node}.sock" }}'
        lines += ["", "[[nodes]]", f"id = {node}", f'client = "127.0.0.1:{port + node - 1}"', f"backend = {backend}"]
    path = folder / "cluster.toml"
    path.write_text("\n".join([*lines, "", more]))
    return path


class Machines:
    """A folder, ports and a cluster.toml; each node is a Python program that this starts, and ends with it."""

    def __init__(self, nodes: int = 3, more: str = "") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mu-"))
        self.nodes = nodes
        self._port = free_ports(nodes)
        self.path = write_config(self.folder, self._port, nodes, more)
        self.config = load(self.path)
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, node: int, *words: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """`python WORDS`, with its input and output as pipes; what it says of errors goes to NODE.log in the folder."""
        with open(self.log(node), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env={**os.environ, **(env or {})},
            )  # fmt: skip
        self.running[node] = process
        return process

    def log(self, node: int) -> Path:
        return self.folder / f"{node}.log"

    def say(self, node: int, text: str = "") -> None:
        """A line, to its input."""
        pipe = self.running[node].stdin
        assert pipe is not None
        pipe.write(text.encode() + b"\n")
        pipe.flush()

    def hear(self, node: int) -> str:
        """The next line of its output; "" when there is no more."""
        pipe = self.running[node].stdout
        assert pipe is not None
        return pipe.readline().decode().rstrip("\n")

    def kill(self, node: int) -> None:
        """SIGKILL, and it is gone when this returns."""
        process = self.running.pop(node)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _close(process)

    def status(self) -> dict[str, Any]:
        """As `musidecar status --json`."""
        return collect(self.config)

    def close(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            _close(process)
        self.running.clear()
        give_back(self._port)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(process: subprocess.Popen[bytes]) -> None:
    pipes: tuple[IO[bytes] | None, ...] = (process.stdin, process.stdout)
    for pipe in pipes:
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                pass
