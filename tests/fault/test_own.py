"""Clients that the server must keep something for, or make wait: each has a connection of its own to the leader's
server, through the leader's sidecar and through a follower's alike."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from musidecar.testbed import NodeStatus, Testbed, musidecar, stop_processes, wait_until
from musidecar.workload import encode
from tests.fault.cluster import a_follower_of, another_serves, assert_same_data, follows, last_words, leader_of, send

WAIT_S = 20.0


class Line:
    """A client that sees every line that it is sent."""

    def __init__(self, node: NodeStatus) -> None:
        self.connection = socket.create_connection(node.client_address, WAIT_S)
        self.lines = self.connection.makefile("rb")

    def say(self, *texts: str) -> None:
        self.connection.sendall(b"".join(encode(text.encode().split()) for text in texts))

    def hear(self, count: int = 1) -> list[str]:
        return [self.lines.readline().rstrip().decode() for _ in range(count)]

    def ask(self, text: str, lines: int = 1) -> list[str]:
        self.say(text)
        return self.hear(lines)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        self.connection.close()


def setting(client: redis.Redis, name: str = "acllog-max-len") -> str:
    """The value of a parameter."""
    (value,) = client.config_get(name).values()
    return value.decode() if isinstance(value, bytes) else str(value)


def blocked(bed: Testbed, status: Any = None) -> int:
    """How many clients the leader's server makes wait."""
    return int(bed.backend(leader_of(status or bed.status())).info("clients")["blocked_clients"])


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "shared_bed" in request.fixturenames:
        bed: Testbed = request.getfixturevalue("shared_bed")
        bed.client(leader_of(bed.status())).flushall()
        assert_same_data(bed)


# ---- what they do ----------------------------------------------------------------------------------------------------


def test_a_blocked_client_is_served_first_come_first_served(shared_bed: Testbed, node: NodeStatus) -> None:
    with Line(node) as first, Line(node) as second, Line(leader_of(shared_bed.status())) as giver:
        first.say("BLPOP q 0")
        wait_until("it waits", lambda: blocked(shared_bed) == 1, WAIT_S)
        second.say("BRPOP q 0", "GET n")  # what is behind a blocked request waits, too
        wait_until("both wait", lambda: blocked(shared_bed) == 2, WAIT_S)
        giver.say("SET n 7", "RPUSH q a", "RPUSH q b")
        assert giver.hear(3) == ["+OK", ":1", ":1"]
        assert first.hear(5) == ["*2", "$1", "q", "$1", "a"]
        assert second.hear(7) == ["*2", "$1", "q", "$1", "b", "$1", "7"]
        assert first.ask("BLPOP q 0.05") == ["*-1"]
        assert first.ask("INCR n") == [":8"]


def test_stream_readers_wait(shared_bed: Testbed, node: NodeStatus) -> None:
    client = shared_bed.client(node)
    client.xgroup_create("s", "g", "$", mkstream=True)
    got: list[Any] = []
    reader = threading.Thread(target=lambda: got.append(client.xreadgroup("g", "c", {"s": ">"}, block=15000)))
    reader.start()
    wait_until("it waits", lambda: blocked(shared_bed) == 1, WAIT_S)
    entry = shared_bed.client(leader_of(shared_bed.status())).xadd("s", {"f": "v"})
    reader.join(WAIT_S)
    assert got == [[[b"s", [(entry, {b"f": b"v"})]]]]


def test_a_client_is_unblocked_by_another(shared_bed: Testbed, node: NodeStatus) -> None:
    with Line(node) as waits, Line(a_follower_of(shared_bed.status())) as other:
        number = waits.ask("CLIENT ID")[0][1:]
        waits.say("BLPOP q 0")
        wait_until("it waits", lambda: blocked(shared_bed) == 1, WAIT_S)
        assert other.ask(f"CLIENT UNBLOCK {number} ERROR") == [":1"]
        assert waits.hear()[0].startswith("-UNBLOCKED")
        assert waits.ask("CLIENT ID") == [f":{number}"]


