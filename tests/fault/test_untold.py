"""What the leader's server knows of the sidecar, its clients are not told, through whatever way they ask."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
import redis

from musidecar.testbed import NodeStatus, Testbed
from musidecar.workload import encode
from tests.fault.cluster import leader_of

SECRET = "the-clients-own"


def token(bed: Testbed) -> str:
    """By which the leader's sidecar knows its own server."""
    return str(bed.backend(leader_of(bed.status())).config_get("masterauth")["masterauth"])


def heard(node: NodeStatus, *requests: tuple[bytes, ...]) -> bytes:
    """All that is answered until the connection closes."""
    with contextlib.closing(socket.create_connection(node.client_address, 20)) as connection:
        connection.sendall(b"".join(encode(words) for words in (*requests, (b"QUIT",))))
        got = b""
        while data := connection.recv(1 << 16):
            got += data
        return got


@pytest.fixture
def admin(shared_bed: Testbed, node: NodeStatus) -> Iterator[redis.Redis]:
    """A client that leaves the parameters as they were."""
    client = shared_bed.client(node)
    yield client
    client.config_set("masterauth", "", "repl-backlog-size", "64mb")
    with contextlib.suppress(redis.ResponseError):
        client.acl_deluser("curious")


ASK = (b"CONFIG", b"GET", b"*auth*")
WAYS = {
    "plainly": [ASK],
    "all of it": [(b"CONFIG", b"GET", b"*")],
    "in a transaction": [(b"MULTI",), ASK, (b"GET", b"k"), (b"EXEC",)],
    "on its own connection": [(b"CLIENT", b"ID"), ASK],
    "in a transaction there": [(b"WATCH", b"k"), (b"MULTI",), ASK, (b"EXEC",)],
    "in one that goes there": [(b"MULTI",), ASK, (b"CLIENT", b"ID"), (b"EXEC",)],
    "without answers": [(b"CLIENT", b"REPLY", b"SKIP"), ASK, ASK],
    "as another user": [(b"AUTH", b"curious", b"cat"), ASK],
    "as another user, in a transaction": [(b"AUTH", b"curious", b"cat"), (b"MULTI",), ASK, (b"EXEC",)],
    "in RESP3": [(b"HELLO", b"3"), ASK, (b"MULTI",), ASK, (b"EXEC",)],
    "subscribed": [(b"HELLO", b"3"), (b"SUBSCRIBE", b"c"), ASK],
    "while monitoring": [(b"MONITOR",), ASK],
}


@pytest.mark.parametrize("way", WAYS)
def test_the_feeds_secret_is_not_told(
    way: str, shared_bed: Testbed, node: NodeStatus, admin: redis.Redis
) -> None:
    assert admin.config_set("masterauth", SECRET)
    admin.acl_setuser("curious", enabled=True, reset=True, passwords=["+cat"], keys=["*"], commands=["+@all"])
    got, secret = heard(node, *WAYS[way]), token(shared_bed)
    assert secret and secret.encode() not in got
    assert SECRET.encode() in got or b"is refused" in got or way == "while monitoring", got


def test_a_kept_parameter_reads_as_it_was_set(shared_bed: Testbed, admin: redis.Redis) -> None:
    servers = shared_bed.backends(shared_bed.status())
    before = {i: server.config_get("*auth*") for i, server in servers.items()}
    assert admin.config_set("masterauth", SECRET, "repl-backlog-size", "10mb", "maxmemory-samples", 6)
    read = admin.config_get("*")
    assert (read["masterauth"], read["repl-backlog-size"], read["maxmemory-samples"]) == (SECRET, str(10 << 20), "6")
    assert admin.config_get("Repl-Backlog-Size") == {"Repl-Backlog-Size": str(10 << 20)}
    assert admin.config_set("repl-backlog-size", 100 << 20, "maxmemory-samples", 5)
    for i, server in servers.items():
        assert server.config_get("*auth*") == before[i], "each knows its own sidecar by it"
        assert int(server.config_get("repl-backlog-size")["repl-backlog-size"]) >= 64 << 20
    assert admin.config_get("repl-backlog-size") == {"repl-backlog-size": str(100 << 20)}
    for wrong in ("0", "-1", "many", "10xb"):
        with pytest.raises(redis.ResponseError, match="'repl-backlog-size'"):
            admin.config_set("repl-backlog-size", wrong)
    assert admin.config_get("repl-backlog-size") == {"repl-backlog-size": str(100 << 20)}


def test_a_port_that_is_taken_is_refused_as_without_a_sidecar(admin: redis.Redis) -> None:
    before = admin.config_get("*")
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(redis.ResponseError, match=r"'port'. - Unable to listen on this port"):
            admin.config_set("maxmemory", 10_000_001, "port", port, "client-query-buffer-limit", "10m")
    with pytest.raises(redis.ResponseError, match=r"'port'. - can't set immutable"):
        admin.config_set("maxmemory", 10_000_001, "port", port)
    assert admin.config_get("*") == before


def test_the_sidecar_is_no_replica_to_its_clients(shared_bed: Testbed, admin: redis.Redis) -> None:
    leader = shared_bed.backend(leader_of(shared_bed.status()))
    assert leader.info("replication")["connected_slaves"] == 1
    for info in (admin.info("replication"), admin.info("everything")):
        assert info["connected_slaves"] == 0 and "slave0" not in info
    assert admin.execute_command("ROLE")[::2] == [b"master", []]
