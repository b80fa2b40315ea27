"""CONFIG SET and ACL changes in a transaction, and by another user than everybody's: what the leader's server did every
node has before the answer goes, in whatever order connections did it; what it did not do nobody does."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
import redis

from musidecar.testbed import NodeStatus, Testbed, wait_until
from musidecar.workload import encode
from tests.fault.cluster import a_follower_of, another_serves, assert_same_data, leader_of
from tests.fault.test_own import WAIT_S, Line, setting

ADMIN = "operator"


def servers(bed: Testbed) -> list[redis.Redis]:
    """All nodes' servers, beside their sidecars."""
    return list(bed.backends(bed.status()).values())


def assert_everywhere(bed: Testbed, value: str, name: str = "acllog-max-len") -> None:
    """All servers have it; the leader's at once."""
    assert setting(bed.backend(leader_of(bed.status())), name) == value
    for server in servers(bed):
        wait_until(f"{name} is {value}", lambda s=server: setting(s, name) == value, WAIT_S)  # type: ignore[misc]


def users(server: redis.Redis) -> list[list[str]]:
    """Their rules, in an order of their own: a server lists commands as its table has them."""
    return sorted(sorted(line.split()) for line in server.acl_list())


def equal_users(bed: Testbed) -> bool:
    first, *others = [users(server) for server in servers(bed)]
    return all(other == first for other in others)


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "shared_bed" in request.fixturenames:
        bed: Testbed = request.getfixturevalue("shared_bed")
        client = bed.client(leader_of(bed.status()))
        client.flushall()
        client.acl_deluser(ADMIN, "reader", "second", "third")
        assert_same_data(bed)


@contextlib.contextmanager
def another_user(bed: Testbed, node: NodeStatus, *commands: str) -> Iterator[Line]:
    """A client that is logged in as one."""
    rights = ["+@all", *commands]
    bed.client(node).acl_setuser(ADMIN, enabled=True, reset=True, passwords=["+secret"], keys=["*"], commands=rights)
    with Line(node) as line:
        assert line.ask(f"AUTH {ADMIN} secret") == ["+OK"]
        yield line


# ---- transactions ----------------------------------------------------------------------------------------------------


def test_a_transaction_changes_settings_and_users(shared_bed: Testbed, node: NodeStatus) -> None:
    value = str(500 + int(node.id))
    with Line(node) as line:
        for text in (
            "MULTI", "SET k 1", f"CONFIG SET acllog-max-len {value} hz 11", "CONFIG SET maxmemory bla",
            "ACL SETUSER reader on >pw ~a:* (+get ~b:*) +set", "ACL DELUSER nobody", "INCR k",
        ):  # fmt: skip
            assert line.ask(text) == ["+OK" if text == "MULTI" else "+QUEUED"]
        answers = line.ask("EXEC", 7)
        assert answers[:3] == ["*6", "+OK", "+OK"] and answers[3].startswith("-ERR CONFIG SET failed")
        assert answers[4:] == ["+OK", ":0", ":2"]
        assert_everywhere(shared_bed, value)
        assert_everywhere(shared_bed, "11", "hz")
        wait_until("all know the user", lambda: equal_users(shared_bed), WAIT_S)
        assert len(shared_bed.client(node).acl_getuser("reader")["selectors"]) == 1
        line.say("MULTI", "ACL DELUSER reader", "PING", "EXEC", "GET k")
        assert line.hear(8) == ["+OK", "+QUEUED", "+QUEUED", "*2", ":1", "+PONG", "$1", "2"]
    wait_until("nobody knows it", lambda: not any("reader" in s.acl_users() for s in servers(shared_bed)), WAIT_S)


def test_what_a_transaction_did_not_do_nobody_does(shared_bed: Testbed, node: NodeStatus) -> None:
    """A follower's server is given another value beside the log: what is logged for nothing would overwrite it."""
    client = shared_bed.client(node)
    client.config_set("acllog-max-len", 600)
    assert_everywhere(shared_bed, "600")
    odd = shared_bed.backend(a_follower_of(shared_bed.status()))
    odd.config_set("acllog-max-len", 601)
    with Line(node) as line:
        line.say("MULTI", "CONFIG SET acllog-max-len many", "CONFIG SET hz 10", "EXEC")
        assert line.hear(4) == ["+OK", "+QUEUED", "+QUEUED", "*2"]
        assert line.hear()[0].startswith("-ERR") and line.hear() == ["+OK"]
        line.say("MULTI", "CONFIG SET acllog-max-len 602", "DISCARD", "MULTI", "PING", "CONFIG SET hz 10", "EXEC")
        assert line.hear(9) == ["+OK", "+QUEUED", "+OK", "+OK", "+QUEUED", "+QUEUED", "*2", "+PONG", "+OK"]
        assert line.ask("WATCH w") == ["+OK"]
        client.set("w", 1)
        line.say("MULTI", "CONFIG SET acllog-max-len 603", "EXEC")
        assert line.hear(3) == ["+OK", "+QUEUED", "*-1"]
        line.say("MULTI", "CONFIG SET acllog-max-len 604", "NONESUCH", "EXEC")
        assert line.hear(2) == ["+OK", "+QUEUED"] and line.hear()[0].startswith("-ERR unknown")
        assert line.hear()[0].startswith("-EXECABORT")
        line.say("MULTI", "CONFIG SET acllog-max-len 605")
        assert line.hear(2) == ["+OK", "+QUEUED"]
    client.config_set("hz", 12)
    assert_everywhere(shared_bed, "12", "hz")  # behind all that would have been logged
    assert setting(client) == "600" and setting(odd) == "601"