def test_a_client_that_went_while_blocked_takes_nothing(shared_bed: Testbed, node: NodeStatus) -> None:
    client = shared_bed.client(node)
    for half in (True, False):
        with Line(node) as waits:
            waits.say("BLPOP q 0")
            wait_until("it waits", lambda: blocked(shared_bed) == 1, WAIT_S)
            if half:
                waits.connection.shutdown(socket.SHUT_WR)
                assert waits.lines.read() == b""
        wait_until("nobody waits", lambda: blocked(shared_bed) == 0, WAIT_S)
        assert client.rpush("q", "kept") == 1 and client.lpop("q") == b"kept"


def test_watch(shared_bed: Testbed, node: NodeStatus) -> None:
    other = shared_bed.client(a_follower_of(shared_bed.status()))
    with Line(node) as line:
        for value, outcome in (("1", ["*1", ":2"]), ("5", ["*-1"])):
            other.set("w", "1")
            assert line.ask("WATCH w") == ["+OK"]
            other.set("w" if value == "5" else "x", value)
            line.say("MULTI", "INCR w", "EXEC")
            assert line.hear(2 + len(outcome)) == ["+OK", "+QUEUED", *outcome]
        other.set("w", "1")
        line.say("WATCH w", "MULTI", "SELECT 3", "SET w three", "EXEC", "GET w")
        assert line.hear(9) == ["+OK", "+OK", "+QUEUED", "+QUEUED", "*2", "+OK", "+OK", "$5", "three"]
        line.say("SELECT 0", "WATCH w", "UNWATCH", "GET w", "WATCH w", "MULTI", "DISCARD", "INCR w")
        assert line.hear(9) == ["+OK", "+OK", "+OK", "$1", "1", "+OK", "+OK", "+OK", ":2"]


def test_an_open_transaction_goes_on_on_the_own_connection(node: NodeStatus) -> None:
    with Line(node) as line:
        assert line.ask("MULTI") == ["+OK"] and line.ask("SET t 1") == ["+QUEUED"]
        assert line.ask("CLIENT ID") == ["+QUEUED"]
        assert line.ask("EXEC", 2) == ["*2", "+OK"] and line.hear()[0].startswith(":")
        assert line.ask("GET t", 2) == ["$1", "1"]


def test_publish_reaches_subscribers_of_every_node(shared_bed: Testbed) -> None:
    status = shared_bed.status()
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(Line(node)) for node in status.nodes]
        for line in lines:
            assert line.ask("SUBSCRIBE c", 6) == ["*3", "$9", "subscribe", "$1", "c", ":1"]
            assert line.ask("PSUBSCRIBE p*", 6)[4:] == ["p*", ":2"]
        for node in status.nodes:
            client = shared_bed.client(node)
            assert client.publish("c", node.id) == 3 and client.publish("p1", "x") == 3
            for line in lines:
                assert line.hear(7) == ["*3", "$7", "message", "$1", "c", "$1", node.id]
                assert line.hear(9)[4:] == ["p*", "$2", "p1", "$1", "x"]
        assert lines[0].ask("GET k") == [
            "-ERR Can't execute 'get': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this"
            " context"
        ]
        assert lines[0].ask("REPLICAOF a 1")[0].startswith("-ERR")
        assert lines[1].ask("RESET") == ["+RESET"] and lines[1].ask("PING") == ["+PONG"]


def test_pushes_of_resp3(shared_bed: Testbed, node: NodeStatus) -> None:
    other = shared_bed.client(a_follower_of(shared_bed.status()))
    with Line(node) as line:
        assert line.ask("HELLO 3")[0] == "%7"
        line.hear(25)
        assert line.ask("CLIENT TRACKING ON") == ["+OK"]
        other.set("k", 1)
        assert line.ask("GET k", 2) == ["$1", "1"]
        other.set("k", 2)
        assert line.hear(6) == [">2", "$10", "invalidate", "*1", "$1", "k"]
        line.say("SUBSCRIBE c", "GET k")
        assert line.hear(8) == [">3", "$9", "subscribe", "$1", "c", ":1", "$1", "2"]


