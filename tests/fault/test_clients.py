"""Unmodified clients, through the leader and through a follower."""

from __future__ import annotations

import os
import pty
import re
import resource
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import redis

from musidecar.testbed import NodeStatus, Testbed
from musidecar.workload import encode
from tests.fault.cluster import assert_same_data

BENCHMARKS = ("PING_INLINE", "PING_MBULK", "SET", "GET", "INCR", "LPUSH", "RPUSH", "LPOP", "RPOP", "SADD", "HSET",
              "SPOP", "ZADD", "ZPOPMIN", "LRANGE_100", "LRANGE_300", "LRANGE_500", "LRANGE_600", "MSET")  # fmt: skip


@pytest.fixture(autouse=True)
def equal_afterwards(shared_bed: Testbed) -> Iterator[None]:
    """Whatever a client did: the same on all nodes, and the leader is still the same one."""
    before = shared_bed.status()
    yield
    after = shared_bed.status()
    assert (after.leader, after.term) == (before.leader, before.term), shared_bed.logs()
    assert_same_data(shared_bed, after)


def cli(node: NodeStatus, *arguments: str) -> subprocess.CompletedProcess[str]:
    host, port = node.client_address
    return subprocess.run(["redis-cli", "-h", host, "-p", str(port), *arguments], capture_output=True, text=True,
                          timeout=60, check=True)


def test_redis_cli(node: NodeStatus) -> None:
    cli(node, "DEL", "cli:h")
    assert cli(node, "SET", "cli", "value").stdout == "OK\n"
    assert cli(node, "GET", "cli").stdout == "value\n"
    assert cli(node, "-3", "HSET", "cli:h", "f", "v").stdout == "1\n"
    assert "f" in cli(node, "-3", "HGETALL", "cli:h").stdout
    assert cli(node, "-r", "3", "INCR", f"cli:n:{node.id}").stdout == "1\n2\n3\n"
    assert "ERR wrong number of arguments for 'get' command" in cli(node, "GET").stdout
    assert "redis_version:" in cli(node, "INFO", "server").stdout
    assert "cli" in cli(node, "--scan", "--pattern", "cli*").stdout.split()


def test_redis_cli_pipe_mode(node: NodeStatus) -> None:
    host, port = node.client_address
    commands = b"".join(encode((b"SET", b"piped:%d" % i, b"%d" % i)) for i in range(5000))
    done = subprocess.run(["redis-cli", "-h", host, "-p", str(port), "--pipe"], input=commands, capture_output=True,
                          timeout=60, check=True)
    assert b"errors: 0, replies: 5000" in done.stdout


class Terminal:
    """A program on a pseudo-terminal: type a line, wait until the screen shows something."""

    def __init__(self, *command: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.environ["REDISCLI_HISTFILE"] = "/dev/null"
            os.execvp(command[0], command)
        self.seen = ""

    def expect(self, text: str, timeout_s: float = 15) -> str:
        """What was shown up to and with `text`."""
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self.fd], [], [], left)[0], f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.fd, 4096).decode(errors="replace")
        shown, _, self.seen = self.seen.partition(text)
        return shown + text

    def type(self, line: str) -> None:
        os.write(self.fd, line.encode() + b"\r")

    def close(self) -> None:
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@contextmanager
def terminal(*command: str) -> Iterator[Terminal]:
    made = Terminal(*command)
    try:
        yield made
    finally:
        made.close()


def test_redis_cli_interactive(node: NodeStatus) -> None:
    host, port = node.client_address
    prompt = f"{host}:{port}"
    with terminal("redis-cli", "-h", host, "-p", str(port)) as screen:
        screen.expect(f"{prompt}> ")
        for line, answer in (("set typed 41", "OK"), ("incr typed", "(integer) 42"), ("get nothing", "(nil)"),
                             ("mulit", "ERR unknown command"), ("lpush l:typed a b", "(integer)"),
                             ("del l:typed", "(integer) 1")):
            screen.type(line)
            screen.expect(answer)
            screen.expect(f"{prompt}> ")
        screen.type("multi")
        screen.expect(f"{prompt}(TX)> ")
        screen.type("incr typed")
        screen.expect("QUEUED")
        screen.type("exec")
        screen.expect("1) (integer) 43")
        screen.type("select 5")
        screen.expect(f"{prompt}[5]> ")
        screen.type("hello 3")
        screen.expect("proto")
        screen.type("quit")


