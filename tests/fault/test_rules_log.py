"""Rules of the Redis path that say what stands in the log, looked up in the memory of real nodes; and what clients may
not do to a shared connection. Numbers are those of docs/proof.md. The cluster is left as it was found."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator

import pytest
import redis

from musidecar.testbed import NodeStatus, Testbed, wait_until
from musidecar.workload import encode
from tests.fault.cluster import a_follower_of, assert_same_data, leader_of
from tests.fault.log_view import LogView, requests_in


@pytest.fixture(autouse=True)
def same_leader(shared_bed: Testbed) -> Iterator[None]:
    """Whatever a client did, it led to no change of leaders."""
    before = shared_bed.status()
    yield
    after = shared_bed.status()
    assert (after.leader, after.term) == (before.leader, before.term), shared_bed.logs()
    assert_same_data(shared_bed, after)


@pytest.fixture(scope="module")
def whole_log(shared_bed: Testbed) -> Iterator[LogView]:
    """A follower's log from its start: one view for all tests, or the ring would leave it behind."""
    with LogView(shared_bed, shared_bed.status().followers[-1]) as view:
        yield view


@pytest.fixture
def log(whole_log: LogView) -> LogView:
    """The same, read up to now."""
    whole_log.read()
    return whole_log


def ask(node: NodeStatus, *requests: tuple[bytes, ...], answers: int | None = None) -> list[bytes]:
    """Sends all requests at once on a connection of their own; the first line of each answer, in order."""
    with contextlib.closing(socket.create_connection(node.client_address, 30)) as connection:
        connection.sendall(b"".join(map(encode, requests)))
        with connection.makefile("rb") as lines:
            return [lines.readline().rstrip() for _ in range(answers or len(requests))]


def test_rule_01_records_carry_what_another_node_needs(shared_bed: Testbed, log: LogView) -> None:
    status = shared_bed.status()
    follower = a_follower_of(status)
    before = len(log.commands()), len(log.effects())
    client = shared_bed.client(follower, db=3, protocol=3)
    body = b"return redis.call('SET', KEYS[1], 'by a script')"
    client.set("rule 1", "value")
    client.incr("rule 1 n")
    client.eval(body.decode(), 1, "rule 1 s")
    commands = log.commands()[before[0] :]
    wanted = [(b"SET", b"rule 1", b"value"), (b"INCRBY", b"rule 1 n", b"1"), (b"EVAL", body, b"1", b"rule 1 s")]
    assert [requests_in(c.raw) for c in commands] == [[words] for words in wanted]
    assert {(c.database, c.protocol, c.node, c.replies) for c in commands} == {(3, 3, int(follower.id) - 1, 1)}
    assert len({c.client for c in commands}) == 1
    sequences = [c.sequence for c in commands]
    assert sequences == sorted(set(sequences))
    assert body in log.scripts()
    wait_until("the last effect is there", lambda: log.effects()[-1].covered >= commands[-1].index, 5)
    effects = log.effects()
    epoch = log.epochs()[-1]
    assert all(e.epoch == epoch.epoch for e in effects if e.index > epoch.index)
    assert next(e.start for e in effects if e.index > epoch.index) == epoch.start
    assert all(e.end - e.start == len(e.stream) for e in effects)
    assert all(a.end == b.start and a.covered <= b.covered for a, b in itertools.pairwise(effects))
    assert epoch.replid == shared_bed.backend(leader_of(status)).info("replication")["master_replid"]
    assert (b"SET", b"rule 1 s", b"by a script") in requests_in(effects[-1].stream)


def test_rule_02_an_effect_ends_between_commands_and_transactions(shared_bed: Testbed, log: LogView) -> None:
    """Large transactions and values, whose effects come in many reads of the stream."""
    before = len(log.effects())
    status = shared_bed.status()
    clients = [shared_bed.client(node, db=i) for i, node in enumerate(status.nodes)]
    for turn in range(6):
        for client in clients:
            with client.pipeline(transaction=True) as pipe:
                for i in range(300):
                    pipe.set(f"rule 2:{i}", b"v" * (turn * 200))
                pipe.execute()
            with client.pipeline(transaction=False) as pipe:
                for i in range(8):
                    pipe.set(f"rule 2 large:{i}", b"x" * 100_000, px=1 + i)
                pipe.execute()
        log.read()
    wait_until("what expires is gone", lambda: all(c.exists("rule 2 large:7") == 0 for c in clients), 5)
    effects = log.effects()[before:]
    assert len(effects) >= 12
    for effect in effects:
        requests = requests_in(effect.stream)
        assert bool(requests) == (effect.end > effect.start)
        depth = 0
        for words in requests:
            depth += (words == (b"MULTI",)) - (words == (b"EXEC",))
            assert depth in (0, 1)
        assert depth == 0, "a transaction is cut"
    for client in clients:
        client.flushdb()