def test_monitor_sees_the_other_nodes_requests(shared_bed: Testbed, node: NodeStatus) -> None:
    with Line(node) as line:
        assert line.ask("MONITOR") == ["+OK"]
        shared_bed.client(a_follower_of(shared_bed.status())).set("monitored", "by all")
        for _ in range(100):
            seen = line.hear()[0]
            assert not seen.lower().endswith(('"role"', '"ping"')), "the sidecar's own"
            if seen.endswith('"SET" "monitored" "by all"'):
                return
        raise AssertionError(seen)


def test_replies_can_be_turned_off(node: NodeStatus) -> None:
    with Line(node) as line:
        line.say("CLIENT REPLY OFF", "SET r 1", "CLIENT REPLY ON", "GET r", "CLIENT REPLY SKIP", "GET r", "PING")
        assert line.hear(4) == ["+OK", "$1", "1", "+PONG"]


def test_unsubscribing_from_nothing_changes_nothing(node: NodeStatus) -> None:
    with Line(node) as line:
        assert line.ask("UNSUBSCRIBE a b", 12)[5:] == [":0", "*3", "$11", "unsubscribe", "$1", "b", ":0"]
        assert line.ask("PUNSUBSCRIBE", 5) == ["*3", "$12", "punsubscribe", "$-1", ":0"]
        assert line.ask("PING") == ["+PONG"]


def test_who_only_reads_is_told_that_a_script_does_not_end(shared_bed: Testbed, node: NodeStatus) -> None:
    with Line(leader_of(shared_bed.status())) as spins, Line(node) as reads, Line(node) as writes:
        spins.connection.sendall(encode((b"EVAL", b"repeat until false", b"0")))
        while (said := reads.ask("GET k")[0]) == "$-1":  # it may come before the script, and before anybody knows
            pass
        assert said.startswith("-BUSY")
        writes.say("INCR rw")
        assert reads.ask("GET k")[0].startswith("-BUSY")
        assert reads.ask("MULTI") == ["+OK"] and reads.ask("GET k")[0].startswith("-BUSY")
        assert reads.ask("EXEC")[0].startswith("-EXECABORT Transaction discarded because of: BUSY")
        assert reads.ask("SCRIPT KILL") == ["+OK"]
        assert spins.hear()[0].startswith("-ERR")
        assert writes.hear()[0].startswith((":1", "-BUSY"))
        assert writes.ask("SET rw 5") == ["+OK"] and reads.ask("GET rw", 2) == ["$1", "5"]


def test_a_script_on_a_connection_of_its_own_costs_nobody_the_leader(shared_bed: Testbed, node: NodeStatus) -> None:
    """What stands on the shared connection meanwhile, questions of the sidecar's among it, the server answers -BUSY."""
    before, spin = shared_bed.status(), encode((b"EVAL", b"repeat until false", b"0"))
    with contextlib.ExitStack() as stack:
        spins, writes, block, reads, kills = (stack.enter_context(Line(node)) for _ in range(5))
        assert writes.ask("SET n 1") == ["+OK"] and block.ask("SELECT 3") == ["+OK"]
        for _ in range(2):
            assert spins.ask("WATCH w") == ["+OK"]
            spins.connection.sendall(spin)
            writes.say("INCR n")
            block.say("MULTI", "SET n 1", "EXEC")
            while not reads.ask("TYPE w")[0].startswith("-BUSY"):
                pass
            assert kills.ask("SCRIPT KILL") == ["+OK"]
            assert spins.hear()[0].startswith("-ERR") and spins.ask("UNWATCH") == ["+OK"]
            assert writes.hear()[0].startswith((":", "-BUSY"))
            assert block.hear()[0] == "+OK"
            queued, done = block.hear()[0], block.hear()[0]
            assert done.startswith(("-EXECABORT", "*1")), (queued, done)
            if done == "*1":
                assert block.hear() == ["+OK"]
            assert writes.ask("SET n 1") == ["+OK"] and block.ask("DBSIZE")[0] in (":0", ":1")
        after = shared_bed.status()
        assert (after.leader, after.term) == (before.leader, before.term), shared_bed.logs()