def test_of_resp3_and_pipelined(shared_bed: Testbed, node: NodeStatus) -> None:
    shared_bed.client(node).config_set("hz", 10)
    with Line(node) as line:
        assert line.ask("HELLO 3", 26)[0] == "%7"
        line.say(
            "WATCH w", "MULTI", "HGETALL h", "CONFIG SET acllog-max-len 610", "EXEC", "MULTI", "CONFIG GET hz",
            "CONFIG SET acllog-max-len 611 hz 10", "EXEC", "CONFIG GET acllog-max-len", "PING",
        )  # fmt: skip
        assert line.hear(7) == ["+OK", "+OK", "+QUEUED", "+QUEUED", "*2", "%0", "+OK"]
        assert line.hear(3) == ["+OK", "+QUEUED", "+QUEUED"]
        assert line.hear(7) == ["*2", "%1", "$2", "hz", "$2", "10", "+OK"]
        assert line.hear(6) == ["%1", "$14", "acllog-max-len", "$3", "611", "+PONG"]
        assert_everywhere(shared_bed, "611")


def test_parameters_with_a_value_of_the_sidecars_too(shared_bed: Testbed, node: NodeStatus) -> None:
    """What a client reads and what the server has differ: see config_kept.h."""
    kept = [setting(server, "masterauth") for server in servers(shared_bed)]
    client = shared_bed.client(node)
    with Line(node) as line:
        line.say("MULTI", "CONFIG SET masterauth mine acllog-max-len 630 repl-backlog-size 1mb", "EXEC")
        assert line.hear(4) == ["+OK", "+QUEUED", "*1", "+OK"]
    assert_everywhere(shared_bed, "630")
    assert setting(client, "masterauth") == "mine" and setting(client, "repl-backlog-size") == str(1 << 20)
    assert [setting(server, "masterauth") for server in servers(shared_bed)] == kept
    assert {setting(server, "repl-backlog-size") for server in servers(shared_bed)} == {str(64 << 20)}
    client.config_set("masterauth", "")


# ---- another user ----------------------------------------------------------------------------------------------------


def test_another_user_changes_settings_and_users(shared_bed: Testbed, node: NodeStatus) -> None:
    with another_user(shared_bed, node) as line:
        value = str(520 + int(node.id))
        line.say(f"CONFIG SET acllog-max-len {value}", "CONFIG SET hz x")
        line.say("ACL SETUSER second on nopass ~* +@read", "ECHO on")
        assert line.hear() == ["+OK"] and line.hear()[0].startswith("-ERR CONFIG SET failed")
        assert line.hear(3) == ["+OK", "$2", "on"]
        assert_everywhere(shared_bed, value)
        wait_until("all know the user", lambda: equal_users(shared_bed), WAIT_S)
        assert line.ask("ACL SETUSER second >pw -@all +get") == ["+OK"]
        assert line.ask("ACL SETUSER second resetpass >pw <pw") == ["+OK"], "half of it undoes the other"
        wait_until("all know it as it is", lambda: equal_users(shared_bed), WAIT_S)
        assert shared_bed.client(node).acl_getuser("second")["commands"] == ["+get"]
        line.say("MULTI", f"CONFIG SET acllog-max-len {value}0", "ACL SETUSER third", "EXEC")
        line.say("ACL DELUSER second third x")
        assert line.hear(7) == ["+OK", "+QUEUED", "+QUEUED", "*2", "+OK", "+OK", ":2"]
        assert_everywhere(shared_bed, f"{value}0")
        wait_until("they are gone", lambda: all(len(users(s)) == 2 for s in servers(shared_bed)), WAIT_S)
        assert line.ask("CONFIG SET timeout 9")[0].startswith("-")  # the sidecar keeps it


