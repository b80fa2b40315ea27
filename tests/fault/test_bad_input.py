"""Bad input: a clear error or a closed connection, as Redis does it; nothing logged, memory bounded, others unharmed.

What "as Redis does it" means is not written down here: the same bytes are sent to a bare redis-server and to a node,
and the answers must be the same, byte for byte, and so must be whether the connection survives.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from musidecar.bench.steady import resident_bytes
from musidecar.testbed import NodeStatus, Testbed, TestbedError, free_ports, musidecar, plain_redis, wait_until
from musidecar.workload import encode
from tests.fault.cluster import a_follower_of, assert_same_data, leader_of

MIB = 1 << 20
SILENCE_S = 3.0  # as long as this nothing came: it is waited for, not computed


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A redis-server on TCP, to compare with."""
    port = free_ports(1)
    with plain_redis(tmp_path_factory.mktemp("bare"), "--port", str(port)):
        yield "127.0.0.1", port


def converse(address: tuple[str, int], data: bytes, half_close: bool) -> tuple[bytes, str]:
    """Sends bytes, then asks for an ECHO as a sign of life; returns all that was answered, and how it ended: "open"
    (the ECHO came), "closed" by the other side, or "silent" (it waits for the rest of something). With `half_close`
    the sending side is shut instead of asking."""
    alive = b"" if half_close else encode((b"ECHO", b"still-here"))
    got = b""
    with socket.create_connection(address, SILENCE_S) as sock:
        try:
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
            else:
                sock.sendall(alive)
        except OSError:
            pass  # closed already: what was answered before can still be read
        while b"still-here" not in got:
            try:
                more = sock.recv(65536)
            except ConnectionResetError:
                return got, "closed"
            except TimeoutError:
                return got, "silent"
            if not more:
                return got, "closed"
            got += more
    return got, "open"


MALFORMED: dict[str, bytes] = {
    "binary garbage": bytes(range(256)) + b"\r\n",
    "random lines": b"\x00\xff\xfe garbage \x01\r\nmore \x80\r\n",
    "http": b"Host: x\r\n\r\n",
    "post": b"POST / HTTP/1.1\r\n\r\n",
    "a billion arguments": b"*1000000000\r\n",
    "more arguments than a number holds": b"*99999999999999999999\r\n",
    "negative count": b"*-5\r\n",
    "count of letters": b"*abc\r\n",
    "negative bulk": b"*1\r\n$-5\r\n",
    "negative bulk outside": b"$-5\r\n",
    "bulk of letters": b"*1\r\n$abc\r\n",
    "bulk of a terabyte": b"*2\r\n$3\r\nGET\r\n$1099511627776\r\n",
    "integer where a bulk must be": b"*2\r\n$3\r\nGET\r\n:1\r\n",
    "bulk longer than said": b"*2\r\n$3\r\nGET\r\n$1\r\nlonger\r\n",
    "unbalanced quotes": b'SET "a b\r\n',
    "quotes glued": b'SET "a"b c\r\n',
    # Redis looks at the length of an unfinished line after each read: so much that no single read takes it all.
    "long inline line": b"A" * 8_000_000,
    "long count line": b"*" + b"1" * 8_000_000,
    "empty array": b"*0\r\n",
    "nil array": b"*-1\r\n",
    "empty lines": b"\r\n\r\n\r\n",
    "empty command": b"*1\r\n$0\r\n\r\n",
    "unknown command": encode((b"NOSUCH", b"a", b"b")),
    "unknown command, long": encode((b"N" * 300, b"x" * 300)),
    "unknown sub-command": encode((b"CONFIG", b"NOSUCH")),
    "too few arguments": encode((b"SET", b"a")),
    "too many arguments": encode((b"GET", b"a", b"b")),
    "no arguments": encode((b"SET",)),
    "wrong syntax": encode((b"SET", b"bad:k", b"v", b"NOSUCHOPTION")),
    "wrong number": encode((b"EXPIRE", b"bad:k", b"abc")),
    "exec without multi": encode((b"EXEC",)),
    "nested multi": encode((b"MULTI",)) + encode((b"MULTI",)) + encode((b"DISCARD",)),
    "error inside multi": encode((b"MULTI",)) + encode((b"SET", b"bad:m")) + encode((b"EXEC",)),
    "hello of no protocol": encode((b"HELLO", b"9")),
    "select of no database": encode((b"SELECT", b"99")),
    "auth without a password set": encode((b"AUTH", b"secret")),
}
TRUNCATED: dict[str, bytes] = {
    "half a command": b"*3\r\n$3\r\nSET\r\n$5\r\nbad:h\r\n$100\r\nhalf",
    "half a header": b"*3\r\n$3\r\nSE",
    "half an inline line": b"SET bad:h 1",
    "one byte": b"*",
    "nothing": b"",
}