def test_who_enters_while_a_script_runs_is_in_his_own_database(shared_bed: Testbed, node: NodeStatus) -> None:
    """The server refuses to SELECT meanwhile, and lets him WATCH: he is closed, or in the right one."""
    with Line(node) as spins, Line(node) as enters, Line(node) as other:
        assert other.ask("SET place 0") == ["+OK"]
        assert enters.ask("SELECT 3") == ["+OK"] and enters.ask("SET place 3") == ["+OK"]
        assert spins.ask("WATCH w") == ["+OK"]
        spins.connection.sendall(encode((b"EVAL", b"repeat until false", b"0")))
        while not other.ask("GET place")[0].startswith("-BUSY"):
            other.hear()
        said = enters.ask("WATCH w")
        assert other.ask("SCRIPT KILL") == ["+OK"] and spins.hear()[0].startswith("-ERR")
        assert said == [""] or enters.ask("GET place", 2) == ["$1", "3"], said


def test_writes_around_a_script_are_done_or_not_as_they_are_told(shared_bed: Testbed, node: NodeStatus) -> None:
    """It begins in the middle of them: some are done, and wait for its end, the others are refused."""
    before, count = shared_bed.status(), 300
    sets = [encode((b"SET", b"big:%d" % i, b"v" * 20_000)) for i in range(count)]
    with Line(node) as spins, Line(node) as writes, Line(node) as reads:
        assert spins.ask("WATCH w") == ["+OK"]
        writes.connection.sendall(b"".join(sets[:100]))
        spins.connection.sendall(encode((b"EVAL", b"repeat until false", b"0")))
        sends = threading.Thread(target=writes.connection.sendall, args=(b"".join(sets[100:]),))
        sends.start()
        while not reads.ask("TYPE w")[0].startswith("-BUSY"):
            pass
        assert reads.ask("SCRIPT KILL") == ["+OK"] and spins.hear()[0].startswith("-ERR")
        answers = writes.hear(count)
        sends.join(WAIT_S)
        for i, said in enumerate(answers):
            assert said == "+OK" or said.startswith("-BUSY"), said
            assert reads.ask(f"EXISTS big:{i}") == [":1" if said == "+OK" else ":0"], (i, said)
    after = shared_bed.status()
    assert (after.leader, after.term) == (before.leader, before.term), shared_bed.logs()


# ---- users and settings ----------------------------------------------------------------------------------------------


def test_who_logs_in_at_any_node_is_seen_by_who_monitors(shared_bed: Testbed, node: NodeStatus) -> None:
    """A password is what it is at the leader, and it is told there."""
    with Line(leader_of(shared_bed.status())) as monitor, Line(node) as line:
        assert monitor.ask("MONITOR") == ["+OK"]
        for text in ("AUTH wrong", "HELLO 3 AUTH default wrong", "AUTH default wrong"):
            line.say(text, "PING")
            while line.hear() != ["+PONG"]:
                pass
            while not (seen := monitor.hear()[0].lower()).endswith('"(redacted)"'):
                assert '"auth"' not in seen
            assert '"auth"' in seen and "wrong" not in seen


def test_another_users_rights_are_checked(shared_bed: Testbed, node: NodeStatus) -> None:
    admin = shared_bed.client(node)
    name = f"reader{node.id}"
    assert admin.acl_setuser(name, enabled=True, reset=True, passwords=["+secret"], keys=["mine:*"], commands=["+@all"])
    for backend in shared_bed.backends(shared_bed.status()).values():
        wait_until("every node knows it", lambda b=backend: name in b.acl_users(), WAIT_S)  # type: ignore[misc]
    user = shared_bed.client(node, username=name, password="secret")
    assert user.set("mine:1", "v") and user.get("mine:1") == b"v" and user.acl_whoami() == name
    with pytest.raises(redis.exceptions.NoPermissionError):
        user.set("other", "v")
    with pytest.raises(redis.exceptions.AuthenticationError):
        shared_bed.client(node, username=name, password="wrong").get("mine:1")
    with Line(node) as line:  # who fails to log in stays who it was
        assert line.ask(f"AUTH {name} wrong")[0].startswith("-WRONGPASS")
        assert line.ask("ACL WHOAMI", 2)[1] == "default"
        assert line.ask("CONFIG SET acllog-max-len 128") == ["+OK"]
        assert line.ask(f"AUTH {name} secret") == ["+OK"]
        assert line.ask("CONFIG SET timeout 129")[0].startswith("-"), "the sidecar keeps it"
        assert line.ask("RESET") == ["+RESET"] and line.ask("ACL WHOAMI", 2)[1] == "default"
    assert admin.acl_deluser(name) == 1
    for backend in shared_bed.backends(shared_bed.status()).values():
        wait_until("no node knows it", lambda b=backend: name not in b.acl_users(), WAIT_S)  # type: ignore[misc]


