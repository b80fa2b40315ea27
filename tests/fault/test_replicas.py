"""Clients that replicate from the cluster: redis-cli --rdb, replicas of its users' own, readers of the stream. Through
every node they get the leader's data and then its stream, and nothing of it before it is committed."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from musidecar.compare import compare
from musidecar.testbed import NodeStatus, Testbed, free_ports, plain_redis, wait_until
from musidecar.workload import encode
from tests.fault.cluster import a_follower_of, another_serves, assert_same_data, kill_and_wait, last_words, leader_of
from tests.fault.nursery import Cradle, Nursery

WAIT_S = 20.0
MIB = 1 << 20


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "shared_bed" in request.fixturenames:
        bed: Testbed = request.getfixturevalue("shared_bed")
        client = bed.client(leader_of(bed.status()))
        client.flushall()
        client.function_flush()
        assert_same_data(bed)


class Reader:
    """A client that has asked for the stream, and has read the data in front of it."""

    def __init__(self, node: NodeStatus) -> None:
        self.connection = socket.create_connection(node.client_address, WAIT_S)
        self.connection.sendall(b"SYNC\r\n")
        self.file = self.connection.makefile("rb")
        line = b"\n"
        while line == b"\n":  # "still there"
            line = self.file.readline()
        assert line.startswith(b"$"), line
        self.rdb = self.file.read(int(line[1:]))
        assert self.rdb.startswith(b"REDIS")

    def hear(self) -> list[bytes]:
        """The next command of the stream; EOFError when it is closed."""
        head = self.file.readline()
        if not head.endswith(b"\n"):
            raise EOFError
        words = []
        for _ in range(int(head[1:])):
            length = int(self.file.readline()[1:])
            words.append(self.file.read(length + 2)[:-2])
        return words

    def expect(self, *wanted: bytes) -> None:
        """Reads on up to this command; PINGs and SELECTs may stand in front of it."""
        while (words := self.hear()) != list(wanted):
            assert words[0].upper() in (b"PING", b"SELECT"), words

    def close(self) -> None:
        self.file.close()
        self.connection.close()


def cli(node: NodeStatus, *words: str) -> None:
    command = ["redis-cli", "-p", str(node.client_address[1]), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Transfer finished with success" in done.stderr, done.stderr


def some_data(client: redis.Redis, value_bytes: int = 1000) -> None:
    pipe = client.pipeline(transaction=False)
    for i in range(1000):
        pipe.set(f"key:{i}", f"{i:8}" * (value_bytes // 8), ex=1000 if i % 3 == 0 else None)
    pipe.execute()
    client.xadd("stream", {"a": "b"}, id="1-1")
    client.xgroup_create("stream", "group", "0")
    client.function_load("#!lua name=lib\nredis.register_function('f', function() return 7 end)", replace=True)


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_an_rdb_is_the_data(shared_bed: Testbed, node: NodeStatus, tmp_path: Path, diskless: str) -> None:
    client = shared_bed.client(node)
    client.config_set("repl-diskless-sync", diskless)
    some_data(client)
    cli(node, "--rdb", str(tmp_path / "dump.rdb"))
    with plain_redis(tmp_path) as (copy, _, _):
        leads = shared_bed.backend(leader_of(shared_bed.status()))
        assert copy.dbsize() == leads.dbsize() == 1001
        for key in leads.keys("*"):
            assert (copy.dump(key), copy.pexpiretime(key)) == (leads.dump(key), leads.pexpiretime(key)), key
        assert copy.function_dump() == leads.function_dump()
    client.config_set("repl-diskless-sync", "yes")


def test_an_rdb_of_functions_alone(shared_bed: Testbed, node: NodeStatus, tmp_path: Path) -> None:
    some_data(shared_bed.client(node))
    cli(node, "--functions-rdb", str(tmp_path / "dump.rdb"))
    with plain_redis(tmp_path) as (copy, _, _):
        assert copy.dbsize() == 0 and copy.fcall("f", 0) == 7


def test_a_replica_of_ones_own_follows(bed: Testbed, tmp_path: Path) -> None:
    """Through a follower; also from one leader to the next, where it goes on without being filled anew."""
    old = bed.status()
    target, other = old.followers
    some_data(bed.client(target))
    with plain_redis(tmp_path, "--port", str(free_ports(1))) as (replica, _, _):
        replica.execute_command("REPLICAOF", *target.client_address)

        def has(value: int) -> bool:
            return replica.get("counter") == str(value).encode()

        bed.client(other).set("counter", 1)
        wait_until("it follows", lambda: has(1), WAIT_S)
        filled = bed.backend(leader_of(old)).info("stats")["sync_full"]
        assert filled > 0
        bed.kill(leader_of(old))
        status = another_serves(bed, old)
        leads = leader_of(status)
        bed.client(leads).set("counter", 2)
        wait_until("it follows the next leader", lambda: has(2), WAIT_S)
        stats = bed.backend(leads).info("stats")
        assert stats["sync_full"] <= 1 and stats["sync_partial_ok"] >= 2, stats  # the sidecar's own, and its
        assert compare({"leader": bed.backend(leads), "replica": replica}).equal


def test_the_stream_is_what_was_done(shared_bed: Testbed, node: NodeStatus) -> None:
    client = shared_bed.client(node)
    with contextlib.closing(Reader(node)) as reader:
        client.set("k", "v")
        client.execute_command("WAIT", 1, 1000)
        reader.expect(b"SET", b"k", b"v")
        pipe = client.pipeline()
        pipe.incr("n")
        pipe.spop("none")
        pipe.rpush("l", "a", "b")
        pipe.execute()
        for wanted in ([b"MULTI"], [b"INCRBY", b"n", b"1"], [b"RPUSH", b"l", b"a", b"b"], [b"EXEC"]):
            got = reader.hear()
            assert [got[0].upper(), *got[1:]] == wanted
        reader.connection.sendall(encode([b"REPLCONF", b"ACK", b"1"]))
        client.set("k", "w")
        reader.expect(b"SET", b"k", b"w")
        reader.connection.sendall(encode([b"GET", b"k"]))  # who replicates may ask nothing
        with pytest.raises(EOFError):
            reader.hear()


def test_clients_that_are_replicas_are_killed_and_no_other(shared_bed: Testbed, node: NodeStatus) -> None:
    """The sidecar is one of its server's, too."""
    before = shared_bed.status()
    client, readers = shared_bed.client(node), [Reader(leader_of(before)), Reader(a_follower_of(before))]
    assert client.client_kill_filter(_type="replica") == 2
    for reader in readers:
        with pytest.raises(EOFError):
            while True:
                assert reader.hear()[0].upper() in (b"PING", b"SELECT")
        reader.close()
    client.client_id()  # it has a connection of its own from here on
    assert client.client_kill_filter(_type="slave") == 0
    client.client_kill_filter(_type="normal")  # clients alone
    assert client.set("k", "v") and shared_bed.status().term == before.term