def test_redis_benchmark_default_list(node: NodeStatus) -> None:
    host, port = node.client_address
    done = subprocess.run(["redis-benchmark", "-h", host, "-p", str(port), "-n", "3000", "-c", "20", "-q", "--csv"],
                          capture_output=True, text=True, timeout=150, check=True)
    names = re.findall(r'^"([A-Z_0-9]+)', done.stdout, re.MULTILINE)
    assert set(BENCHMARKS) <= set(names), done.stdout + done.stderr
    assert "rror" not in done.stdout + done.stderr.replace("WARNING: Could not fetch server CONFIG", "")


def test_redis_benchmark_deep_pipeline(node: NodeStatus) -> None:
    host, port = node.client_address
    shape = ["-n", "100000", "-c", "50", "-P", "64", "-r", "1000", "-t", "set,get,incr", "-q"]
    line = ["redis-benchmark", "-h", host, "-p", str(port), *shape]
    subprocess.run(line, capture_output=True, timeout=120, check=True)


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py(shared_bed: Testbed, node: NodeStatus, protocol: int) -> None:
    client = shared_bed.client(node, protocol=protocol, decode_responses=True)
    assert client.ping() is True
    client.delete("py:h", "py:z", "py:s", "py:l", "py:n", "py:x")
    client.hset("py:h", mapping={"a": 1, "b": 2})
    assert client.hgetall("py:h") == {"a": "1", "b": "2"}
    client.sadd("py:s", "x", "y")
    assert client.smembers("py:s") == {"x", "y"}
    client.zadd("py:z", {"m": 1.5})
    assert client.zscore("py:z", "m") == 1.5
    assert client.config_get("maxmemory-policy")["maxmemory-policy"]
    assert client.xadd("py:x", {"f": "v"}) and client.xlen("py:x") == 1
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        client.incr("py:h")
    assert client.eval("return {KEYS[1], ARGV[1]}", 1, "k", "a") == ["k", "a"]
    other = shared_bed.client(node, protocol=protocol, db=7)
    other.set("py:only7", 1)
    assert client.get("py:only7") is None and other.get("py:only7") == b"1"


@pytest.mark.parametrize("protocol", [2, 3])
def test_rule_04_transactions_as_redis_runs_them(shared_bed: Testbed, node: NodeStatus, protocol: int) -> None:
    client = shared_bed.client(node, protocol=protocol)
    client.delete("tx:n")
    with client.pipeline(transaction=True) as pipe:
        pipe.incr("tx:n").incr("tx:n").get("tx:n")
        assert pipe.execute() == [1, 2, b"2"]
    with client.pipeline(transaction=True) as pipe:
        pipe.incr("tx:n").lpush("tx:n", "x").incr("tx:n")
        answers = pipe.execute(raise_on_error=False)
    assert answers[0] == 3 and isinstance(answers[1], redis.exceptions.ResponseError) and answers[2] == 4
    with client.pipeline(transaction=True) as pipe:
        pipe.incr("tx:n").execute_command("NOSUCH")
        with pytest.raises(redis.exceptions.ResponseError):
            pipe.execute()
    assert client.get("tx:n") == b"4"


def test_pipeline_of_ten_thousand(shared_bed: Testbed, node: NodeStatus) -> None:
    client = shared_bed.client(node)
    client.delete("pipe:l")
    with client.pipeline(transaction=False) as pipe:
        for i in range(5000):
            pipe.rpush("pipe:l", i)
            pipe.lindex("pipe:l", -1)
        answers = pipe.execute()
    assert answers == [x for i in range(5000) for x in (i + 1, str(i).encode())]


def test_read_your_writes_across_nodes(shared_bed: Testbed) -> None:
    clients = [shared_bed.client(n) for n in shared_bed.status().nodes]
    for i in range(300):
        clients[i % 3].set("across", i)
        assert clients[(i + 1) % 3].get("across") == str(i).encode()


def test_a_thousand_connections(node: NodeStatus) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        socks = [stack.enter_context(socket.create_connection(node.client_address, 30)) for _ in range(1000)]
        for turn in range(3):
            for i, sock in enumerate(socks):
                sock.sendall(encode((b"SET", b"many:%d" % i, b"%d" % turn)) + encode((b"GET", b"many:%d" % i)))
            for sock in socks:
                want = b"+OK\r\n$1\r\n%d\r\n" % turn
                got = b""
                while len(got) < len(want):
                    data = sock.recv(100)
                    assert data, "closed"
                    got += data
                assert got == want


def test_rule_03_a_value_larger_than_the_ring(shared_bed: Testbed, node: NodeStatus) -> None:
    client = shared_bed.client(node, socket_timeout=100)
    value = os.urandom(1 << 20) * 64
    assert client.set("big", value) is True
    assert client.get("big") == value
    other = next(n for n in shared_bed.status().nodes if n.id != node.id)
    assert shared_bed.client(other, socket_timeout=100).strlen("big") == len(value)
    assert_same_data(shared_bed)
    client.delete("big")