def test_a_setting_travels_to_all_nodes(shared_bed: Testbed, node: NodeStatus) -> None:
    client = shared_bed.client(node)
    value = str(100 + int(node.id))
    assert client.config_set("acllog-max-len", value)
    for backend in shared_bed.backends(shared_bed.status()).values():
        wait_until("it is set", lambda b=backend: setting(b) == value, WAIT_S)  # type: ignore[misc]
    with pytest.raises(redis.ResponseError, match="couldn't be parsed"):
        client.config_set("acllog-max-len", "many")
    assert setting(client) == value
    with pytest.raises(redis.ResponseError, match=r"'replica-read-only'. - can't set immutable"):
        client.config_set("replica-read-only", "no")


def test_a_setting_that_the_sidecar_keeps_may_be_set_to_what_it_is(shared_bed: Testbed, node: NodeStatus) -> None:
    """One node's own, as `masterauth`, stay that node's; what comes with them travels."""
    client, servers = shared_bed.client(node), shared_bed.backends(shared_bed.status())
    before = {i: backend.config_get() for i, backend in servers.items()}
    assert len({config["masterauth"] for config in before.values()}) == len(before)
    names = ("masterauth", "timeout", "appendonly", "repl-backlog-size", "port")
    kept = {name: setting(client, name) for name in names}
    value = str(300 + int(node.id))
    assert client.config_set("acllog-max-len", value, *[word for item in kept.items() for word in item])
    for backend in servers.values():
        wait_until("it is set", lambda b=backend: setting(b) == value, WAIT_S)  # type: ignore[misc]
    with pytest.raises(redis.ResponseError, match=r"'timeout'. - can't set immutable"):
        client.config_set("acllog-max-len", 7, "masterauth", kept["masterauth"], "timeout", 9)
    with pytest.raises(redis.ResponseError, match=r"'maxmemory-clients'. - percentage argument must be less"):
        client.config_set("maxmemory-clients", "200%", "timeout", 9)
    with pytest.raises(redis.ResponseError, match="Unknown option"):
        client.config_set("nonesuch", 1)
    for i, backend in servers.items():
        assert {**backend.config_get(), "acllog-max-len": 0} == {**before[i], "acllog-max-len": 0}
        assert setting(backend) == value


def test_clients_see_themselves_as_without_a_sidecar(shared_bed: Testbed, node: NodeStatus) -> None:
    """With the addresses that they are connected by, among those of other nodes, and none of the sidecar's own."""
    status = shared_bed.status()
    with Line(leader_of(status)) as here, Line(a_follower_of(status)) as there, Line(node) as asks:
        for line in (here, there):
            line.ask("CLIENT SETNAME waits")
            line.say("BLPOP q 0")
        wait_until("both wait", lambda: blocked(shared_bed) == 2, WAIT_S)
        asks.say("SELECT 3", "CLIENT INFO")
        own = dict(word.partition("=")[::2] for word in asks.hear(4)[2].split(" "))
        assert own["addr"] == "{}:{}".format(*asks.connection.getsockname()) and own["laddr"] == node.client
        assert (own["flags"], own["db"], own["cmd"], own["qbuf"]) == ("N", "3", "client|info", "26")
        rows = shared_bed.client(node).client_list()
        waiting = {row["addr"]: row for row in rows if row["name"] == "waits"}
        assert set(waiting) == {"{}:{}".format(*line.connection.getsockname()) for line in (here, there)}
        assert {row["flags"] for row in waiting.values()} == {"b"} and own["id"] in {row["id"] for row in rows}
        assert not any("musidecar" in row["name"] or "S" in row["flags"] for row in rows), rows
        assert asks.ask("HELLO 3", 26)[0] == "%7"
        assert asks.ask("CLIENT INFO")[0].startswith("=") and asks.hear()[0].startswith("txt:id=")
        assert asks.hear() == [""] and asks.ask("CLIENT LIST ID x")[0].startswith("-ERR")


