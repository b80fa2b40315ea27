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
        backend = shared_bed.backend(each)
        wait_until("it writes one", lambda b=backend: b.config_get("appendonly") == {"appendonly": "yes"}, WAIT_S)
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
    "words", ["RELOAD NOSAVE NOFLUSH", "RELOAD MERGE", "RELOAD NOFLUSH"]
)
def test_other_data_is_not_loaded(shared_bed: Testbed, node: NodeStatus, words: str) -> None:
    """What would be there twice, or is no sense."""
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


def rdb_of(client: redis.Redis) -> dict[str, object]:
    return {key: client.dump(key) for key in client.scan_iter()} | {"functions": client.function_dump()}


def test_a_file_from_earlier_is_loaded_everywhere(shared_bed: Testbed, node: NodeStatus) -> None:
    """Whatever it holds: every node has that then, and nobody else leads."""
    before = shared_bed.status()
    client = shared_bed.client(node)
    some_data(client)
    other = shared_bed.client(node, db=3)
    other.set("elsewhere", "v", ex=500)
    assert client.save()
    then = rdb_of(client)
    client.flushall()
    client.function_flush()
    client.set("later", "w")
    client.function_load("#!lua name=two\nredis.register_function('g', function() return 8 end)")
    assert client.execute_command("DEBUG", "RELOAD", "NOSAVE", "NOFLUSH", "MERGE") in (b"OK", True)
    assert client.get("later") == b"w" and client.fcall("f", 0) == 7 and client.fcall("g", 0) == 8
    assert_same_data(shared_bed)
    pipe = client.pipeline(transaction=False)
    pipe.execute_command("DEBUG", "RELOAD", "NOSAVE")
    pipe.get("later")
    pipe.incr("counter")
    assert pipe.execute()[1:] == [None, 1]
    client.delete("counter")
    assert rdb_of(client) == then and other.get("elsewhere") == b"v" and 0 < other.ttl("elsewhere") <= 500
    assert_same_data(shared_bed)
    assert client.bgrewriteaof()
    wait_until("it is written", lambda: persistence(shared_bed)["aof_rewrite_in_progress"] == "0", WAIT_S)
    client.set("later", "w")
    assert client.execute_command("DEBUG", "LOADAOF") in (b"OK", True)
    assert rdb_of(client) == then
    assert_same_data(shared_bed)
    assert shared_bed.status().term == before.term
    client.flushall()
    client.function_flush()


def test_keys_are_populated_as_the_server_would(shared_bed: Testbed, node: NodeStatus) -> None:
    client = shared_bed.client(node)
    client.set("key:1", "mine")
    assert client.execute_command("DEBUG", "POPULATE", "3") in (b"OK", True)
    assert client.mget("key:0", "key:1", "key:2", "key:3") == [b"value:0", b"mine", b"value:2", None]
    client.execute_command("DEBUG", "POPULATE", "11", "p", "8")
    client.execute_command("DEBUG", "POPULATE", "2", "short", "3")
    assert client.mget("p:0", "p:10", "short:1") == [b"value:0\0", b"value:10", b"val"]
    client.execute_command("DEBUG", "POPULATE", "0")
    for words in ("POPULATE", "POPULATE x", "POPULATE -1", "POPULATE 1 p -1", "POPULATE 1 p 1 2"):
        with pytest.raises(redis.ResponseError):
            client.execute_command("DEBUG", *words.split())
    before = client.dbsize()
    client.execute_command("DEBUG", "POPULATE", "25000", "many", "20")  # in three parts
    assert client.dbsize() == before + 25000 and client.get("many:24999") == b"value:24999".ljust(20, b"\0")
    client.delete("key:1")
    status = shared_bed.wait_status(  # one that is too slow for so much is filled anew
        "all follow", lambda now: all(now.leader == n.id or follows(now, n.id) for n in now.nodes), WAIT_S
    )
    assert_same_data(shared_bed, status)
    client.flushall()


def test_a_file_that_is_not_there_changes_nothing(bed: Testbed) -> None:
    """The server is empty then, and another node leads with what there was."""
    old = bed.status()
    client = bed.client(a_follower_of(old))
    client.set("kept", "v")
    with pytest.raises(redis.ResponseError, match="LOADAOF is refused"):
        client.execute_command("DEBUG", "LOADAOF")  # it would end the server
    assert client.get("kept") == b"v"
    with contextlib.suppress(redis.ConnectionError, redis.ResponseError):
        client.execute_command("DEBUG", "RELOAD", "NOSAVE")
    status = another_serves(bed, old)
    assert bed.client(leader_of(status)).get("kept") == b"v"
    again = bed.wait_status("the old leader follows", lambda now: follows(now, old.leader or ""), WAIT_S)
    assert_same_data(bed, again)


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