EXPECTED: dict[tuple[bytes, bool], tuple[bytes, str]] = {}  # what the bare redis-server did with it


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(shared_bed: Testbed, node: NodeStatus, bare: tuple[str, int], name: str) -> None:
    _same_as_redis(shared_bed, node, bare, MALFORMED[name], half_close=False)


@pytest.mark.parametrize("name", TRUNCATED)
def test_cut_off(shared_bed: Testbed, node: NodeStatus, bare: tuple[str, int], name: str) -> None:
    _same_as_redis(shared_bed, node, bare, TRUNCATED[name], half_close=True)


def _same_as_redis(bed: Testbed, node: NodeStatus, bare: tuple[str, int], data: bytes, half_close: bool) -> None:
    other = bed.client(node)
    other.set("unharmed", 1)
    backend = bed.backend(leader_of(bed.status()))
    before = backend.dbsize()
    if (data, half_close) not in EXPECTED:
        EXPECTED[data, half_close] = converse(bare, data, half_close)
    assert converse(node.client_address, data, half_close) == EXPECTED[data, half_close]
    assert other.get("unharmed") == b"1"
    assert backend.dbsize() == before


def test_endless_inline_line_is_cut_off_and_costs_no_memory(shared_bed: Testbed, node: NodeStatus) -> None:
    before = resident_bytes(node.pid)
    with socket.create_connection(node.client_address, 10) as sock:
        with pytest.raises((ConnectionError, BrokenPipeError)):
            for _ in range(100_000):
                sock.sendall(b"A" * 65536)
    assert resident_bytes(node.pid) - before < 16 * MIB
    assert shared_bed.client(node).ping()


def test_announced_but_never_sent_costs_no_memory(shared_bed: Testbed, node: NodeStatus) -> None:
    """Half a command with half a gigabyte announced, by 200 clients."""
    before = resident_bytes(node.pid)
    socks = [socket.create_connection(node.client_address, 10) for _ in range(200)]
    try:
        for sock in socks:
            sock.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$536870912\r\n" + b"x" * 1000)
        assert shared_bed.client(node).ping()
        assert resident_bytes(node.pid) - before < 64 * MIB
    finally:
        for sock in socks:
            sock.close()
    assert shared_bed.client(node).get("k") is None


@pytest.mark.parametrize("through", ["leader", "follower"])
def test_rule_04_a_script_that_never_ends_can_be_killed(bed: Testbed, through: str) -> None:
    """On a cluster of its own: while the script runs nobody else is served, as with Redis itself."""
    before = bed.status()
    node = leader_of(before) if through == "leader" else a_follower_of(before)
    failures: list[str] = []

    def endless() -> None:
        try:
            bed.client(node, socket_timeout=60).eval("while true do end", 0)
            failures.append("the endless script returned")
        except redis.exceptions.RedisError as error:
            if "killed" not in str(error).lower():
                failures.append(str(error))

    thread = threading.Thread(target=endless)
    thread.start()
    killer = bed.client(node, socket_timeout=60)

    def killed() -> bool:
        try:
            killer.script_kill()
            return True
        except redis.exceptions.ResponseError as error:
            assert "NOTBUSY" in str(error), error
            return False

    wait_until("SCRIPT KILL finds the script", killed, 30)
    thread.join(30)
    assert not thread.is_alive() and not failures, failures
    assert bed.client(node).set("after-the-script", 1)
    after = bed.status()
    assert (after.leader, after.term) == (before.leader, before.term)
    assert_same_data(bed, after)