def test_reset_ends_what_has_no_counted_answers(shared_bed: Testbed, node: NodeStatus) -> None:
    client = shared_bed.client(node)
    for opening in ("SUBSCRIBE c", "MONITOR"):
        with Line(node) as line:
            line.say(opening)
            line.hear(1 if opening == "MONITOR" else 6)
            client.publish("c", "m")
            line.say("RESET", "ACL WHOAMI", "CONFIG SET acllog-max-len 130", "INCR n")
            assert b"m" in b"".join(iter(line.lines.readline, b"+RESET\r\n")), opening
            assert line.hear(2) == ["$7", "default"] and line.hear()[0] == "+OK"
            client.publish("c", "m")
            assert line.hear()[0].startswith(":") and line.ask("PING") == ["+PONG"]
    assert client.get("n") == b"2" and not any("O" in row["flags"] for row in client.client_list())


def test_clients_of_a_user_are_killed_and_nobody_else(shared_bed: Testbed, node: NodeStatus) -> None:
    admin = shared_bed.client(node)
    admin.acl_setuser("brief", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all"])
    with Line(node) as line:
        assert line.ask("AUTH brief secret") == ["+OK"]
        assert admin.client_kill_filter(user="brief") == 1
        assert line.lines.read() == b""
    with pytest.raises(redis.ResponseError, match="No such user"):
        admin.client_kill_filter(user="nobody")
    assert admin.set("k", 1) and admin.acl_deluser("brief") == 1


# ---- when the leader goes --------------------------------------------------------------------------------------------


def test_rule_14_clients_with_state_are_closed_when_the_leader_dies(bed: Testbed) -> None:
    """Blocked, subscribed, watching, tracking, monitoring: each ends, none hangs, nothing is done twice."""
    before = bed.status()
    leader, follower = leader_of(before), a_follower_of(before)
    bed.client(leader).set("w", 1)
    bed.client(leader).config_set("acllog-max-len", 77)
    with contextlib.ExitStack() as stack:
        states = ["BLPOP q 0", "SUBSCRIBE c", "WATCH w", "CLIENT TRACKING ON", "MONITOR", "CLIENT GETREDIR"]
        stateful = {text: stack.enter_context(Line(follower)) for text in states}
        for text, line in stateful.items():
            line.say(text)
            if not text.startswith("BLPOP"):
                line.hear()
        open_one = stack.enter_context(Line(follower))
        assert open_one.ask("MULTI") == ["+OK"] and open_one.ask("INCR n") == ["+QUEUED"]
        wait_until("it waits", lambda: blocked(bed, before) == 1, WAIT_S)
        waiting = send(leader, b"BLPOP", b"q", b"0")
        bed.kill(leader)
        after = another_serves(bed, before)
        assert last_words(waiting) == b""
        assert open_one.ask("EXEC", 2) == ["*1", ":1"], "an open transaction is its node's own"
        for text, line in stateful.items():
            with contextlib.suppress(ConnectionResetError):
                assert b"-" not in line.lines.read()[:1], text
        client = bed.client(leader_of(after))
        assert client.rpush("q", "for nobody") == 1 and client.llen("q") == 1, "a dead client was given it"
        assert client.get("n") == b"1" and client.get("w") == b"1"
        assert setting(client) == "77"
    assert_same_data(bed)


def test_a_deposed_leader_whose_server_runs_a_script_follows_again(bed: Testbed) -> None:
    """Nobody could end it there any more: who leads is another."""
    before = bed.status()
    leader = leader_of(before)
    with Line(leader) as spins, Line(leader) as reads:
        assert spins.ask("WATCH w") == ["+OK"]
        spins.connection.sendall(encode((b"EVAL", b"repeat until false", b"0")))
        while not reads.ask("TYPE w")[0].startswith("-BUSY"):
            pass
        stop_processes([leader.pid])
        after = another_serves(bed, before)
        assert bed.client(leader_of(after)).set("k", "v")
        os.kill(leader.pid, signal.SIGCONT)
        wait_until("it follows again", lambda: follows(bed.status(), leader.id), 2 * WAIT_S)
    assert_same_data(bed)


def test_a_long_script_outlives_its_leader_and_is_done_once(bed: Testbed) -> None:
    """Of a client without state; on a connection of its own nobody runs it again, and its client is closed."""
    before = bed.status()
    leader, follower = leader_of(before), a_follower_of(before)
    spin = b"for _ = 1, 5e7 do end return redis.call('INCR', KEYS[1])"  # half a second or more
    looks = redis.Redis(unix_socket_path=leader.backend, socket_timeout=0.1, retry=None)

    def at_it() -> bool:
        try:
            return not looks.ping()
        except redis.TimeoutError:
            return True

    with contextlib.closing(looks), Line(follower) as stateless, Line(follower) as stateful:
        assert stateful.ask("WATCH w") == ["+OK"]
        stateless.connection.sendall(encode((b"EVAL", spin, b"1", b"n")))
        wait_until("the leader's server is at it", at_it, WAIT_S)
        stateful.connection.sendall(encode((b"EVAL", spin, b"1", b"m")))
        bed.kill(leader)
        after = another_serves(bed, before)
        assert stateless.hear() == [":1"]
        with contextlib.suppress(ConnectionResetError):
            assert stateful.lines.read() == b""
    client = bed.client(leader_of(after))
    assert client.get("n") == b"1" and client.get("m") is None
    assert_same_data(bed)


def test_what_was_popped_for_a_blocked_client_is_popped_once(bed: Testbed) -> None:
    """Takers wait at a follower while the leader is killed: each element is with one of them, or still there, or its
    taker was closed with it; never in two places. Who asked in between waits at the next leader."""
    before = bed.status()
    leader, follower = leader_of(before), a_follower_of(before)
    giver = bed.client(before.followers[-1])
    taken: list[bytes] = []
    ended = threading.Semaphore(0)

    def take() -> None:
        connection = bed.client(follower)
        with contextlib.suppress(redis.ConnectionError):
            while (got := connection.blpop("q", 0)[1]) != b"end":
                taken.append(got)
        ended.release()

    takers = [threading.Thread(target=take, daemon=True) for _ in range(4)]
    for taker in takers:
        taker.start()
    given = 0
    wait_until("all wait", lambda: blocked(bed, before) == 4, WAIT_S)
    killer = threading.Timer(0.2, bed.kill, [leader])
    killer.start()
    with contextlib.suppress(redis.ConnectionError):
        while killer.is_alive() or given % 50:
            giver.rpush("q", given)
            given += 1
    after = another_serves(bed, before)
    client = bed.client(leader_of(after))
    client.rpush("q", *[b"end"] * len(takers))  # who was between two requests goes on
    for _ in takers:
        assert ended.acquire(timeout=WAIT_S)
    left = [value for value in client.lrange("q", 0, -1) if value != b"end"]
    assert len(set(taken)) == len(taken) and not set(taken) & set(left)
    assert given - len(taken) - len(left) <= len(takers) + 1, "lost: taken for those who were closed, at most one each"
    assert_same_data(bed)


def test_a_hand_over_does_not_wait_for_blocked_clients(bed: Testbed) -> None:
    before = bed.status()
    with Line(leader_of(before)) as here, Line(a_follower_of(before)) as there:
        for line in (here, there):
            line.say("BLPOP q 0")
        wait_until("both wait", lambda: blocked(bed, before) == 2, WAIT_S)
        assert musidecar("switchover", "--dir", str(bed.dir)).returncode == 0
        another_serves(bed, before)
        for line in (here, there):
            with contextlib.suppress(ConnectionResetError):
                assert line.lines.read() == b""
    assert_same_data(bed)
