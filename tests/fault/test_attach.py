"""A Redis of the user's own, with data and a password, gets two nodes beside it: the example of README."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from musidecar import secret
from musidecar.config import load
from musidecar.status import collect

PASSWORD = "correct horse"
Command = Callable[..., subprocess.CompletedProcess[str]]


def wait_for(what: str, test: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not test():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture
def config_file(folder: Path, free_port: int) -> Path:
    """Node 1 attaches to `folder`/own.sock; the others start their own."""
    (folder / "password").write_text(PASSWORD + "\n")
    secret.create(folder / "secret")
    lines = ['[cluster]\nname = "t"\nsecret_file = "secret"\ndirectory = "run"\n']
    backends = ('socket = "own.sock"', 'socket = "2.sock", spawn = true', 'socket = "3.sock", spawn = true')
    for i, backend in enumerate(backends):
        lines.append(f'[[nodes]]\nid = {i + 1}\nclient = "127.0.0.1:{free_port + i}"\n')
        lines.append(f'backend = {{ {backend}, password_file = "password" }}\nlog = "{i + 1}.log"\n')
    (folder / "cluster.toml").write_text("".join(lines))
    return folder / "cluster.toml"


def start_own(folder: Path) -> subprocess.Popen[bytes]:
    options = ["--port", "0", "--unixsocket", str(folder / "own.sock"), "--save", "", "--requirepass", PASSWORD]
    return subprocess.Popen(["redis-server", *options, "--dir", str(folder)], stdout=subprocess.DEVNULL)


@pytest.fixture
def own(folder: Path) -> Iterator[redis.Redis]:
    """The user's Redis, with three keys; it outlives every sidecar."""
    process = start_own(folder)
    client = redis.Redis(unix_socket_path=str(folder / "own.sock"), password=PASSWORD)
    try:
        wait_for("the socket", (folder / "own.sock").exists)
        client.mset({"a": 1, "b": 2, "c": 3})
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait(10)


@pytest.fixture
def nodes(own: redis.Redis, config_file: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Three `musidecar run`, serving."""
    config = load(config_file)
    line = [sys.executable, "-P", "-m", "musidecar", "run", "--config", str(config_file), "--node"]
    processes = [subprocess.Popen([*line, str(node.id)], stderr=subprocess.DEVNULL) for node in config.nodes]
    try:
        wait_for("all serve", lambda: all(node["serving"] for node in collect(config)["nodes"]))
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(15)


def test_doctor_tells_beforehand_and_changes_nothing(own: redis.Redis, config_file: Path, command: Command) -> None:
    before = own.config_get("*")
    done = command("doctor", "--config", config_file)
    assert done.returncode == 0, done.stdout
    assert "3 keys: the cluster starts with them (seed)" in done.stdout
    assert "the sidecar will CONFIG SET repl-backlog-size 67108864 (now 1048576)" in done.stdout
    assert own.config_get("*") == before
    assert PASSWORD not in done.stdout
    config_file.write_text(config_file.read_text().replace("[[nodes]]", "seed = 2\n[[nodes]]", 1))
    done = command("doctor", "--config", config_file)
    assert done.returncode == 1
    assert "3 keys of its own, where the seed's data is to go" in done.stdout


def test_its_data_is_everywhere_and_outlives_its_node(
    own: redis.Redis, nodes: list[subprocess.Popen[bytes]], config_file: Path
) -> None:
    config = load(config_file)
    clients = [redis.Redis(port=node.client_port, password=PASSWORD) for node in config.nodes]
    for i, client in enumerate(clients):
        assert client.mget("a", "b", "c") == [b"1", b"2", b"3"]
        client.set(f"through {i}", i)
    assert own.get("through 2") == b"2"
    nodes[0].send_signal(signal.SIGKILL)
    nodes[0].wait()
    wait_for("another leads", lambda: collect(config)["leader"] in (2, 3))
    assert sorted(clients[2].keys()) == [b"a", b"b", b"c", b"through 0", b"through 1", b"through 2"]
    assert own.ping()  # the user's own Redis is nobody's to kill
    for client in clients:
        client.close()


def test_when_it_is_restarted_it_is_taken_up_and_filled_again(
    own: redis.Redis, nodes: list[subprocess.Popen[bytes]], config_file: Path, folder: Path
) -> None:
    config = load(config_file)
    with redis.Redis(port=config.nodes[1].client_port, password=PASSWORD) as client:
        assert client.set("d", 4)
        os.kill(own.info("server")["process_id"], signal.SIGKILL)
        wait_for("another leads", lambda: collect(config)["leader"] in (2, 3))
        wait_for("its end is seen", lambda: collect(config)["nodes"][0]["backend_pid"] is None)
        assert client.set("e", 5)
        again = start_own(folder)
        try:
            wait_for("it serves", lambda: collect(config)["nodes"][0]["serving"])
            wait_for("it holds the data", lambda: own.mget(*"abcde") == [b"1", b"2", b"3", b"4", b"5"])
            assert own.config_get("masterauth")["masterauth"]
            assert own.config_get("repl-backlog-size")["repl-backlog-size"] == str(64 << 20)
            assert own.info("replication")["role"] == "slave"
        finally:
            again.terminate()
            again.wait(10)


def test_no_node_lets_anybody_in_without_the_password(
    nodes: list[subprocess.Popen[bytes]], config_file: Path
) -> None:
    for node in load(config_file).nodes:
        with redis.Redis(port=node.client_port) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.get("a")


def test_a_node_with_keys_of_its_own_is_refused(own: redis.Redis, config_file: Path, command: Command) -> None:
    config_file.write_text(config_file.read_text().replace("[[nodes]]", "seed = 2\n[[nodes]]", 1))
    done = command("run", "--config", config_file, "--node", "1")
    assert done.returncode == 1
    assert "3 keys" in done.stderr
    assert f"musidecar run --config {config_file} --node 1 --replace-data" in done.stderr
    assert own.dbsize() == 3


def test_the_password_is_in_no_command_line(nodes: list[subprocess.Popen[bytes]]) -> None:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                line = Path("/proc", entry, "cmdline").read_bytes()
            except OSError:
                continue
            if b"own.sock" not in line:  # the user's own choice
                assert PASSWORD.encode() not in line
