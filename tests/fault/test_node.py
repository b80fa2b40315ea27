"""`musidecar run` as processes: what a node does at its edges, with backends it starts and with those it finds."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from musidecar import mesh
from musidecar.config import Cluster, load
from musidecar.protocols.redis import driver
from musidecar.protocols.redis.admin import Address, BackendError, ReplyError
from musidecar.protocols.redis.admin import Connection as Redis
from musidecar.testbed import free_ports

WAIT_S = 60.0
PASSWORD = "open sesame"


def wait_until(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.01)


@dataclass
class Nodes:
    """A configuration in a folder, and the nodes of it that run."""

    folder: Path
    port: int
    processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def config(self) -> Cluster:
        return load(self.folder / "cluster.toml")

    def write(self, backends: list[str] | None = None) -> None:
        """cluster.toml with these backends (TOML), or each node's own."""
        lines = ["[cluster]", 'name = "test"', 'secret_file = "secret"', 'directory = "."']
        for i in (1, 2, 3):
            own = f'{{ socket = "redis-{i}.sock", spawn = true }}'
            backend = backends[i - 1] if backends else own
            lines += ["[[nodes]]", f"id = {i}", f'client = "127.0.0.1:{self.port + i - 1}"', f"backend = {backend}"]
        (self.folder / "cluster.toml").write_text("\n".join(lines) + "\n")

    def run(self, node: int, *options: str) -> subprocess.Popen[bytes]:
        """`musidecar run`; its lines go to <node>.log."""
        command = [sys.executable, "-P", "-m", "musidecar", "run", "--config", str(self.folder / "cluster.toml")]
        with open(self.folder / f"{node}.log", "ab") as output:
            process = subprocess.Popen(
                [*command, "--node", str(node), *options], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self.processes[node] = process
        return process

    def log(self, node: int) -> str:
        return (self.folder / f"{node}.log").read_text()

    def status(self, node: int) -> dict[str, Any]:
        return mesh.ask(self.config, node, "status", WAIT_S)

    def serves(self, node: int) -> bool:
        assert self.processes[node].poll() is None, self.log(node)
        try:
            return bool(self.status(node)["serving"])
        except mesh.Unreachable:
            return False

    def run_all(self, *options: str) -> None:
        for node in (1, 2, 3):
            self.run(node, *options)
        for node in (1, 2, 3):
            wait_until(f"node {node} serves", lambda node=node: self.serves(node))

    def client(self, node: int, **login: str) -> Redis:
        return Redis(Address(host="127.0.0.1", port=self.port + node - 1, **login))

    def end(self, node: int) -> int:
        """SIGTERM; the exit code."""
        process = self.processes.pop(node)
        process.terminate()
        return process.wait(WAIT_S)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    tmp_path.chmod(0o700)
    (tmp_path / "secret").write_text("ab" * 32)
    (tmp_path / "secret").chmod(0o600)
    cluster = Nodes(tmp_path, free_ports(6))
    cluster.write()
    yield cluster
    for process in cluster.processes.values():
        process.kill()
        process.wait()


def test_sigterm_ends_nodes_in_order_with_their_backends(nodes: Nodes) -> None:
    nodes.run_all()
    with nodes.client(2) as client:
        assert client.call("SET", "k", "v") == b"OK"
    backends = [nodes.status(node)["backend_pid"] for node in (1, 2, 3)]
    assert [nodes.end(node) for node in (3, 2, 1)] == [0, 0, 0]
    assert not any(Path(f"/proc/{pid}").exists() for pid in backends)
    assert "node 3 has stopped" in nodes.log(1)
    assert sorted(path.name for path in nodes.folder.rglob("*.sock")) == []
    nodes.run_all()
    with nodes.client(1) as client:
        assert client.call("GET", "k") == b"v"


def test_sigterm_while_waiting_for_the_others(nodes: Nodes) -> None:
    nodes.run(2)
    wait_until("it waits", lambda: "waiting for node 1, node 3" in nodes.log(2))
    status = nodes.status(2)
    assert (status["role"], status["serving"], status["id"]) == ("joining", False, 2)
    assert nodes.end(2) == 0


def test_a_status_has_what_was_promised(nodes: Nodes) -> None:
    nodes.run_all()
    with nodes.client(1) as client:
        for i in range(100):
            client.call("SET", f"k{i}", i)
    leader = next(status for status in map(nodes.status, (1, 2, 3)) if status["role"] == "leader")
    assert leader["leader"] == leader["id"] and leader["pid"] == nodes.processes[leader["id"]].pid
    assert leader["client"] == f"127.0.0.1:{nodes.port + leader['id'] - 1}"
    assert leader["commit"] >= 100 and leader["term"] >= 1 and len(leader["log_hash"]) == 16
    assert leader["records"] >= 100 and leader["stages"]["commit"]["count"] > 0
    assert len(leader["incarnation"]) == 32 and leader["takeover"]["served_us"] > 0
    wait_until(
        "all have applied the same",
        lambda: len({nodes.status(node)["applied"] for node in (1, 2, 3)}) == 1,
    )


def test_trap_22_a_killed_node_comes_back_as_another_life_and_the_others_go_on(nodes: Nodes) -> None:
    nodes.run_all()
    with nodes.client(2) as client:
        client.call("SET", "k", "v")
    first = nodes.status(1)
    lost = nodes.processes.pop(1)
    lost.kill()
    lost.wait()
    nodes.run(1)
    for node in (1, 2, 3):
        wait_until("all serve", lambda node=node: nodes.serves(node))
        with nodes.client(node) as client:
            assert client.call("GET", "k") == b"v"
    wait_until("it is a member", lambda: nodes.status(1)["member"])
    assert nodes.status(1)["incarnation"] > first["incarnation"]
    members = nodes.status(2)["members"]
    assert members["1"] == nodes.status(1)["incarnation"][:16] and members["2"] == nodes.status(2)["incarnation"][:16]
    assert "node 1 has begun another life: the former one is removed" in nodes.log(2) + nodes.log(3)


def test_a_backend_that_dies_is_told(nodes: Nodes) -> None:
    nodes.run_all()
    follower = next(node for node in (1, 2, 3) if nodes.status(node)["role"] == "follower")
    os.kill(nodes.status(follower)["backend_pid"], signal.SIGKILL)
    wait_until("it says so", lambda: "redis-server has ended (killed by SIGKILL)" in nodes.log(follower))
    assert nodes.status(follower)["backend_pid"] is None
    other = next(node for node in (1, 2, 3) if node != follower)
    with nodes.client(other) as client:
        assert client.call("SET", "k", "v") == b"OK"
    assert nodes.end(follower) == 0


def test_another_secret_keeps_a_node_out(nodes: Nodes) -> None:
    nodes.run(1), nodes.run(2)
    (nodes.folder / "other").write_text("cd" * 32)
    (nodes.folder / "other").chmod(0o600)
    text = (nodes.folder / "cluster.toml").read_text()
    wait_until("both wait", lambda: all("waiting for" in nodes.log(node) for node in (1, 2)))
    (nodes.folder / "cluster.toml").write_text(text.replace('"secret"', '"other"'))
    nodes.run(3)
    wait_until("it is refused", lambda: "does not hold this cluster's secret" in nodes.log(1))
    wait_until("it says so", lambda: "does not hold this cluster's secret" in nodes.log(3))
    (nodes.folder / "cluster.toml").write_text(text)
    assert "has formed" not in nodes.log(1) + nodes.log(2) + nodes.log(3)
    assert "cd" * 32 not in nodes.log(3) and "ab" * 32 not in nodes.log(1)


def test_a_port_in_use_is_told_before_anything_else_happens(nodes: Nodes) -> None:
    with socket.create_server(("127.0.0.1", nodes.port)):
        assert nodes.run(1).wait(WAIT_S) == 2
    assert "cannot listen for clients on 127.0.0.1" in nodes.log(1) and "Address already in use" in nodes.log(1)
    assert not (nodes.folder / "redis-1.sock").exists()


@pytest.fixture
def found(nodes: Nodes) -> Iterator[list[driver.Server]]:
    """Three redis-servers with a password that nobody's sidecar started: node 1's by socket, the others' by TCP."""
    servers, backends = [], []
    port = nodes.port + 2  # the second half of the ports that were found
    (nodes.folder / "password").write_text(PASSWORD + "\n")
    for i in (1, 2, 3):
        home = nodes.folder / f"own-{i}"
        home.mkdir()
        server = driver.spawn(home, home / "r.sock")
        with Redis(server.address) as connection:
            connection.call("CONFIG", "SET", "port", port + i, "requirepass", PASSWORD)
        servers.append(server)
        place = f'socket = "{home}/r.sock"' if i == 1 else f'address = "127.0.0.1:{port + i}"'
        backends.append(f'{{ {place}, password_file = "password" }}')
    nodes.write(backends)
    yield servers
    for server in servers:
        server.stop()


def test_a_redis_that_outlived_its_sidecar_is_taken_back(nodes: Nodes, found: list[driver.Server]) -> None:
    """Of the leader, which is the seed, and of a follower: no --replace-data, and what it had alone is gone. Who had
    nothing alone goes on where it was."""
    nodes.run_all()
    with nodes.client(1, password=PASSWORD) as client:
        assert client.call("SET", "k", "v") == b"OK"
    for node in (1, 2):
        lost = nodes.processes.pop(node)
        lost.kill()
        lost.wait()
        other = 3 - node
        wait_until("another serves", lambda other=other: nodes.serves(other))
        address = Address(path=found[node - 1].address.path, password=PASSWORD)
        with Redis(address) as connection:
            if node == 1:
                connection.call("SET", "only here", "x")
        nodes.run(node)
        wait_until("it is a member", lambda node=node: nodes.serves(node) and nodes.status(node)["member"])
        with Redis(address) as connection:
            assert connection.call("KEYS", "*") == [b"k"] and connection.call("ROLE")[0] == b"slave"
        alone = "is not taken up where it was, and will be filled: it has done what the log does not know"
        assert (alone if node == 1 else "the log vouches for what the backend holds") in nodes.log(node)
        with nodes.client(node, password=PASSWORD) as client:
            assert client.call("SET", "k", str(node)) == b"OK"
    # Somebody else's data is not taken for it.
    lost = nodes.processes.pop(3)
    lost.kill()
    lost.wait()
    with Redis(Address(path=found[2].address.path, password=PASSWORD)) as connection:
        connection.call("REPLICAOF", "NO", "ONE")
        connection.call("CONFIG", "SET", "masterauth", "")
    assert nodes.run(3).wait(WAIT_S) == 1
    assert "already holds 1 key," in nodes.log(3)
    del nodes.processes[3]


def test_three_redis_servers_that_were_there_before(nodes: Nodes, found: list[driver.Server]) -> None:
    addresses = [Address(path=server.address.path, password=PASSWORD) for server in found]
    with Redis(addresses[0]) as connection:
        for i in range(1000):
            connection.call("SET", f"k{i}", "x" * 1000)
        connection.call("FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function() return 1 end)")
    nodes.run_all()
    assert [nodes.status(node)["backend_pid"] for node in (1, 2, 3)] == [server.pid for server in found]
    assert "settings changed" in nodes.log(2) and "masterauth = (a token)" in nodes.log(2)
    with nodes.client(2) as client, pytest.raises(ReplyError, match="NOAUTH"):
        client.call("GET", "k1")
    for address in addresses:
        with Redis(address) as connection:
            assert connection.call("DBSIZE") == 1000 and len(connection.call("FUNCTION", "LIST")) == 1
    assert [nodes.end(node) for node in (2, 3, 1)] == [0, 0, 0]
    for address in addresses:
        with Redis(address) as connection:
            assert connection.call("DBSIZE") == 1000, "not ours to end"
    with pytest.raises(BackendError, match="last writes"):
        driver.prepare(addresses[1], token="t" * 64, backend_timeout_ms=5000)
    # A new start: nodes 2 and 3 know that their data is a copy. Without their records only their owner can.
    nodes.run_all()
    with nodes.client(3, password=PASSWORD) as client:
        assert client.call("DBSIZE") == 1000
    assert [nodes.end(node) for node in (2, 3, 1)] == [0, 0, 0]
    (nodes.folder / "redis-2" / "kept.json").unlink()
    assert nodes.run(2).wait(WAIT_S) == 1
    del nodes.processes[2]
    assert "holds 1000 keys and 1 function library" in nodes.log(2) and "--node 2 --replace-data" in nodes.log(2)
    nodes.run(2, "--replace-data")
    nodes.run(1)
    nodes.run(3)
    wait_until("all serve", lambda: all(nodes.serves(node) for node in (1, 2, 3)))
