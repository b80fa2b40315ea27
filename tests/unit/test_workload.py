"""The recorded load against one plain Redis: an honest server is judged sound, each planted fault is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from musidecar.testbed import free_ports, plain_redis, wait_until
from musidecar.workload import (
    REFUSED,
    UNKNOWN,
    VALUE_BYTES,
    History,
    Load,
    Plan,
    Writer,
    memcached_request,
    spread,
    verify,
)

WRITERS = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[redis.Redis, tuple[str, int]]]:
    port = free_ports(1)
    with plain_redis(tmp_path_factory.mktemp("redis"), "--port", str(port)) as (client, _, _):
        yield client, ("127.0.0.1", port)


@pytest.fixture
def loaded(server: tuple[redis.Redis, tuple[str, int]]) -> tuple[redis.Redis, History]:
    """The server with a history on it, fresh for each test."""
    client, address = server
    client.flushall()
    with Load(spread([address], WRITERS)) as load:
        load.wait_for(2000)
        history = load.finish()
    assert history.acknowledged >= 2000 and not history.refused and not history.unknown
    return client, history


def test_an_honest_server_is_sound(loaded: tuple[redis.Redis, History]) -> None:
    verdict = verify(loaded[1], loaded[0])
    assert verdict.sound and verdict.late == 0 and verdict.checked == loaded[1].acknowledged


def test_lost_push_is_found(loaded: tuple[redis.Redis, History]) -> None:
    loaded[0].lpop("l1:0")
    assert verify(loaded[1], loaded[0]).lost == 1


def test_doubled_push_is_found(loaded: tuple[redis.Redis, History]) -> None:
    loaded[0].linsert("l1:0", "BEFORE", "2", "2")
    assert verify(loaded[1], loaded[0]).doubled == 1


def test_swapped_pushes_are_found(loaded: tuple[redis.Redis, History]) -> None:
    loaded[0].lset("l1:0", 0, "5")
    loaded[0].lset("l1:0", 1, "2")
    assert verify(loaded[1], loaded[0]).misordered == 1


def test_doubled_and_lost_increment_are_found(loaded: tuple[redis.Redis, History]) -> None:
    loaded[0].incr("c2")
    assert verify(loaded[1], loaded[0]).doubled == 1
    loaded[0].decrby("c2", 3)
    assert verify(loaded[1], loaded[0]).lost == 2


WRONG = [None, b"0:0:".ljust(VALUE_BYTES, b"x"), b"0:1:".ljust(VALUE_BYTES, b"x"), b"torn"]


@pytest.mark.parametrize("value", WRONG, ids=["missing", "older", "foreign", "torn"])
def test_a_wrong_value_is_lost(loaded: tuple[redis.Redis, History], value: bytes | None) -> None:
    if value is None:
        loaded[0].delete("w0:0")
    else:
        loaded[0].set("w0:0", value)
    history = loaded[1]
    assert len(history.writers[0].acked_ns) > 200  # so that write 0 is not the last to w0:0
    assert verify(history, loaded[0]).lost == 1


def test_refused_write_that_is_there_is_a_ghost(loaded: tuple[redis.Redis, History]) -> None:
    loaded[1].writers[3].acked_ns[2] = REFUSED
    assert verify(loaded[1], loaded[0]).ghosts == 1


def test_unknown_write_may_be_there_or_not_but_once(loaded: tuple[redis.Redis, History]) -> None:
    client, history = loaded
    history.writers[3].acked_ns[2] = UNKNOWN
    assert verify(history, client).sound
    client.lpop("l3:0")
    assert verify(history, client).sound
    client.rpush("l3:0", 2)
    verdict = verify(history, client)
    assert verdict.sound and verdict.late == 1
    client.rpush("l3:0", 2)
    assert verify(history, client).doubled == 1


def test_first_ack_looks_at_the_other_nodes_only() -> None:
    writer = Writer()
    for sent, acked, node in ((10, 12, 0), (13, 30, 1), (14, 16, 0), (31, 40, 1)):
        writer.sent_ns.append(sent)
        writer.acked_ns.append(acked)
        writer.node.append(node)
        writer.reply.append(0)
    history = History(Plan((("", 0),), (0,)), [writer])
    assert history.first_ack_ns(0, 20, not_node=0) == 30
    assert history.first_ack_ns(20, 20, not_node=0) == 40
    assert history.first_ack_ns(0, 20, not_node=1) is None


def test_a_server_that_goes_away_leaves_unknown_writes_and_moves_the_writers(tmp_path: Path) -> None:
    ports = free_ports(2)
    with plain_redis(tmp_path / "b", "--port", str(ports + 1)) as (second, _, _):
        with plain_redis(tmp_path / "a", "--port", str(ports)) as (_, first, _):
            plan = Plan((("127.0.0.1", ports), ("127.0.0.1", ports + 1)), (0, 0, 1), depth=4)
            with Load(plan) as load:
                load.wait_for(200)
                first.kill()
                seen = load.counts()[1]
                wait_until("the second server is written to", lambda: load.counts()[1] > seen + 500, 20)
                history = load.finish()
        assert history.broken >= 2
        assert {n for w in history.writers for n in w.node} == {0, 1}
        assert verify(history, second).lost > 0  # the first server's acknowledged writes are not here


class Cache:
    """What a HERD keeps of a load's requests."""

    def __init__(self, requests: list[bytes]) -> None:
        self.held: dict[bytes, bytes] = {}
        for request in requests:
            head, value, rest = request.split(b"\r\n")
            word, key, flags, expiry, length = head.split()
            assert (word, flags, expiry, rest) == (b"set", b"0", b"0", b"") and len(value) == int(length) <= 33
            self.held[key] = value

    def mget(self, keys: list[bytes]) -> list[bytes | None]:
        return [self.held.get(key) for key in keys]


def test_what_a_herd_is_given_are_short_values_alone_and_one_that_is_lost_is_found() -> None:
    plan = Plan(nodes=(("h", 1),), writers=(0,), keys=5, backend="herd")
    writer = Writer()
    for seq in range(23):
        writer.sent_ns.append(1)
        writer.acked_ns.append(2 + seq)
        writer.node.append(0)
        writer.reply.append(0)
    history = History(plan, [writer])
    requests = [memcached_request(0, seq, plan) for seq in range(23)]
    assert verify(history, Cache(requests)).sound  # type: ignore[arg-type]
    assert verify(history, Cache(requests[:-1])).lost == 1  # type: ignore[arg-type]
    assert verify(history, Cache(requests[5:18])).lost == 5  # type: ignore[arg-type]
