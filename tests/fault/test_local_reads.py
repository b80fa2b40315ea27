"""reads = "local": READONLY clients of a follower are answered by its own server, no staler than was promised."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from musidecar.testbed import NodeStatus, Testbed, musidecar, wait_until
from tests.fault.cluster import a_follower_of, another_serves, assert_same_data, leader_of
from tests.fault.nursery import Cradle, Nursery
from tests.fault.test_own import Line

STALE_MS = 800
SETTINGS = {"cluster": {"reads": "local"}, "timing": {"stale_ms": STALE_MS}}
WAIT_S = 20.0


@pytest.fixture(scope="module")
def local_bed(nursery: Nursery) -> Iterator[Cradle]:
    """For tests that leave it as they found it."""
    with Cradle(nursery, 3, SETTINGS) as bed:
        yield bed


@pytest.fixture
def own_bed(nursery: Nursery) -> Iterator[Cradle]:
    """One that the test may break."""
    with Cradle(nursery, 3, SETTINGS) as bed:
        yield bed
    assert bed.leftovers() == []


@pytest.fixture
def follower(local_bed: Cradle) -> Iterator[NodeStatus]:
    found = a_follower_of(local_bed.status())
    yield found
    os.kill(found.backend_pid, signal.SIGCONT)
    local_bed.client(leader_of(local_bed.status())).flushall()
    assert_same_data(local_bed)


def local_reads(bed: Testbed, node: NodeStatus) -> int:
    """So many the node's own server has answered. The engine publishes its counters each tick."""
    time.sleep(0.03)
    return int(bed.status()[node.id].more["local_reads"])


def read_only(node: NodeStatus) -> Line:
    line = Line(node)
    assert line.ask("READONLY") == ["+OK"]
    return line


# ---- what is answered here, and what is not --------------------------------------------------------------------------


def test_without_the_setting_readonly_is_what_redis_makes_of_it(shared_bed: Testbed, node: NodeStatus) -> None:
    plain = shared_bed.backend(leader_of(shared_bed.status()))
    with Line(node) as line:
        for word in ("READONLY", "READWRITE"):
            with pytest.raises(redis.exceptions.ResponseError) as refused:
                plain.execute_command(word)
            assert line.ask(word) == [f"-ERR {refused.value}"]
        line.say("SET a 1", "GET a")
        assert line.hear(3) == ["+OK", "$1", "1"]
    assert local_reads(shared_bed, node) == 0
    assert shared_bed.status()[node.id].more["reads_locally"] is False


def test_a_followers_own_server_answers_from_readonly_to_readwrite(local_bed: Cradle, follower: NodeStatus) -> None:
    assert local_bed.status()[follower.id].more["reads_locally"] is True
    own = local_bed.backend(follower)
    with Line(follower) as line:
        line.say("SET a 1", "GET a")
        line.hear(3)
        before = local_reads(local_bed, follower)
        own.config_resetstat()
        assert line.ask("READONLY") == ["+OK"]
        for _ in range(20):
            assert line.ask("GET a", 2) == ["$1", "1"]
        assert local_reads(local_bed, follower) == before + 20
        assert own.info("commandstats")["cmdstat_get"]["calls"] == 20
        for word in ("READWRITE", "RESET"):
            line.ask("READONLY")
            assert line.ask(word)[0].startswith("+")
            assert line.ask("GET a", 2) == ["$1", "1"]
        assert local_reads(local_bed, follower) == before + 20


def test_at_the_leader_nothing_changes(local_bed: Cradle, follower: NodeStatus) -> None:
    leader = leader_of(local_bed.status())
    with read_only(leader) as line, Line(follower) as other:
        for value in range(50):
            assert other.ask(f"SET a {value}") == ["+OK"]
            assert line.ask("GET a", 2)[1] == str(value)
    assert local_reads(local_bed, leader) == 0


def test_what_a_replica_cannot_say_the_leader_says(local_bed: Cradle, follower: NodeStatus) -> None:
    client = local_bed.client(follower, single_connection_client=True)
    assert client.execute_command("READONLY")
    client.mset({f"k{i}": i for i in range(100)})
    sha = client.script_load("return redis.call('GET', KEYS[1])")
    client.function_load("#!lua name=l\nredis.register_function{function_name='f', flags={'no-writes'},"
                         " callback=function(k, a) return redis.call('GET', k[1]) end}")  # fmt: skip
    client.rpush("q", "x")
    before = local_reads(local_bed, follower)
    asked: list[tuple[Callable[[], object], object]] = [
        (lambda: client.execute_command("EVAL_RO", "return redis.call('GET', KEYS[1])", 1, "k1"), b"1"),
        (lambda: client.execute_command("EVALSHA_RO", sha, 1, "k2"), b"2"),
        (lambda: client.execute_command("FCALL_RO", "f", 1, "k3"), b"3"),
        (lambda: sorted(client.scan_iter("k9*")), sorted([b"k9", *(b"k%d" % i for i in range(90, 100))])),
        (lambda: client.role()[0], b"master"),
        (lambda: client.info("replication")["role"], "master"),
        (lambda: client.touch("k1", "k2"), 2),
        (lambda: client.blpop("q", 1), (b"q", b"x")),
        (lambda: client.pipeline().set("k1", 7).get("k1").execute(), [True, b"7"]),
        (lambda: client.object("REFCOUNT", "q"), None),
        (lambda: client.incr("k1"), 8),
        (lambda: client.execute_command("WAIT", 2, 0), 2),
    ]
    for ask, expected in asked:
        assert ask() == expected
    assert local_reads(local_bed, follower) == before
    assert client.get("k1") == b"8" and local_reads(local_bed, follower) == before + 1


