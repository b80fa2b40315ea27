"""CLIENT PAUSE: of the clients of all nodes, wherever it was asked for, and by the server's own idea of what waits."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest
import redis

from musidecar.testbed import NodeStatus, Testbed, musidecar, wait_until
from tests.fault.cluster import a_follower_of, another_serves, assert_same_data, leader_of
from tests.fault.test_own import WAIT_S, Line, blocked

LONG_MS = 600_000
NO_WRITES = "#!lua flags=no-writes\nreturn 'read'"
FUNCTIONS = """#!lua name=f
redis.register_function{function_name='reads', callback=function() return 7 end, flags={'no-writes'}}
redis.register_function('writes', function() return redis.call('INCR', 'n') end)"""


def waits(bed: Testbed, count: int) -> None:
    wait_until(f"{count} wait", lambda: blocked(bed) == count, WAIT_S)


def is_silent(line: Line) -> bool:
    """For a moment: what would have been answered has been."""
    line.connection.settimeout(0.05)
    try:
        line.connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        line.connection.settimeout(WAIT_S)
    return False


@pytest.fixture
def others(shared_bed: Testbed) -> list[NodeStatus]:
    status = shared_bed.status()
    return [leader_of(status), *status.followers]


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> None:
    if "shared_bed" in request.fixturenames:
        bed: Testbed = request.getfixturevalue("shared_bed")
        bed.client(leader_of(bed.status())).flushall()


def test_writes_of_all_nodes_wait_and_reads_do_not(
    shared_bed: Testbed, node: NodeStatus, others: list[NodeStatus]
) -> None:
    with contextlib.ExitStack() as stack:
        asks = stack.enter_context(Line(node))
        lines = [stack.enter_context(Line(other)) for other in others]
        assert asks.ask("SET k 1") == ["+OK"]
        assert asks.ask(f"CLIENT PAUSE {LONG_MS} WRITE") == ["+OK"]
        for i, line in enumerate(lines):
            line.say("SET k 2", "GET k", f"RPUSH l {i}", "NOPE", "INCR n")
        waits(shared_bed, len(lines))
        assert all(is_silent(line) for line in lines), "what is behind it waits, too"
        with Line(a_follower_of(shared_bed.status())) as reader:
            assert reader.ask("GET k", 2) == ["$1", "1"]
            reader.say("MULTI", "GET k", "PING", "EXEC", "SELECT 2", "GET k", "SELECT 0")
            assert reader.hear(10)[3:] == ["*2", "$1", "1", "+PONG", "+OK", "$-1", "+OK"]
            assert reader.ask("SET k")[0].startswith("-ERR wrong number of arguments")
        assert asks.ask("CLIENT UNPAUSE") == ["+OK"]
        for line in lines:
            got = line.hear(6)
            assert got[:3] == ["+OK", "$1", "2"] and got[4].startswith("-ERR unknown command"), got
        assert asks.ask("GET n", 2) == ["$1", "3"] and asks.ask("LLEN l") == [":3"]
        server = shared_bed.backend(leader_of(shared_bed.status()))
        wait_until("none is left", lambda: len(server.client_list()) < 9, WAIT_S)
    assert_same_data(shared_bed)


def test_what_may_write_waits(shared_bed: Testbed, node: NodeStatus) -> None:
    asks, client = shared_bed.client(a_follower_of(shared_bed.status())), shared_bed.client(node)
    client.function_load(FUNCTIONS, replace=True)
    sha = client.script_load(NO_WRITES)
    client.pfadd("hll", "a")
    asks.execute_command("CLIENT", "PAUSE", LONG_MS, "WRITE")
    assert client.fcall("reads", 0) == 7 and client.evalsha(sha, 0) == client.eval(NO_WRITES, 0) == b"read"
    assert client.execute_command("EVAL_RO", "return redis.call('GET', 'n')", 0) is None
    requests = ["PFCOUNT hll", "PUBLISH c m", "FCALL writes 0", "EVAL return(8) 0", "BLPOP gone 0.01", "SPOP gone"]
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(Line(node)) for _ in requests]
        for line, request in zip(lines, requests, strict=True):
            line.say(request)
        waits(shared_bed, len(lines))
        transaction = stack.enter_context(Line(node))
        transaction.say("WATCH n", "MULTI", "INCR n", "EXEC")
        waits(shared_bed, len(lines) + 1)
        big = stack.enter_context(Line(node))
        big.say("SET big " + "x" * 3_000_000)
        waits(shared_bed, len(lines) + 2)
        asks.execute_command("CLIENT", "UNPAUSE")
        assert [line.hear()[0] for line in lines] == [":1", ":0", ":1", ":8", "*-1", "$-1"]
        assert transaction.hear(4)[3] in ("*1", "*-1") and big.hear() == ["+OK"]
        assert shared_bed.client(node).strlen("big") == 3_000_000
    assert_same_data(shared_bed)


def test_everything_waits(shared_bed: Testbed, node: NodeStatus, others: list[NodeStatus]) -> None:
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(Line(other)) for other in others]
        blocks = stack.enter_context(Line(node))
        blocks.say("BLPOP q 0", "GET k")
        waits(shared_bed, 1)
        with Line(node) as asks:
            since = time.monotonic()
            assert asks.ask("CLIENT PAUSE 700") == ["+OK"]
            asks.say("CLIENT UNPAUSE")
            for line in lines:
                line.say("GET k", "PING", "LPUSH q 1")
            assert all(is_silent(line) for line in [asks, *lines])
            assert asks.hear() == ["+OK"] and time.monotonic() - since >= 0.7
        for line in lines:
            assert line.hear(2) == ["$-1", "+PONG"] and line.hear()[0] in (":1", ":2", ":3")
        assert blocks.hear(6) == ["*2", "$1", "q", "$1", "1", "$-1"]
    assert_same_data(shared_bed)


def test_the_longer_pause_counts_and_nothing_expires(shared_bed: Testbed, node: NodeStatus) -> None:
    client, server = shared_bed.client(node), shared_bed.backend(leader_of(shared_bed.status()))
    expired = server.info("stats")["expired_keys"]
    with Line(node) as asks, Line(node) as writes:
        asks.say("MULTI", "SET short v PX 10", f"CLIENT PAUSE {LONG_MS} WRITE", "CLIENT PAUSE 1 WRITE")
        asks.say("SET also v", "EXEC")
        assert asks.hear(10) == ["+OK", *["+QUEUED"] * 4, "*4", *["+OK"] * 4]
        wait_until("it has expired", lambda: client.get("short") is None, WAIT_S)
        writes.say("SET k v")
        waits(shared_bed, 1)
        assert server.info("stats")["expired_keys"] == expired and server.dbsize() == 2
        assert client.get("also") == b"v" and client.get("k") is None
        assert asks.ask("CLIENT PAUSE x")[0] == "-ERR timeout is not an integer or out of range"
        assert asks.ask("CLIENT PAUSE -5 WRITE")[0] == "-ERR timeout is negative"
        assert asks.ask("CLIENT PAUSE 5 READ")[0] == "-ERR CLIENT PAUSE mode must be WRITE or ALL"
        asks.say("MULTI", "CLIENT UNPAUSE", "EXEC")
        assert asks.hear(4) == ["+OK", "+QUEUED", "*1", "+OK"] and writes.hear() == ["+OK"]
        wait_until("it is gone", lambda: server.info("stats")["expired_keys"] == expired + 1, WAIT_S)
    assert_same_data(shared_bed)


@pytest.mark.parametrize("mode", ["WRITE", "ALL"])
def test_rule_11_a_paused_client_that_goes_writes_nothing(shared_bed: Testbed, node: NodeStatus, mode: str) -> None:
    client = shared_bed.client(node)
    with Line(node) as asks, Line(node) as stays:
        asks.ask(f"CLIENT PAUSE {LONG_MS if mode == 'WRITE' else 600} {mode}")
        stays.say("INCR n")
        for half in (True, False):
            with Line(node) as goes:
                goes.say("INCR n", "GET n")
                if mode == "WRITE":
                    waits(shared_bed, 2)
                elif not half:
                    assert is_silent(goes)
                if half:
                    goes.connection.shutdown(socket.SHUT_WR)
                    assert goes.lines.read() == b""
        if mode == "WRITE":
            waits(shared_bed, 1)
            asks.ask("CLIENT UNPAUSE")
        assert stays.hear() == [":1"]
        assert client.get("n") == b"1"


def test_who_may_not_pause_pauses_nobody(shared_bed: Testbed, node: NodeStatus) -> None:
    client = shared_bed.client(node)
    client.acl_setuser("meek", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all", "-client|pause"])
    with Line(node) as line:
        assert line.ask("AUTH meek secret") == ["+OK"]
        assert line.ask(f"CLIENT PAUSE {LONG_MS}")[0].startswith("-NOPERM")
        assert client.set("k", 1) and client.get("k") == b"1"
    client.acl_setuser("meek", enabled=True, commands=["+client|pause"])
    with Line(node) as line:
        assert line.ask("AUTH meek secret") == ["+OK"]
        line.say("WATCH k", "MULTI", f"CLIENT PAUSE {LONG_MS}")
        assert line.hear(3) == ["+OK", "+OK", "+QUEUED"]
        client.set("k", 2)
        assert line.ask("EXEC") == ["*-1"]
        assert client.get("k") == b"2", "a transaction that was not done pauses nobody"
        line.say("MULTI", f"CLIENT PAUSE {LONG_MS} WRITE", "EXEC")
        assert line.hear(4) == ["+OK", "+QUEUED", "*1", "+OK"]
        with Line(node) as writes:
            writes.say("SET k 3")
            waits(shared_bed, 1)
            assert line.ask("CLIENT UNPAUSE") == ["+OK"] and writes.hear() == ["+OK"]
    client.acl_deluser("meek")


def test_a_pause_ends_with_its_leader(bed: Testbed) -> None:
    """Who waits is closed, its write not done, or done once: never twice. A read that waits goes to the next leader."""
    before = bed.status()
    leader, follower = leader_of(before), a_follower_of(before)
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(Line(node)) for node in (leader, follower, follower)]
        assert lines[0].ask(f"CLIENT PAUSE {LONG_MS} WRITE") == ["+OK"]
        for line in lines:
            line.say("INCR n")
        wait_until("they wait", lambda: blocked(bed, before) == 3, WAIT_S)
        bed.kill(leader)
        after = another_serves(bed, before)
        for line in lines:
            with contextlib.suppress(ConnectionResetError):
                assert line.lines.read() == b""
        client = bed.client(leader_of(after))
        assert client.incr("n") == 1, "nobody is paused, and nobody's write was done"
    assert_same_data(bed)


def test_a_hand_over_lets_paused_clients_go_on(bed: Testbed) -> None:
    before = bed.status()
    with Line(leader_of(before)) as here, Line(a_follower_of(before)) as there:
        assert here.ask(f"CLIENT PAUSE {LONG_MS}") == ["+OK"]
        here.say("INCR n")
        there.say("INCR n")
        assert is_silent(here) and is_silent(there)
        assert musidecar("switchover", "--dir", str(bed.dir)).returncode == 0
        after = another_serves(bed, before)
        assert sorted(here.hear() + there.hear()) == [":1", ":2"]
        former = bed.client(leader_of(before))
        assert former.incr("n") == 3, "its server is not paused any more, nor is the next"
        with contextlib.suppress(redis.ConnectionError):
            assert bed.client(leader_of(after)).get("n") == b"3"
    assert_same_data(bed)
