"""Rules of the Redis path that a change of leaders shows, by their numbers (docs/proof.md): what was accepted and not
done, what was done and not logged, and what clients see of it. Requests are held in flight by stopping the leader's
server: their COMMANDs are decided then, and nothing has happened yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from musidecar.testbed import NodeStatus, Testbed, stop_processes, wait_until
from musidecar.workload import encode
from tests.fault.cluster import another_serves, assert_same_data, follows, last_words, leader_of, send
from tests.fault.log_view import ADMIN, NOOP, LogView, requests_in


@pytest.fixture
def log(bed: Testbed) -> Iterator[LogView]:
    """The log of the first follower: the next leader's."""
    with LogView(bed, bed.status().followers[0]) as view:
        yield view


def go_on(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


def in_flight(log: LogView, nodes: list[NodeStatus], *words: bytes, each: int = 10) -> list[socket.socket]:
    """The same request `each` times through each node, on connections of their own; returns once all are in the log.
    The leader's server stands still."""
    before = len(log.commands())
    connections = [send(node, *words) for node in nodes for _ in range(each)]
    wait_until("all are in the log", lambda: len(log.commands()) == before + len(connections), 4)
    return connections


def answer(connection: socket.socket) -> bytes:
    """Of one request; nothing when the connection is closed instead."""
    with contextlib.closing(connection), contextlib.suppress(ConnectionResetError):
        return connection.recv(4096)
    return b""


def assert_others_answered(connections: list[socket.socket], count: int) -> None:
    """INCRs of one key, a third of them through the leader that is gone: those are closed without a word, the others
    answered by the next one, each with a number of its own."""
    answers = list(map(answer, connections))
    assert answers[: count // 3] == [b""] * (count // 3)
    assert set(answers[count // 3 :]) <= {b":%d\r\n" % n for n in range(1, count + 1)}
    assert len(set(answers[count // 3 :])) == count - count // 3


class Session:
    """A client whose every byte is looked at."""

    def __init__(self, node: NodeStatus) -> None:
        self.connection = socket.create_connection(node.client_address, timeout=30)
        self.lines = self.connection.makefile("rb")

    def ask(self, line: bytes) -> bytes:
        """The first line of the answer."""
        self.connection.sendall(encode(tuple(line.split())))
        return self.lines.readline().rstrip()

    def close(self) -> None:
        self.lines.close()
        self.connection.close()


# -- 8, 9: what an answer depends on


def test_rule_08_a_leader_whose_stream_breaks_steps_down(bed: Testbed) -> None:
    before = bed.status()
    leader = leader_of(before)
    assert bed.client(leader).set("before", 1)
    bed.backend(leader).execute_command("CLIENT", "KILL", "TYPE", "replica")
    after = another_serves(bed, before)
    assert bed.client(leader_of(after)).get("before") == b"1"
    assert bed.client(leader_of(after)).set("after", 2)
    bed.wait_status("the deposed node follows again", lambda s: follows(s, leader.id))
    assert_same_data(bed)


def test_rule_09_a_leader_alone_answers_no_read(bed: Testbed) -> None:
    before = bed.status()
    leader = leader_of(before)
    client = bed.client(leader)
    assert client.set("known", 1) and client.get("known") == b"1"
    for follower in before.followers:
        bed.kill(follower)
    bed.wait_status("it has noticed", lambda s: s[leader.id].more["alive"] == [int(leader.id)])
    with contextlib.closing(send(leader, b"GET", b"known")) as connection:
        connection.settimeout(1)
        with contextlib.suppress(TimeoutError):
            assert connection.recv(100) == b""


def test_trap_23_a_resumed_leader_answers_nothing_stale(bed: Testbed) -> None:
    """Its clients' reads have arrived while it stood still, and it takes them before it learns anything."""
    before = bed.status()
    leader = leader_of(before)
    client = bed.client(leader)
    client.set("x", "old")
    idle = [socket.create_connection(leader.client_address, timeout=30) for _ in range(10)]
    assert client.get("x") == b"old"
    bed.stop(leader)
    after = another_serves(bed, before)
    assert bed.client(leader_of(after)).set("x", "new")
    for connection in idle:
        connection.sendall(encode((b"GET", b"x")))
    bed.cont(leader)
    bed.wait_status("it follows", lambda s: follows(s, leader.id))
    for connection in idle:
        with contextlib.closing(connection), contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) in (b"", b"$3\r\nnew\r\n")
    assert_same_data(bed)


# -- 12, 13: taking over


def test_rule_12_a_takeover_waits_until_its_server_has_applied_the_log(bed: Testbed, log: LogView) -> None:
    """Their servers stand still and have read next to nothing: what is acknowledged is in the nodes' memory only."""
    before = bed.status()
    leader, successor = leader_of(before), before.followers[0]
    client = bed.client(leader)
    stop_processes([node.backend_pid for node in before.followers])
    with client.pipeline(transaction=False) as pipe:
        for i in range(3000):
            pipe.set(f"key:{i}", b"%d " % i * 200)
        assert all(pipe.execute())
    bed.kill(leader)
    status = bed.wait_status("it is elected", lambda s: s[successor.id].more["role"] == "leader")
    assert not status[successor.id].more["serving"]
    assert not status[successor.id].moment_us("promoted_us")
    for node in before.followers:
        go_on(node.backend_pid)
    after = another_serves(bed, before)
    client = bed.client(leader_of(after))
    assert client.mget([f"key:{i}" for i in range(3000)]) == [b"%d " % i * 200 for i in range(3000)]
    stages = ("opened", "fed", "promoted", "attached", "served")
    order = [after[successor.id].moment_us(f"{name}_us") for name in stages]
    assert order == sorted(order)
    assert_same_data(bed, after)
    log.read()
    term = [record for record in log.seen if record.term == after.term]
    assert [record.kind for record in term[:2]] == [NOOP, ADMIN]
    first, epoch = [e for e in log.effects() if e.index < term[0].index], log.epochs()[-1]
    assert (epoch.index, epoch.start) == (term[1].index, first[-1].end)


def test_rule_13_accepted_requests_are_run_again_once(bed: Testbed, log: LogView) -> None:
    before = bed.status()
    leader = leader_of(before)
    stop_processes([leader.backend_pid])
    connections = in_flight(log, list(before.nodes), b"INCR", b"counter")
    accepted = [command.index for command in log.commands() if b"counter" in command.raw]
    bed.kill(leader)
    after = another_serves(bed, before)
    assert bed.client(leader_of(after)).get("counter") == b"30"
    assert_others_answered(connections, 30)
    ((rerun, indexes),) = log.reruns()
    assert indexes == sorted(set(accepted))
    assert rerun < next(e.index for e in log.effects() if e.covered >= accepted[-1])  # logged first, run then
    # And never again: the next leader finds them covered.
    with contextlib.suppress(Exception):
        bed.backend(leader_of(after)).execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    last = another_serves(bed, after)
    assert bed.client(leader_of(last)).get("counter") == b"30"
    assert len(log.reruns()) == 1


def test_rule_13_what_was_answered_without_an_effect_is_not_run_again(bed: Testbed, log: LogView) -> None:
    """A lock that was refused, because somebody held it, must not be taken later, when the holder's time is over: the
    next leader's server stands still until then."""
    before = bed.status()
    leader = leader_of(before)
    client = bed.client(leader)
    assert client.set("lock", "holder", px=400, nx=True)
    assert client.set("lock", "refused", nx=True) is None
    assert client.eval("return redis.call('GET', KEYS[1])", 1, "lock") == b"holder"
    stop_processes([node.backend_pid for node in before.followers])
    held = bed.backend(leader).pttl("lock") / 1000
    assert held > 0
    bed.kill(leader)
    over = time.monotonic() + held
    wait_until("the lock's time is over", lambda: time.monotonic() > over, 5)
    for node in before.followers:
        go_on(node.backend_pid)
    after = another_serves(bed, before)
    assert bed.client(leader_of(after)).get("lock") is None
    assert log.reruns() == []
    empty = [e for e in log.effects() if e.start == e.end]
    assert {c.raw.split(b"\r\n")[2] for c in log.commands() for e in empty if c.index == e.covered} == {b"SET", b"EVAL"}


# -- trap 9, 14, 16: what clients see, and what a deposed leader has done


def test_trap_09_unknown_outcomes_close_and_nothing_is_done_twice(bed: Testbed, log: LogView) -> None:
    """The old leader's server runs them after all, when nobody asks any more; so does the new leader's."""
    before = bed.status()
    leader = leader_of(before)
    stop_processes([leader.backend_pid])
    connections = in_flight(log, list(before.nodes), b"INCR", b"counter")
    stop_processes([leader.pid])
    go_on(leader.backend_pid)
    wait_until("its server has run them", lambda: bed.backend(leader).get("counter") == b"30", 5)
    after = another_serves(bed, before)
    bed.cont(leader)
    assert_others_answered(connections, 30)  # no error that would mean "not done"
    client = bed.client(leader_of(after))
    assert client.get("counter") == b"30"
    assert client.incr("counter") == 31  # asking again is another request
    bed.wait_status("the deposed node follows", lambda s: follows(s, leader.id))
    assert_same_data(bed)
    assert bed.backend(leader).get("counter") == b"31"


def test_rule_14_who_waits_is_answered_by_the_next_leader_and_keeps_his_state(bed: Testbed, log: LogView) -> None:
    before = bed.status()
    leader = leader_of(before)
    idle = [Session(node) for node in before.followers for _ in range(2)]
    for session in idle:
        assert session.ask(b"SELECT 5") == b"+OK" and session.ask(b"CLIENT SETNAME me") == b"+OK"
        assert session.ask(b"HELLO 3") == b"%7"
        while session.lines.readline() != b"*0\r\n":  # the end of the map
            pass
    for session in idle[::2]:
        assert session.ask(b"MULTI") == b"+OK" and session.ask(b"INCR inside") == b"+QUEUED"
    stop_processes([leader.backend_pid])
    waiting = in_flight(log, before.followers, b"INCR", b"counter")
    bed.kill(leader)
    late = [send(node, b"SET", b"late", b"1") for node in before.followers]  # sent while nobody serves
    after = another_serves(bed, before)
    assert sorted(map(answer, waiting)) == sorted(b":%d\r\n" % n for n in range(1, 21))
    assert list(map(answer, late)) == [b"+OK\r\n"] * 2
    for i, session in enumerate(idle[::2]):
        assert session.ask(b"EXEC") == b"*1" and session.lines.readline() == b":%d\r\n" % (i + 1)
    for session in idle:
        assert session.ask(b"SET where 5") == b"+OK"
        assert session.ask(b"GET absent") == b"_"  # RESP3
        assert session.ask(b"CLIENT GETNAME") == b"$2" and session.lines.readline() == b"me\r\n"
        session.close()
    assert bed.client(leader_of(after), db=5).get("where") == b"5"
    assert bed.client(leader_of(after), db=5).get("inside") == b"2"
    assert bed.client(leader_of(after)).get("counter") == b"20"


def test_rule_16_what_a_deposed_leaders_server_did_beyond_the_log_is_undone(bed: Testbed, log: LogView) -> None:
    """It took one member by chance, the new leader's another: equally long effects, different data."""
    before = bed.status()
    leader = leader_of(before)
    bed.client(leader).sadd("set", *range(100_000, 101_000))
    assert_same_data(bed, before)
    stop_processes([leader.backend_pid])
    connections = in_flight(log, [before.followers[-1]], b"SPOP", b"set", each=5)
    stop_processes([leader.pid])
    go_on(leader.backend_pid)
    wait_until("its server has run them", lambda: bed.backend(leader).scard("set") == 995, 5)
    astray = bed.backend(leader).smembers("set")
    after = another_serves(bed, before)
    kept = bed.client(leader_of(after)).smembers("set")
    assert len(kept) == 995 and kept != astray
    bed.cont(leader)
    status = bed.wait_status("the deposed node follows", lambda s: follows(s, leader.id))
    assert bed.backend(leader).smembers("set") == kept
    assert_same_data(bed, status)
    given = {answer(connection).split(b"\r\n")[1] for connection in connections}
    assert given == {b"%d" % n for n in range(100_000, 101_000)} - kept  # by the next leader
    assert {words[0] for e in log.effects()[-3:] for words in requests_in(e.stream)} >= {b"SREM"}


# -- 1, 3: what a node takes over from another


def test_rule_01_scripts_are_in_the_state_that_a_node_left_behind_takes_over(bed: Testbed) -> None:
    before = bed.status()
    leader, lagging = leader_of(before), before.followers[0]
    bed.stop(lagging)
    client = bed.client(leader)
    for i in range(40):
        client.set(f"large:{i % 4}", b"x" * (1 << 20))  # the ring goes round without it
    bed.wait_status("it is dropped", lambda s: int(lagging.id) not in s[leader.id].more["confirmed"])
    digest = client.script_load("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    assert client.eval("return 'seen'", 0) == b"seen"
    client.set("behind it", 1)  # an effect that covers them: they will not be run again
    bed.cont(lagging)
    bed.wait_status("it takes another node's state over", lambda s: s[lagging.id].role == "joining")
    bed.wait_status("it follows", lambda s: follows(s, lagging.id) and s[lagging.id].applied >= s[leader.id].commit)
    bed.kill(leader)
    after = another_serves(bed, before)
    assert after.leader == lagging.id
    client = bed.client(leader_of(after))
    assert client.evalsha(digest, 1, "n", 5) == 5
    assert client.evalsha(hashlib.sha1(b"return 'seen'").hexdigest(), 0) == b"seen"
    assert_same_data(bed)


def test_rule_03_a_request_that_its_leader_did_not_finish_is_void(bed: Testbed, log: LogView) -> None:
    """The leader is stopped while the pieces of one COMMAND come, and killed."""
    before = bed.status()
    leader = leader_of(before)
    log.read()
    connection = socket.create_connection(leader.client_address, timeout=30)
    value = b"v" * (10 << 20)
    for attempt in range(5):
        connection.sendall(encode((b"SET", b"large", value)))
        while not log.more():
            pass
        stop_processes([leader.pid])
        log.read()
        if log.seen[-1].more:
            break
        bed.cont(leader)
        assert connection.recv(100) == b"+OK\r\n", attempt
    else:
        pytest.skip("the leader was never caught in the middle")
    bed.kill(leader)
    after = another_serves(bed, before)
    assert last_words(connection) == b""
    client = bed.client(leader_of(after))
    assert client.exists("large") == (attempt > 0)
    assert client.set("small", 1)
    log.read()
    assert not log.reruns()
    assert_same_data(bed)