def test_databases_and_protocols(local_bed: Cradle, follower: NodeStatus) -> None:
    before = local_reads(local_bed, follower)
    with Line(follower) as two, Line(follower) as three:
        assert three.ask("HELLO 3")[0] == "%7"
        three.hear(25)
        for line, database in ((two, 3), (three, 5)):
            assert line.ask(f"SELECT {database}") == ["+OK"] and line.ask("READONLY") == ["+OK"]
            assert line.ask(f"HSET h in {database}") == [":1"]
        for _ in range(5):
            two.say("HGETALL h", "GET none", "SELECT 0", "EXISTS h", "SELECT 3")
            assert two.hear(9) == ["*2", "$2", "in", "$1", "3", "$-1", "+OK", ":0", "+OK"]
            three.say("HGETALL h", "GET none")
            assert three.hear(6) == ["%1", "$2", "in", "$1", "5", "_"]
    assert local_reads(local_bed, follower) == before + 5 * 5


def test_an_expired_key_is_absent_though_nobody_said_so_yet(local_bed: Cradle, follower: NodeStatus) -> None:
    leader = leader_of(local_bed.status())
    own = local_bed.backend(follower)
    with read_only(follower) as line:
        assert line.ask("SET e x PX 150") == ["+OK"]
        assert line.ask("GET e", 2) == ["$1", "x"]
        os.kill(leader.backend_pid, signal.SIGSTOP)  # it deletes nothing
        try:
            wait_until("it is absent", lambda: line.ask("GET e") == ["$-1"] or line.hear() == [], STALE_MS / 1000)
            line.say("EXISTS e", "TTL e", "TYPE e", "KEYS *")
            assert line.hear(4) == [":0", ":-2", "+none", "*0"]
            assert own.dbsize() == 1, "it is there still: nobody deleted it"
        finally:
            os.kill(leader.backend_pid, signal.SIGCONT)


# ---- how stale -------------------------------------------------------------------------------------------------------


def test_a_connection_sees_its_own_writes_and_what_it_has_seen(local_bed: Cradle, follower: NodeStatus) -> None:
    """Beside a writer at the leader, alone and in pipelines; nothing goes back."""
    stop = threading.Event()

    def write() -> None:
        with Line(leader_of(local_bed.status())) as other:
            while not stop.is_set():
                other.ask("INCR n")

    writer = threading.Thread(target=write)
    writer.start()
    before, seen = local_reads(local_bed, follower), 0
    try:
        with read_only(follower) as line:
            line.ask("SET n 1")
            for i in range(300):
                assert line.ask(f"SET a {i}") == ["+OK"]
                assert line.ask("GET a", 2)[1] == str(i)
                line.say(f"SET b {i}", "GET b", "PING", "GET n", f"SET c {i}", "GET c")
                answers = line.hear(9)
                assert answers[2] == answers[8] == str(i) and answers[3] == "+PONG"
                line.say("GET b", "GET n", "GET c")
                own = line.hear(6)
                assert own[1] == own[5] == str(i)
                assert seen <= int(answers[5]) <= int(own[3])
                seen = int(own[3])
    finally:
        stop.set()
        writer.join()
    assert local_reads(local_bed, follower) >= before + 300 * 3, "nearly all that stood alone, or behind those"


def test_a_read_behind_an_own_write_is_not_answered_by_a_server_that_lags(
    local_bed: Cradle, follower: NodeStatus
) -> None:
    with read_only(follower) as line:
        line.ask("SET a old")
        assert line.ask("GET a", 2) == ["$3", "old"]
        before = local_reads(local_bed, follower)
        os.kill(follower.backend_pid, signal.SIGSTOP)
        assert line.ask("SET a new") == ["+OK"]
        assert line.ask("GET a", 2) == ["$3", "new"], "the leader's"
        assert local_reads(local_bed, follower) == before
        os.kill(follower.backend_pid, signal.SIGCONT)
        wait_until("its own server answers again",
                   lambda: line.ask("GET a", 2)[1] == "new" and local_reads(local_bed, follower) > before,
                   WAIT_S)  # fmt: skip