def test_rule_02_effects_that_no_request_caused_are_cut_soon(shared_bed: Testbed, log: LogView) -> None:
    client = shared_bed.client(leader_of(shared_bed.status()))
    client.set("rule 2 expires", 1, px=30)
    commands = len(log.commands())

    def gone() -> bool:
        return any(words[1:] == (b"rule 2 expires",) for e in log.effects()[-3:] for words in requests_in(e.stream))

    wait_until("its end is in the log", gone, 5)
    assert len(log.commands()) == commands


def test_rule_05_what_runs_on_a_connection_of_its_own_is_in_the_log_by_its_effect_alone(
    shared_bed: Testbed, node: NodeStatus, log: LogView
) -> None:
    """Nobody runs it again: no COMMAND stands for it. What it changed is in the log before it is answered."""
    commands, effects = len(log.commands()), len(log.effects())
    lines = [b"WATCH rule5", b"MULTI", b"SET rule5 1", b"EXEC"]
    assert ask(node, *(tuple(line.split()) for line in lines), answers=5) == [b"+OK", b"+OK", b"+QUEUED", b"*1", b"+OK"]
    assert ask(node, (b"RPUSH", b"rule5q", b"a")) == [b":1"]
    assert ask(node, (b"BLPOP", b"rule5q", b"0"), answers=5)[-1] == b"a"
    assert ask(node, (b"DEL", b"rule5")) == [b":1"]
    assert [requests_in(c.raw) for c in log.commands()[commands:]] == [
        [(b"RPUSH", b"rule5q", b"a")], [(b"DEL", b"rule5")]
    ]  # fmt: skip
    done = [words for e in log.effects()[effects:] for words in requests_in(e.stream)]
    wanted = [(b"SET", b"rule5", b"1"), (b"LPOP", b"rule5q")]
    assert [words for words in done if words in wanted] == wanted


def test_rule_06_requests_on_two_connections_do_not_overtake(node: NodeStatus) -> None:
    """SCRIPT KILL has a connection to the server of its own, and waits for the client's own script there."""
    spin = (
        b"local t = redis.call('TIME'); local s = t[1] * 1000000 + t[2] + 300000; "
        b"repeat t = redis.call('TIME') until t[1] * 1000000 + t[2] > s; return 'done'"
    )
    answers = ask(node, (b"SET", b"rule 6", b"0"), (b"EVAL", spin, b"0"), (b"SCRIPT", b"KILL"), (b"INCR", b"rule 6"),
                  (b"FUNCTION", b"KILL"), (b"INCR", b"rule 6"), answers=7)  # fmt: skip
    assert answers[:3] == [b"+OK", b"$4", b"done"]
    assert answers[3].startswith(b"-NOTBUSY") and answers[5].startswith(b"-NOTBUSY"), answers
    assert (answers[4], answers[6]) == (b":1", b":2")


def test_rule_07_clients_cannot_touch_the_sidecars_connections(shared_bed: Testbed, node: NodeStatus) -> None:
    lines = [
        b"CONFIG SET timeout 1", b"CONFIG SET maxmemory-clients 1mb", b"CONFIG SET repl-diskless-sync-delay 5",
        b"CONFIG SET min-replicas-to-write 9", b"CONFIG SET port 1",
        b"REPLICAOF NO ONE", b"FAILOVER", b"SHUTDOWN NOSAVE", b"DEBUG SLEEP 3",
        b"PSYNC ? -1 FAILOVER", b"REPLCONF ACK 1 GETACK *",
    ]  # fmt: skip
    answers = ask(node, *(tuple(line.split()) for line in lines), (b"CLIENT", b"KILL", b"TYPE", b"replica"), (b"PING",))
    assert all(line.startswith(b"-ERR") for line in answers[:-2]), answers
    assert answers[-2:] == [b":0", b"+PONG"]  # the sidecar's own is none of its replicas
    for everybody in (b"CLIENT KILL TYPE normal", b"CLIENT KILL SKIPME no"):  # clients alone
        assert ask(node, tuple(everybody.split()))[0].startswith(b":")
    backend = shared_bed.backend(leader_of(shared_bed.status()))
    flags = {c["name"]: c["flags"] for c in backend.client_list() if c["name"].startswith("musidecar")}
    assert set(flags) == {"musidecar-shared", "musidecar-admin"}
    assert all("e" in value for value in flags.values()), "the server may evict them"


