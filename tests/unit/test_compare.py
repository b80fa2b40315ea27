"""compare.py against Redis's own replication (which must compare equal) and against planted differences."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from musidecar.compare import compare, wait_equal_offsets
from musidecar.testbed import plain_redis, wait_until
from tests.fault.mixed import Mixed

Servers = dict[str, redis.Redis]


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[Servers]:
    """A primary and two replicas of it, attached."""
    with contextlib.ExitStack() as stack:
        from musidecar.testbed import free_ports

        port = free_ports(1)
        more = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "3600"]
        primary = stack.enter_context(plain_redis(tmp_path / "a", *more, "--port", str(port)))[0]
        servers: Servers = {"a": primary}
        for name in "bc":
            servers[name] = stack.enter_context(plain_redis(tmp_path / name, *more))[0]
            servers[name].replicaof("127.0.0.1", port)
        wait_until("the replicas are attached", lambda: primary.info("replication")["connected_slaves"] == 2, 20)
        wait_until("in step", lambda: all(_online(servers[name]) for name in "bc"), 20)
        yield servers


def _online(replica: Any) -> bool:
    return bool(replica.info("replication")["master_link_status"] == "up")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Servers]:
    """Two unrelated servers: their offsets are equal (0), their data is whatever a test writes."""
    with plain_redis(tmp_path / "a") as a, plain_redis(tmp_path / "b") as b:
        yield {"a": a[0], "b": b[0]}


def test_replicas_of_redis_itself_are_equal_after_mixed_writes(replicated: Servers) -> None:
    mixed = Mixed(replicated["a"], 1)
    mixed.prepare()
    assert mixed.run(3) > 20
    result = compare(replicated)
    assert result.equal, result.differences
    assert result.keys > 10 and result.offset > 10_000


def test_equal_sets_and_hashes_in_another_order_are_equal(pair: Servers) -> None:
    for server in pair.values():  # hash seeds differ, so the tables' orders and the DUMPs do
        server.sadd("s", *[f"member:{i}" for i in range(1000)])
        server.hset("h", mapping={f"field:{i}": i for i in range(1000)})
        server.zadd("z", {f"m{i}": i for i in range(1000)})
    assert pair["a"].dump("s") != pair["b"].dump("s")
    assert compare(pair).equal


def _both(pair: Servers, *command: Any) -> None:
    for server in pair.values():
        server.execute_command(*command)


def plant_missing(pair: Servers) -> None:
    pair["a"].set("only-here", 1)


def plant_other_database(pair: Servers) -> None:
    with redis.Redis(unix_socket_path=pair["b"].connection_pool.connection_kwargs["path"], db=5) as five:
        five.set("x", 1)


def plant_value(pair: Servers) -> None:
    pair["a"].set("x", 1)
    pair["b"].set("x", 2)


def plant_type(pair: Servers) -> None:
    pair["a"].set("x", 1)
    pair["b"].rpush("x", 1)


def plant_expiry(pair: Servers) -> None:
    later = int(time.time() * 1000) + 1_000_000
    pair["a"].execute_command("SET", "x", 1, "PXAT", later)
    pair["b"].execute_command("SET", "x", 1, "PXAT", later + 1)


def plant_one_set_member(pair: Servers) -> None:
    _both(pair, "SADD", "s", *range(2000, 4000), "text")
    pair["a"].srem("s", 2001)
    pair["b"].srem("s", 2002)


def plant_one_score(pair: Servers) -> None:
    _both(pair, "ZADD", "z", *[x for i in range(500) for x in (i, f"m{i}")])
    pair["b"].zincrby("z", 0.5, "m7")


def plant_stream_last_id(pair: Servers) -> None:
    _both(pair, "XADD", "x", "1-1", "f", "v")
    pair["a"].execute_command("XADD", "x", "2-1", "f", "v")
    pair["a"].xdel("x", "2-1")


def plant_stream_pending(pair: Servers) -> None:
    _both(pair, "XADD", "x", "1-1", "f", "v")
    _both(pair, "XGROUP", "CREATE", "x", "g", "0")
    pair["a"].xreadgroup("g", "c", {"x": ">"})
    pair["a"].xack("x", "g", "1-1")


def plant_function(pair: Servers) -> None:
    for name, server in pair.items():
        server.function_load(f"#!lua name=l\nredis.register_function('f', function() return '{name}' end)")


PLANTED = {
    plant_missing: "lacks 1 keys",
    plant_other_database: "db 5: a lacks 1 keys",
    plant_value: "value (string): b'1' and b'2'",
    plant_type: "type: b'string' and b'list'",
    plant_expiry: "PEXPIRETIME",
    plant_one_set_member: "value (set)",
    plant_one_score: "value (zset)",
    plant_stream_last_id: "XINFO STREAM FULL",
    plant_stream_pending: "XINFO STREAM FULL",
    plant_function: "functions of a (1 libraries) and b (1) differ",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_rule_19_a_planted_difference_is_named(pair: Servers, plant: Any) -> None:
    plant(pair)
    result = compare(pair, timeout_s=5)
    assert any(PLANTED[plant] in text for text in result.differences), result.differences


def test_unequal_offsets_are_a_difference(replicated: Servers) -> None:
    replicated["b"].replicaof("no", "one")
    replicated["a"].set("x", 1)
    seen = wait_equal_offsets(replicated, 0.2)
    assert len(set(seen.values())) > 1
    assert "offsets stay unequal" in compare(replicated, timeout_s=0.5).differences[0]