def _ask_for_much(bed: Testbed, node: NodeStatus, megabytes: int) -> socket.socket:
    bed.client(node).set("hundred-k", b"v" * 100_000)
    sock = socket.create_connection(node.client_address, 30)
    sock.setblocking(False)
    wanted = encode((b"GET", b"hundred-k")) * (megabytes * 10)
    end = time.monotonic() + 5
    while wanted and time.monotonic() < end:
        try:
            wanted = wanted[sock.send(wanted) :]
        except BlockingIOError:
            time.sleep(0.01)
    return sock


def test_rule_11_a_client_that_never_reads_costs_bounded_memory(shared_bed: Testbed, node: NodeStatus) -> None:
    status = shared_bed.status()
    pids = [p for n in status.nodes for p in (n.pid, n.backend_pid)]
    before = {pid: resident_bytes(pid) for pid in pids}
    sock = _ask_for_much(shared_bed, node, 1000)
    other = shared_bed.client(node)
    for i in range(200):
        other.set("beside-the-deaf", i)
        assert other.get("beside-the-deaf") == str(i).encode()
    grown = {pid: (resident_bytes(pid) - before[pid]) // MIB for pid in pids}
    sock.close()
    assert max(grown.values()) < 250, grown  # 1000 MB were asked for; the limit of unread replies is 64 MiB
    assert other.ping()


def test_a_slow_reader_gets_everything(shared_bed: Testbed, node: NodeStatus) -> None:
    sock = _ask_for_much(shared_bed, node, 150)
    other = shared_bed.client(node)
    one = b"$100000\r\n" + b"v" * 100_000 + b"\r\n"
    left, at = 1500 * len(one), 0
    sock.setblocking(True)
    while left:
        data = sock.recv(min(left, 1 << 20))
        assert data, f"closed with {left} bytes to come"
        expected = (one * (len(data) // len(one) + 2))[at : at + len(data)]
        assert data == expected
        left, at = left - len(data), (at + len(data)) % len(one)
        if left % 7 == 0:
            assert other.ping()
    sock.close()


# ---- what an operator does wrong -------------------------------------------------------------------------------------


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    """Ended with the code for wrong usage, one clear line, no stack."""
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr


def test_port_in_use(folder: Path) -> None:
    port = free_ports(3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 1))
        taken.listen()
        done = musidecar("local", "--dir", str(folder / "c"), "--port", str(port))
    refused(done, str(port + 1), "in use")


def test_no_redis_server_on_path(folder: Path) -> None:
    (folder / "bin").mkdir()
    env = {**os.environ, "PATH": str(folder / "bin")}
    done = musidecar("local", "--dir", str(folder / "c"), "--port", str(free_ports(3)), env=env)
    refused(done, "redis-server", "PATH")


def test_folder_that_cannot_be_written(folder: Path) -> None:
    (folder / "file").write_text("")
    for bad in (folder / "file" / "c", Path("/proc/musidecar")):
        refused(musidecar("local", "--dir", str(bad), "--port", str(free_ports(3))), str(bad))


def test_two_clusters_in_one_folder(shared_bed: Testbed) -> None:
    before = shared_bed.status()
    done = musidecar("local", "--dir", str(shared_bed.dir), "--port", str(free_ports(3)))
    refused(done, str(shared_bed.dir))
    after = shared_bed.status()
    assert (after.leader, after.term, after.nodes[0].pid) == (before.leader, before.term, before.nodes[0].pid)
    assert shared_bed.client(after.nodes[0]).ping()


def test_configuration_with_a_wrong_key(shared_bed: Testbed, folder: Path) -> None:
    text = (shared_bed.dir / "cluster.toml").read_text().replace("client =", "clinet =", 1)
    (folder / "cluster.toml").write_text(text)
    done = musidecar("run", "--config", str(folder / "cluster.toml"), "--node", "1")
    refused(done, "cluster.toml", "nodes[0].clinet", "client")


def attached_cluster(folder: Path, socks: list[Path]) -> Path:
    """A configuration for three redis-servers that run already."""
    port = free_ports(3)
    (folder / "secret").write_text("0123456789abcdef" * 4 + "\n")
    (folder / "secret").chmod(0o600)
    folder.chmod(0o700)
    lines = ["[cluster]", 'name = "attached"', 'secret_file = "secret"', 'directory = "."']
    for i, sock in enumerate(socks):
        lines += ["[[nodes]]", f"id = {i + 1}", f'client = "127.0.0.1:{port + i}"', f'log = "{i + 1}.log"',
                  f'backend = {{ kind = "redis", socket = "{sock}" }}']
    (folder / "cluster.toml").write_text("\n".join(lines) + "\n")
    return folder / "cluster.toml"


def test_a_joining_node_with_data_of_its_own_is_refused_and_keeps_it(folder: Path) -> None:
    """Node 1 has the data to start with, node 2 has data by accident, node 3 is empty."""
    with (
        plain_redis(folder / "a") as (seed, _, first),
        plain_redis(folder / "b") as (accident, _, second),
        plain_redis(folder / "c") as (_, _, third),
    ):
        seed.set("mine", "there")
        accident.mset({"other:1": 1, "other:2": 2, "other:3": 3})
        config = attached_cluster(folder, [first, second, third])
        nodes = [_run_node(config, 1), _run_node(config, 3)]
        try:
            done = musidecar("run", "--config", str(config), "--node", "2", timeout_s=60)
            refused(done, "3 keys", "--replace-data", code=done.returncode or 1)
            assert accident.dbsize() == 3 and accident.get("other:2") == b"2"
            assert seed.get("mine") == b"there"
        finally:
            _end(nodes)


def test_replace_data_is_the_line_to_type(folder: Path) -> None:
    with (
        plain_redis(folder / "a") as (seed, _, first),
        plain_redis(folder / "b") as (accident, _, second),
        plain_redis(folder / "c") as (_, _, third),
    ):
        seed.set("mine", "there")
        accident.set("other", 1)
        config = attached_cluster(folder, [first, second, third])
        nodes = [_run_node(config, 1), _run_node(config, 2, "--replace-data"), _run_node(config, 3)]
        try:
            def replaced() -> bool:
                return (accident.get("mine"), accident.get("other")) == (b"there", None)

            wait_until("node 2 has the seed's data and only that", replaced, 30)
        finally:
            _end(nodes)


def _run_node(config: Path, node: int, *more: str) -> subprocess.Popen[bytes]:
    with (config.parent / f"run-{node}.err").open("wb") as err:
        return subprocess.Popen([sys.executable, "-P", "-m", "musidecar", "run", "--config", str(config), "--node",
                                 str(node), *more], stdout=err, stderr=err, stdin=subprocess.DEVNULL)


def _end(nodes: list[subprocess.Popen[bytes]]) -> None:
    for process in nodes:
        process.terminate()
    for process in nodes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_the_harness_fails_when_the_cluster_does_not_come_up() -> None:
    """A test that needs the cluster fails without it; it is never skipped."""
    bed = Testbed(arguments=("--no-such-option",))
    start: Callable[[], object] = bed.start
    try:
        with pytest.raises(TestbedError, match="no-such-option"):
            start()
    finally:
        bed.close()
    assert bed.leftovers() == [] and not bed.root.exists()
