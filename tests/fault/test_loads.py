"""What loads a server's data from its disk (DEBUG RELOAD, DEBUG LOADAOF), and the AOF that every server keeps: after it
all nodes hold the same data, or another node leads and the one that differs is filled anew."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import redis

from musidecar.testbed import NodeStatus, Testbed, wait_until
from tests.fault.cluster import a_follower_of, another_serves, assert_same_data, follows, leader_of
from tests.suites.redis_suite import cluster

WAIT_S = 20.0


@pytest.fixture(scope="module")
def shared_bed() -> Iterator[Testbed]:
    """Servers that allow DEBUG."""
    with cluster() as bed:
        yield bed
    assert bed.leftovers() == []


@pytest.fixture
def bed() -> Iterator[Testbed]:
    """One that the test may break."""
    with cluster() as bed:
        yield bed
    assert bed.leftovers() == []


def persistence(bed: Testbed) -> dict[str, str]:
    """INFO persistence of the leader's server."""
    return {name: str(value) for name, value in bed.backend(leader_of(bed.status())).info("persistence").items()}


def settled(bed: Testbed) -> bool:
    """Does the leader's AOF hold everything?"""
    found = persistence(bed)
    return [found[f"aof_{name}"] for name in ("enabled", "rewrite_in_progress", "rewrite_scheduled")] == ["1", "0", "0"]


def some_data(client: redis.Redis) -> None:
    client.set("text", "x" * 1000)
    client.set("volatile", "y", ex=1000)
    client.rpush("list", *range(200))
    client.xadd("stream", {"a": "1"}, id="5-1")
    client.xgroup_create("stream", "group", "0")
    client.xreadgroup("group", "consumer", {"stream": ">"})
    client.zadd("zset", {"one": 1.5, "two": 2})
    client.function_load("#!lua name=lib\nredis.register_function('f', function() return 7 end)", replace=True)


def test_what_is_loaded_again_is_the_same_everywhere(shared_bed: Testbed, node: NodeStatus) -> None:
    before = shared_bed.status()
    client = shared_bed.client(node)
    some_data(client)
    client.config_set("appendonly", "yes")
    for each in before.nodes:
        assert shared_bed.backend(each).config_get("appendonly") == {"appendonly": "yes"}
    wait_until("the AOF holds everything", lambda: settled(shared_bed), WAIT_S)
    client.incr("counter")
    for words in ("LOADAOF", "RELOAD", "RELOAD NOFLUSH MERGE", "RELOAD", "LOADAOF"):
        assert client.execute_command("DEBUG", *words.split()) in (b"OK", True)
        client.append("text", "z")
        client.incr("counter")
        assert client.fcall("f", 0) == 7 and client.llen("list") == 200
    assert client.get("counter") == b"6" and client.strlen("text") == 1005
    pipe = client.pipeline(transaction=False)  # what is behind a load waits for it
    pipe.execute_command("DEBUG", "RELOAD")
    pipe.get("counter")
    assert pipe.execute()[1] == b"6"
    client.config_set("appendonly", "no")
    assert_same_data(shared_bed)
    assert shared_bed.status().term == before.term
    client.flushall()
    client.function_flush()


def test_on_a_connection_of_its_own(shared_bed: Testbed, node: NodeStatus) -> None:
    client = shared_bed.client(node, single_connection_client=True)
    client.client_id()  # from here on it has one
    client.select(3)
    client.set("k", "v")
    assert client.execute_command("DEBUG", "RELOAD") in (b"OK", True)
    assert client.get("k") == b"v"
    client.flushall()
    assert_same_data(shared_bed)


@pytest.mark.parametrize(
    "words", ["LOADAOF", "RELOAD NOSAVE", "RELOAD NOSAVE NOFLUSH MERGE", "RELOAD MERGE", "RELOAD NOFLUSH"]
)
def test_other_data_is_not_loaded(shared_bed: Testbed, node: NodeStatus, words: str) -> None:
    """No AOF is written; an RDB of earlier; one that would be there twice."""
    client = shared_bed.client(node)
    client.set("k", "v")
    with pytest.raises(redis.ResponseError, match=r"refused|Error trying to load the RDB"):
        client.execute_command("DEBUG", *words.split())
    with pytest.raises(redis.ResponseError):
        pipe = client.pipeline()
        pipe.execute_command("DEBUG", "RELOAD")
        pipe.execute()
    assert client.get("k") == b"v"
    client.delete("k")
    assert_same_data(shared_bed)


def test_a_load_that_left_keys_out_makes_another_node_lead(bed: Testbed) -> None:
    """A leader's RDB is loaded without the keys whose time is up, and no replica is told: an APPEND behind it would
    make a new value here, and go on with the old one there."""
    old = bed.status()
    client = bed.client(a_follower_of(old))
    client.set("kept", "v")
    server = bed.backend(leader_of(old))
    server.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    client.set("gone", "old", px=1)
    server.execute_command("DEBUG", "SLEEP", "0.02")  # whoever looks at it ends it
    with contextlib.suppress(redis.ConnectionError):
        client.execute_command("DEBUG", "RELOAD")
    status = another_serves(bed, old)
    assert bed.client(leader_of(status)).append("gone", "new") == 3
    again = bed.wait_status("the old leader follows", lambda now: follows(now, old.leader or ""), WAIT_S)
    assert bed.client(again[old.leader or ""]).get("kept") == b"v"
    assert_same_data(bed, again)


def test_a_node_that_is_filled_anew_keeps_an_aof_again(bed: Testbed) -> None:
    old = bed.status()
    client = bed.client(leader_of(old))
    client.config_set("appendonly", "yes", "appendfsync", "everysec")
    some_data(client)
    lost = a_follower_of(old)
    bed.kill(lost)
    client.set("meanwhile", "1")
    bed.start_again(lost)
    status = bed.wait_status("it follows", lambda now: follows(now, lost.id), WAIT_S)
    server = bed.backend(status[lost.id])
    wait_until("it writes an AOF", lambda: server.config_get("appendonly") == {"appendonly": "yes"}, WAIT_S)
    assert_same_data(bed, status)