def test_what_a_replica_says_before_it_is_one(shared_bed: Testbed, node: NodeStatus) -> None:
    with contextlib.closing(socket.create_connection(node.client_address, WAIT_S)) as connection:
        connection.sendall(b"".join(encode(words.encode().split()) for words in (
            "REPLCONF ACK 5", "REPLCONF GETACK *", "REPLCONF capa eof capa psync2", "REPLCONF listening-port 1",
            "REPLCONF no such", "SET k v", "MULTI", "SYNC", "EXEC", "PSYNC ? -1 FAILOVER", "GET k")))  # fmt: skip
        lines = connection.makefile("rb")
        got = [lines.readline().rstrip().decode() for _ in range(10)]
        assert got[:2] == got[3:5] == ["+OK", "+OK"] and got[2].startswith("-ERR Unrecognized REPLCONF"), got
        assert got[5].startswith("-ERR") and got[6].startswith("-EXECABORT") and "refused" in got[7], got
        assert got[8:] == ["$1", "v"]
    with contextlib.closing(socket.create_connection(node.client_address, WAIT_S)) as connection:
        connection.sendall(b"SET k w\r\nGET k\r\nPSYNC ? -1\r\n")  # answers are still on their way
        lines = connection.makefile("rb")
        assert [lines.readline() for _ in range(3)] == [b"+OK\r\n", b"$1\r\n", b"w\r\n"]
        assert lines.readline().startswith(b"+FULLRESYNC ")


def test_wait_counts_nodes_not_replicas(shared_bed: Testbed, node: NodeStatus) -> None:
    client = shared_bed.client(node)
    client.set("k", "v")
    before = client.execute_command("WAIT", 1, 100)
    with contextlib.closing(Reader(node)):
        client.set("k", "w")
        assert client.execute_command("WAIT", 1, 100) == before >= 1


def test_nothing_is_seen_before_it_is_committed(bed: Testbed) -> None:
    """Without a majority the leader's own server may still be written to directly: that is in its stream, and must not
    reach who reads it."""
    status = bed.status()
    leads = leader_of(status)
    server = bed.backend(leads)
    reader = Reader(leads)
    bed.client(leads).set("committed", "1")
    reader.expect(b"SET", b"committed", b"1")
    for each in status.followers:
        kill_and_wait(bed, each)
    server.set("not-committed", "1")
    assert b"not-committed" not in last_words(reader.connection)


