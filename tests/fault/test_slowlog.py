"""The slow log through a sidecar: clients' requests, with their own names and addresses, and none of the sidecar's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from musidecar.testbed import NodeStatus, Testbed, wait_until
from musidecar.workload import encode
from tests.fault.cluster import a_follower_of, leader_of
from tests.fault.test_own import Line, setting

WAIT_S = 20.0
OURS = (b"RoLE", b"PiNG", b"SLoWLOG", b"CoNFIG", b"RePLCONF", b"HeLLO", b"SeLECT", b"CLiENT", b"SeTRaNGe")


def address(line: Line) -> str:
    """As the server would see it."""
    return "{}:{}".format(*line.connection.getsockname())


def entries(client: redis.Redis, count: int = -1) -> list[tuple[str, str, str]]:
    """Command, address and name of each, the newest first."""
    rows: list[list[Any]] = client.execute_command("SLOWLOG GET", count, NEVER_DECODE=True)
    return [(b" ".join(row[3]).decode(), row[4].decode(), row[5].decode()) for row in rows]


def texts(client: redis.Redis, count: int = -1) -> list[str]:
    """Commands alone."""
    return [text for text, _, _ in entries(client, count)]


@pytest.fixture
def client(shared_bed: Testbed, node: NodeStatus) -> Iterator[redis.Redis]:
    """Everything is slow enough for it; the log is empty."""
    client = shared_bed.client(node)
    client.set_response_callback("SLOWLOG GET", lambda rows, **_: rows)
    client.config_set("slowlog-log-slower-than", 0, "slowlog-max-len", 128)
    client.slowlog_reset()
    yield client
    client.flushall()
    client.config_set("slowlog-log-slower-than", 10000, "slowlog-max-len", 128)
    for server in shared_bed.backends(shared_bed.status()).values():
        server.config_set("slowlog-max-len", 1024)


def test_entries_are_those_of_clients(shared_bed: Testbed, node: NodeStatus, client: redis.Redis) -> None:
    """Of clients here and at other nodes, with connections of their own and without, of transactions and scripts."""
    status = shared_bed.status()
    with Line(leader_of(status)) as here, Line(a_follower_of(status)) as there, Line(node) as waits:
        here.ask("CLIENT SETNAME here")
        there.ask("CLIENT SETNAME there")
        assert here.ask("SET here 1") == ["+OK"] and there.ask("SET there 1") == ["+OK"]
        assert there.ask("EVAL return(redis.call('incr',KEYS[1])) 1 s") == [":1"]
        here.say("MULTI", "INCR m", "EXEC")
        assert here.hear(4) == ["+OK", "+QUEUED", "*1", ":1"]
        assert there.ask("CONFIG SET hz 10") == ["+OK"]
        waits.ask("CLIENT SETNAME waits")
        waits.say("BLPOP q 0")
        wait_until("it waits", lambda: client.info("clients")["blocked_clients"] == 1, WAIT_S)
        assert here.ask("RPUSH q v") == [":1"]
        assert waits.hear(5)[4] == "v"
        at_here, at_there, at_waits = address(here), address(there), address(waits)
    seen = {text.lower(): (where, name) for text, where, name in entries(client)}
    for text in ("set here 1", "multi", "incr m", "rpush q v"):
        assert seen[text] == (at_here, "here"), text
    for text in ("set there 1", "eval return(redis.call('incr',keys[1])) 1 s", "config set hz 10"):
        assert seen[text] == (at_there, "there"), text
    assert seen["incr s"] == ("?:0", ""), "Redis 7.0 does not tell whose a script's calls are"
    assert seen["blpop q 0"] == (at_waits, "waits")
    assert "slowlog reset" in seen and not any("musidecar" in name or "/" in where for where, name in seen.values())
    assert client.slowlog_len() == len(entries(client)) - 1, "which shows that question, too"
    rows = shared_bed.backend(leader_of(status)).execute_command("SLOWLOG GET", -1)
    assert {b"RoLE", b"SLoWLOG"} <= {row["command"].split()[0] for row in rows}, "the server itself shows them"
    assert not any(text.split()[0].encode() in OURS for text in texts(client))


def test_whose_an_entry_is_may_not_be_known(node: NodeStatus, client: redis.Redis) -> None:
    with Line(node) as first, Line(node) as second:
        assert first.ask("GET a") == ["$-1"]
        second.say("MULTI", "GET a", "EXEC")
        assert second.hear(4) == ["+OK", "+QUEUED", "*1", "$-1"]
        got = [(text, where) for text, where, _ in entries(client) if text in ("GET a", "MULTI")]
        assert got == [("GET a", address(second)), ("MULTI", address(second)), ("GET a", address(first))]
        assert first.ask("GET b") == ["$-1"]
        assert second.ask("EVAL return(redis.call('GET',KEYS[1])) 1 b") == ["$-1"]
        got = [(text.split()[0], where) for text, where, _ in entries(client, 3)]
        assert got == [("EVAL", address(second)), ("GET", "?:0"), ("GET", address(first))], "by the server, or by us"


def test_it_is_as_long_as_it_was_set(shared_bed: Testbed, client: redis.Redis) -> None:
    for i in range(20):
        client.get(f"k{i}")
    assert client.config_set("slowlog-max-len", 10) and setting(client, "slowlog-max-len") == "10"
    for i in range(20):
        client.get(f"l{i}")
    assert client.slowlog_len() == 10
    assert texts(client)[1:] == [f"GET l{i}" for i in range(19, 10, -1)], "and SLOWLOG LEN"
    assert len(texts(client, 3)) == 3 and texts(client, 0) == []
    for server in shared_bed.backends(shared_bed.status()).values():
        wait_until("it is set", lambda s=server: setting(s, "slowlog-max-len") == "1024", WAIT_S)  # type: ignore[misc]
    assert client.config_set("slowlog-max-len", 2000)
    assert setting(shared_bed.backend(leader_of(shared_bed.status())), "slowlog-max-len") == "2000"
    with pytest.raises(redis.ResponseError, match="greater than or equal to -1"):
        entries(client, -2)
    with pytest.raises(redis.ResponseError):
        client.config_set("slowlog-max-len", "many")


def test_it_is_emptied_in_a_transaction_too(client: redis.Redis) -> None:
    client.get("before")
    assert "GET before" in texts(client)
    with client.pipeline(transaction=True) as pipe:
        pipe.get("k").execute_command("SLOWLOG RESET").get("after")
        pipe.execute()
    assert texts(client) == ["GET after", "SLOWLOG RESET"]
    client.config_set("slowlog-log-slower-than", -1)
    client.slowlog_reset()
    client.get("k")
    assert texts(client) == [] and client.slowlog_len() == 0


def test_the_sidecars_questions_push_nothing_out(shared_bed: Testbed, client: redis.Redis) -> None:
    server = shared_bed.backend(leader_of(shared_bed.status()))
    server.config_set("slowlog-max-len", 16)
    client.slowlog_len()
    client.get("long ago")
    last = server.execute_command("SLOWLOG GET", 1)[0]["id"]
    wait_until("it was", lambda: server.execute_command("SLOWLOG GET", 1)[0]["id"] > last + 100, WAIT_S)
    with contextlib.closing(client):
        assert "GET long ago" in texts(client)


def test_nothing_is_fetched_behind_a_long_script(shared_bed: Testbed, node: NodeStatus) -> None:
    """On a connection of its own, while it holds up the questions on the admin connection: a fetch would be refused."""
    status = shared_bed.status()
    server = shared_bed.backend(leader_of(status))
    server.config_set("slowlog-max-len", 16)
    shared_bed.client(node).slowlog_len()
    with Line(node) as line:
        assert line.ask("CLIENT ID")[0].startswith(":")
        line.connection.sendall(encode((b"EVAL", b"for _ = 1, 2e8 do end return 'done'", b"0")))
        assert line.hear(2) == ["$4", "done"]
    assert shared_bed.status().term == status.term
    server.config_set("slowlog-max-len", 1024)