def test_who_is_cut_off_answers_for_as_long_as_was_promised_and_no_longer(own_bed: Cradle) -> None:
    status = own_bed.status()
    follower, others = a_follower_of(status), [leader_of(status), status.followers[1]]
    with read_only(follower) as line:
        line.ask("SET a 1")
        assert line.ask("GET a", 2) == ["$1", "1"]
        began, answered = time.monotonic(), 0.0
        for other in others:
            own_bed.stop(other)
        stopped = time.monotonic()
        line.connection.settimeout(2 * STALE_MS / 1000)
        with pytest.raises(TimeoutError):
            while True:
                line.say("GET a")
                answered = time.monotonic()
                assert line.hear(2) == ["$1", "1"]
                time.sleep(0.001)
        assert answered - began < STALE_MS / 1000 + 0.2, "it goes to the leader, and waits"
        assert answered - stopped > STALE_MS / 1000 / 2, "until then it was answered"
        assert follower.pid and local_reads(own_bed, follower) > 50
        for other in others:
            own_bed.cont(other)
    with read_only(follower) as line:
        assert line.ask("GET a", 2) == ["$1", "1"]


def test_the_bench_measures_local_reads(tmp_path: Path) -> None:
    done = musidecar("bench", "reads", "--rounds", "1", "--seconds", "0.2", "--out", str(tmp_path), timeout_s=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GET 50x16, local / linearizable" in done.stdout


# ---- what becomes of those that wait ---------------------------------------------------------------------------------


def hold_up(bed: Cradle, node: NodeStatus, line: Line, count: int = 100) -> None:
    """Reads wait for the node's own server, which stands still."""
    for i in range(count):
        line.ask(f"SET k{i} {i}")
    assert line.ask("GET k1", 2) == ["$1", "1"]
    before = int(bed.status()[node.id].more["requests"])
    os.kill(node.backend_pid, signal.SIGSTOP)
    line.say(*(f"GET k{i}" for i in range(count)))
    wait_until("they are taken", lambda: bed.status()[node.id].more["requests"] >= before + count, WAIT_S)


def hear_all(line: Line, count: int = 100) -> None:
    heard = line.hear(2 * count)
    assert heard[1::2] == [str(i) for i in range(count)]


def test_when_its_own_server_dies_the_leader_answers(own_bed: Cradle) -> None:
    follower = a_follower_of(own_bed.status())
    with read_only(follower) as line:
        hold_up(own_bed, follower, line)
        os.kill(follower.backend_pid, signal.SIGKILL)
        hear_all(line)
        assert line.ask("GET k7", 2) == ["$1", "7"], "while it is filled again, too"


def test_when_it_is_about_to_lead_it_answers_once_it_does(own_bed: Cradle) -> None:
    before = own_bed.status()
    heir = min(before.followers, key=lambda node: node.id)
    with read_only(heir) as line:
        hold_up(own_bed, heir, line)
        own_bed.kill(leader_of(before))
        wait_until("it takes over", lambda: own_bed.status()[heir.id].more["backend_state"] != "fed"
                   or own_bed.status()[heir.id].role == "leader", WAIT_S)  # fmt: skip
        os.kill(heir.backend_pid, signal.SIGCONT)
        hear_all(line)
        assert another_serves(own_bed, before).leader == heir.id
        line.say("SET k1 new", "GET k1")
        assert line.hear(3) == ["+OK", "$3", "new"]


def test_nobody_goes_back_in_time_when_the_leader_dies(own_bed: Cradle) -> None:
    """Readers of both nodes that stay, beside a writer: connections stay, and values only grow."""
    before = own_bed.status()
    stop, faults = threading.Event(), list[str]()
    seen = {node.id: 0 for node in before.followers}

    def read(node: NodeStatus) -> None:
        try:
            with read_only(node) as line:
                while not stop.is_set():
                    length, *value = line.ask("GET n")
                    value = line.hear() if length != "$-1" else ["0"]
                    if int(value[0]) < seen[node.id]:
                        faults.append(f"node {node.id} went back from {seen[node.id]} to {value[0]}")
                    seen[node.id] = int(value[0])
        except (OSError, ValueError) as error:
            faults.append(f"node {node.id}: {error!r}")

    readers = [threading.Thread(target=read, args=(node,)) for node in before.followers]
    for reader in readers:
        reader.start()
    written = 0
    try:
        with Line(before.followers[1]) as writer:
            for turn in range(600):
                if turn == 300:
                    own_bed.kill(leader_of(before))
                written += 1
                assert writer.ask("INCR n") == [f":{written}"]
        wait_until("all is seen", lambda: bool(faults) or set(seen.values()) == {written}, WAIT_S)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert faults == []
    assert sum(node.more["local_reads"] for node in own_bed.status().alive) > 100


def test_a_node_that_joins_answers_nothing_by_itself(own_bed: Cradle) -> None:
    before = own_bed.status()
    node = before.followers[1]
    own_bed.client(leader_of(before)).mset({f"k{i}": "x" * 1000 for i in range(20_000)})
    own_bed.kill(node)
    own_bed.start_again(node)

    def is_back() -> bool:
        try:
            with Line(node) as line:
                line.say("READONLY", "GET k19999")
                heard = line.hear(2)
        except ConnectionError:
            return False
        if heard == ["", ""]:
            return False  # killed just now
        assert heard == ["+OK", "$1000"]
        return own_bed.status()[node.id].role == "follower"

    wait_until("it is a member again", is_back, WAIT_S)
    assert_same_data(own_bed)