def test_what_was_seen_survives_the_leader(bed: Testbed) -> None:
    old = bed.status()
    client, reader = bed.client(leader_of(old)), Reader(leader_of(old))
    seen: list[int] = []

    def read() -> None:
        with contextlib.suppress(EOFError, ConnectionError, ValueError):
            while True:
                words = reader.hear()
                if words[0] == b"SET":
                    seen.append(int(words[2]))

    def write() -> None:
        with contextlib.suppress(redis.ConnectionError):
            for i in range(10**9):
                client.set("counter", i)

    threads = [threading.Thread(target=read), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    wait_until("the stream flows", lambda: len(seen) > 200, WAIT_S)
    bed.kill(leader_of(old))
    for thread in threads:
        thread.join(WAIT_S)
    status = another_serves(bed, old)
    value = int(bed.client(leader_of(status)).get("counter") or -1)
    assert seen == list(range(len(seen))) and value >= seen[-1]
    assert_same_data(bed, status)


def resident(status: NodeStatus) -> int:
    """Memory of a node's sidecar, in bytes."""
    text = Path(f"/proc/{status.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) * 1024


def test_who_does_not_read_fills_no_memory(bed: Testbed) -> None:
    """96 MiB of data, through the leader and through a follower; nobody reads for now."""
    status = bed.status()
    client = bed.client(leader_of(status))
    pipe = client.pipeline(transaction=False)
    for i in range(96):
        pipe.set(f"k:{i}", bytes([i]) * MIB)
    client.config_set("rdbcompression", "no")
    pipe.execute()
    for target in (leader_of(status), a_follower_of(status)):
        before = {each.id: resident(each) for each in status.nodes}
        with contextlib.closing(socket.create_connection(target.client_address, WAIT_S)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            connection.sendall(b"SYNC\r\n")
            file = connection.makefile("rb")
            line = b"\n"
            while line == b"\n":
                line = file.readline()
            assert line.startswith(b"$"), line
            length = int(line[1:])
            assert length > 96 * MIB
            for i in range(200):  # others are served meanwhile
                client.set("small", i)
            assert all(resident(each) - before[each.id] < 40 * MIB for each in status.nodes)
            assert len(file.read(length)) == length
    assert_same_data(bed, status)


@pytest.mark.parametrize("through", ["leader", "follower"])
def test_who_takes_nothing_for_too_long_is_closed(nursery: Nursery, through: str) -> None:
    """And nobody else: neither who is slow, nor who has nothing to take."""
    timeout_ms = 1500
    with Cradle(nursery, 3, {"timing": {"replica_timeout_ms": timeout_ms}}) as bed:
        status = bed.status()
        leads = leader_of(status)
        node = leads if through == "leader" else a_follower_of(status)
        server, client = bed.backend(leads), bed.client(leads)

        def replicas() -> int:
            return int(server.info("replication")["connected_slaves"])

        with contextlib.closing(Reader(node)) as slow, contextlib.closing(Reader(node)) as stuck:
            alone = replicas() - 2
            time.sleep(1.5 * timeout_ms / 1000)
            assert replicas() == alone + 2, "there was nothing to take"
            for i in range(48):
                client.set("k", bytes([i]) * MIB)
            client.set("done", 1)
            began = time.monotonic()
            while replicas() == alone + 2:
                slow.hear()  # a MiB or less
                assert time.monotonic() - began < WAIT_S
                time.sleep(0.1)
            assert replicas() == alone + 1
            assert time.monotonic() - began > 0.5 * timeout_ms / 1000, "not at once"
            assert "takes too little" in bed.logs(60)
            with pytest.raises(EOFError):
                while stuck.hear():
                    pass
            while slow.hear()[1:2] != [b"done"]:
                pass
        assert_same_data(bed, status)


@pytest.mark.slow
@pytest.mark.parametrize("through", ["leader", "follower"])
def test_who_lags_too_far_is_closed(bed: Testbed, through: str) -> None:
    """The server would keep all of it: 256 MiB is as much as it may. 400 MiB are written."""
    status = bed.status()
    leads = leader_of(status)
    server, client = bed.backend(leads), bed.client(leads)
    with contextlib.closing(Reader(leads if through == "leader" else a_follower_of(status))):
        for i in range(400):
            client.set("k", bytes([i % 256]) * MIB)
        wait_until("it is closed", lambda: int(server.info("replication")["connected_slaves"]) <= 1, WAIT_S)
        if bed.status().term != status.term:
            pytest.skip("another node leads: the host is too crowded to tell")
        assert "takes too little" in bed.logs(60)
    assert_same_data(bed, status)