def test_a_user_without_the_right_changes_nothing(shared_bed: Testbed, node: NodeStatus) -> None:
    admin = shared_bed.client(node)
    admin.config_set("acllog-max-len", 620)
    with another_user(shared_bed, node, "-config", "-acl") as line:
        assert line.ask("CONFIG SET acllog-max-len 621")[0].startswith("-NOPERM")
        assert line.ask("ACL SETUSER operator allcommands")[0].startswith("-NOPERM")
        assert line.ask("MULTI") == ["+OK"] and line.ask("CONFIG SET acllog-max-len 621")[0].startswith("-NOPERM")
        assert line.ask("EXEC")[0].startswith("-EXECABORT")
    assert_everywhere(shared_bed, "620")
    admin.config_set("acllog-max-len", 622)  # behind all that would have been logged
    assert_everywhere(shared_bed, "622")
    assert equal_users(shared_bed), [users(server) for server in servers(shared_bed)]


# ---- orders and ends -------------------------------------------------------------------------------------------------


def test_whatever_the_order_all_nodes_have_the_same_in_the_end(shared_bed: Testbed) -> None:
    """Some in transactions, some alone, of all nodes, as fast as they can."""
    nodes, rounds = shared_bed.status().nodes, 60

    def change(node: NodeStatus, number: int) -> None:
        with Line(node) as line:
            for i in range(rounds):
                value = 1000 * number + i
                texts = [f"CONFIG SET acllog-max-len {value}", f"ACL SETUSER reader ~{number}:{i}"]
                if number % 2:
                    line.say("MULTI", *texts, "EXEC")
                    assert line.hear(6) == ["+OK", "+QUEUED", "+QUEUED", "*2", "+OK", "+OK"]
                else:
                    line.say(*texts)
                    assert line.hear(2) == ["+OK", "+OK"]

    threads = [threading.Thread(target=change, args=(nodes[n % 3], n)) for n in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    leads = shared_bed.backend(leader_of(shared_bed.status()))
    assert_everywhere(shared_bed, setting(leads))
    assert int(setting(leads)) % 1000 == rounds - 1
    wait_until("all know the same users", lambda: equal_users(shared_bed), WAIT_S)
    assert len(leads.acl_getuser("reader")["keys"]) == 6 * rounds


def test_a_client_that_does_not_wait_for_the_answer(shared_bed: Testbed, node: NodeStatus) -> None:
    """Was it done at the leader? Then everywhere."""
    for number in range(40):
        line = Line(node)
        if number % 2:
            line.ask("WATCH w")
        line.say("MULTI", "PING", f"CONFIG SET acllog-max-len {700 + number}", "EXEC")
        if number % 4 > 1:
            line.hear()
        line.lines.close()
        line.connection.close()
    assert shared_bed.client(node).config_set("hz", 10)  # behind them all, at the leader as in the log
    with another_user(shared_bed, node) as line:
        line.say("CONFIG SET acllog-max-len 740", "CONFIG SET acllog-max-len 741")
    leads = shared_bed.backend(leader_of(shared_bed.status()))
    wait_until(
        "all have the same",
        lambda: len({setting(server) for server in servers(shared_bed)}) == 1 and setting(leads) in ("740", "741"),
        WAIT_S,
    )


def test_one_whose_connection_the_server_closes(shared_bed: Testbed, node: NodeStatus) -> None:
    with another_user(shared_bed, node) as line:
        number = line.ask("CLIENT ID")[0][1:]
        line.say("MULTI", "CONFIG SET acllog-max-len 751", f"CLIENT KILL ID {number} SKIPME no", "EXEC")
        assert line.hear(3) == ["+OK", "+QUEUED", "+QUEUED"]
        line.lines.read()
    assert_everywhere(shared_bed, "751")


def test_the_next_leader_has_what_was_answered(bed: Testbed) -> None:
    before = bed.status()
    leader, follower = leader_of(before), a_follower_of(before)
    with Line(follower) as line, another_user(bed, leader) as other:
        line.say("MULTI", "INCR n", "CONFIG SET acllog-max-len 801", "ACL SETUSER reader on nopass ~x:* +get", "EXEC")
        assert line.hear(8)[4:] == ["*3", ":1", "+OK", "+OK"]
        assert other.ask("CONFIG SET hz 13") == ["+OK"]
        bed.kill(leader)
        another_serves(bed, before)
        with contextlib.suppress(ConnectionResetError):
            assert other.lines.read() == b""
    assert_everywhere(bed, "801")
    assert_everywhere(bed, "13", "hz")
    client = bed.client(follower)
    assert client.get("n") == b"1" and sorted(client.acl_users()) == ["default", ADMIN, "reader"]
    with Line(follower) as line:
        line.connection.sendall(encode((b"AUTH", ADMIN.encode(), b"secret")))
        assert line.hear() == ["+OK"]
    assert_same_data(bed)