def test_rule_09_reads_log_nothing(shared_bed: Testbed, node: NodeStatus, log: LogView) -> None:
    client = shared_bed.client(node)
    client.set("rule 9", 1)
    wait_until("its effect is there", lambda: log.effects()[-1].covered >= log.commands()[-1].index, 5)
    records, effects = len(log.seen), len(log.effects())
    probes = int(leader_of(shared_bed.status()).more["probes"])
    for _ in range(300):
        assert client.get("rule 9") == b"1"
    status = shared_bed.wait_status("every read was proved", lambda s: int(leader_of(s).more["probes"]) >= probes + 300)
    assert int(leader_of(status).more["probes"]) < probes + 1000  # one each, and the idle leader's own
    new = log.effects()[effects:]
    assert {words for e in new for words in requests_in(e.stream)} <= {(b"PING",)}  # the server's keep-alive
    assert len(log.seen) == records + len(new)


def test_rule_11_half_closed_clients_get_their_answers(node: NodeStatus) -> None:
    with contextlib.closing(socket.create_connection(node.client_address, 30)) as connection:
        connection.sendall(encode((b"DEL", b"rule 11")) + encode((b"INCR", b"rule 11")) * 500)
        connection.shutdown(socket.SHUT_WR)
        got = b""
        while data := connection.recv(1 << 16):
            got += data
    assert got.split(b"\r\n")[1:-1] == [b":%d" % i for i in range(1, 501)]


def test_rule_15_a_server_that_the_log_vouches_for_goes_on_without_a_resync(shared_bed: Testbed) -> None:
    status = shared_bed.status()
    follower = status.followers[0]
    client, backend = shared_bed.client(leader_of(status)), shared_bed.backend(follower)
    client.set("rule 15", 1)
    assert_same_data(shared_bed, status)
    for i in range(3):
        backend.execute_command("CLIENT", "KILL", "TYPE", "master")
        client.set("rule 15", i)
        assert_same_data(shared_bed, status)
    log = (shared_bed.dir / f"{follower.id}.log").read_text()
    assert log.count("the backend's feed ended") >= 3
    assert log.count("holds the cluster's data and follows the log") == 1


def test_rule_19_a_difference_behind_equal_logs_is_named(shared_bed: Testbed) -> None:
    """Planted past the log: into a follower's server, which for that moment takes writes."""
    status = shared_bed.status()
    shared_bed.client(leader_of(status)).set("rule 19", "same")
    assert_same_data(shared_bed, status)
    backend = shared_bed.backend(status.followers[0])
    backend.config_set("replica-read-only", "no")
    try:
        backend.set("rule 19", "other")
        with pytest.raises(AssertionError, match="rule 19"):
            assert_same_data(shared_bed, status)
    finally:
        backend.set("rule 19", "same")
        backend.config_set("replica-read-only", "yes")
    with contextlib.suppress(redis.ResponseError):
        backend.delete("rule 19")
        raise AssertionError("the follower's server still takes writes")


def test_rule_07_what_is_refused_breaks_its_transaction(shared_bed: Testbed, node: NodeStatus) -> None:
    """As Redis queues it and would do it at EXEC, it is at EXEC that the client is told."""
    lines = [b"MULTI", b"SET refused 1", b"REPLICAOF NO ONE", b"GET refused", b"EXEC", b"GET refused", b"PING"]
    answers = ask(node, *(tuple(line.split()) for line in lines))
    assert answers[:4] == [b"+OK", b"+QUEUED", b"+QUEUED", b"+QUEUED"], answers
    assert answers[4].startswith(b"-EXECABORT") and b"replicaof is refused" in answers[4], answers
    assert answers[5:] == [b"$-1", b"+PONG"], answers
