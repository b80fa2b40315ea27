"""`musidecar local`, `run` and `status` as an operator meets them: real processes, killed and restarted."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from musidecar.directory import is_held

Command = Callable[..., subprocess.CompletedProcess[str]]


class Foreground:
    """`musidecar local` in a process of its own, and what it prints."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        self.folder, self.port = folder, port
        line = [sys.executable, "-P", "-m", "musidecar", "local", "--dir", str(folder), "--port", str(port), *options]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
        self.said: list[str] = []
        self._rest = b""

    def line(self, beginning: str, timeout_s: float = 60.0) -> str:
        """The next line that starts so. Fails with everything said when it does not come."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while True:
            while b"\n" in self._rest:
                raw, self._rest = self._rest.split(b"\n", 1)
                self.said.append(raw.decode())
                if self.said[-1].startswith(beginning):
                    return self.said[-1]
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            assert chunk, f"no line {beginning!r} in {self.said}"
            self._rest += chunk

    def status(self) -> dict[str, Any]:
        line = [sys.executable, "-P", "-m", "musidecar", "status", "--dir", str(self.folder), "--json"]
        found: dict[str, Any] = json.loads(subprocess.run(line, capture_output=True, text=True, timeout=60).stdout)
        return found

    def pids(self) -> list[int]:
        """Every sidecar and every server behind one."""
        nodes = self.status()["nodes"]
        return [node[key] for node in nodes for key in ("pid", "backend_pid") if node[key] is not None]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def local(folder: Path, free_port: int) -> Iterator[Foreground]:
    """A cluster that is ready."""
    found = Foreground(folder / "c", free_port)
    try:
        found.line("ready")
        yield found
    finally:
        found.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(what: str, test: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not test():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_status_tells_machines_and_people(local: Foreground, command: Command) -> None:
    snapshot = local.status()
    assert {"cluster", "leader", "term", "nodes"} <= set(snapshot)
    leader = next(node for node in snapshot["nodes"] if node["role"] == "leader")
    assert snapshot["leader"] == leader["id"]
    for i, node in enumerate(snapshot["nodes"], 1):
        assert node["id"] == i
        assert node["client"] == f"127.0.0.1:{local.port + i - 1}"
        assert all(alive(node[key]) for key in ("pid", "backend_pid"))
        assert Path(node["backend"]).is_socket()
        for key in ("role", "commit", "applied", "log_hash", "incarnation"):
            assert node[key] is not None
    done = command("status", "--dir", local.folder)
    assert done.returncode == 0
    assert "Everything is in order" in done.stdout
    assert "survives processes, not the host" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert command("status", "--config", local.folder / "cluster.toml").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_end_of_local_is_the_end_of_all(local: Foreground, number: signal.Signals) -> None:
    pids = local.pids()
    assert len(pids) == 6
    local.process.send_signal(number)
    assert local.process.wait(20) == (-number if number == signal.SIGKILL else 0)
    wait_for("every process ends", lambda: not any(map(alive, pids)))


def test_a_dead_node_is_told_and_the_others_go_on(local: Foreground, command: Command) -> None:
    client = redis.Redis(port=local.port + 1)
    client.set("before", 1)
    node = local.status()["nodes"][0]
    os.kill(node["pid"], signal.SIGKILL)
    assert str(local.folder / "1.log") in local.line("node 1 ended: killed by SIGKILL")
    wait_for("its server ends", lambda: not alive(node["backend_pid"]))
    wait_for("another leads", lambda: local.status()["leader"] in (2, 3))
    with redis.Redis(port=local.port + 2) as other:
        assert other.get("before") == b"1"
    done = command("status", "--dir", local.folder)
    assert done.returncode == 1
    assert "node 1 is not running" in done.stdout
    assert local.process.poll() is None
    client.close()


def test_a_stopped_node_is_not_called_dead(local: Foreground, command: Command) -> None:
    pid = local.status()["nodes"][2]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        done = command("status", "--dir", local.folder)
        assert done.returncode == 1
        assert "node 3 runs, but does not answer" in " ".join(done.stdout.split())
    finally:
        os.kill(pid, signal.SIGCONT)


def test_one_folder_one_cluster_one_process_a_node(local: Foreground, command: Command) -> None:
    again = command("local", "--dir", local.folder, "--port", str(local.port + 100))
    assert again.returncode == 2
    assert f"a cluster is running here (pid {local.process.pid})" in again.stderr
    twice = command("run", "--config", local.folder / "cluster.toml", "--node", "2")
    assert twice.returncode == 2
    assert "node 2 is running already" in twice.stderr
    assert len(local.pids()) == 6


def test_a_dead_clusters_folder_is_reclaimed_at_once(folder: Path, free_port: int) -> None:
    first = Foreground(folder / "c", free_port)
    first.line("ready")
    first.process.kill()  # and no waiting for its nodes: they may still be dying
    first.process.wait()
    second = Foreground(folder / "c", free_port)
    try:
        second.line("ready")
        assert len(second.pids()) == 6
    finally:
        second.close()
        first.close()
    assert not any(is_held(path) for path in (folder / "c").glob("*lock"))


def test_restart_starts_a_dead_node_again(folder: Path, free_port: int) -> None:
    local = Foreground(folder / "c", free_port, "--restart")
    try:
        local.line("ready")
        old = local.status()["nodes"][2]["pid"]
        os.kill(old, signal.SIGKILL)
        assert local.line("node 3 ended").endswith("starting it again")
        wait_for("a new process", lambda: (folder / "c/node-3.lock").read_text().strip() not in ("", str(old)))
        wait_for("it counts again", lambda: local.status()["nodes"][2].get("member") is True)
        assert local.status()["nodes"][2]["role"] == "follower"
    finally:
        local.close()


def test_a_node_that_cannot_start_is_named_with_its_last_words(folder: Path, free_port: int) -> None:
    server = folder / "redis-server"
    server.write_text("#!/bin/sh\necho no memory today >&2\nexit 3\n")
    server.chmod(0o755)
    local = Foreground(folder / "c", free_port, "--binary", str(server))
    local.line("musidecar: node ")
    assert "no memory today" in " ".join(local.said)
    assert local.process.wait(20) == 1
    local.close()
