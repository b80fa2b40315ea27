"""The rules of the Redis path that only real processes show, by their numbers (docs/architecture.md lists them)."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest
import redis

from musidecar.testbed import Testbed, wait_until
from musidecar.workload import encode
from tests.fault.cluster import a_follower_of, another_serves, assert_same_data, follows, leader_of, send


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_rule_01_scripts_are_known_to_the_next_leader(bed: Testbed) -> None:
    before = bed.status()
    leader = bed.client(leader_of(before))
    loaded = leader.script_load("return {KEYS[1], 'loaded'}")
    seen = "return redis.call('incr', KEYS[1])"
    assert leader.eval(seen, 1, "counter") == 1
    bed.kill(leader_of(before))
    after = another_serves(bed, before)
    client = bed.client(leader_of(after))
    assert client.evalsha(loaded, 1, "key") == [b"key", b"loaded"]
    assert client.evalsha(bed.client(leader_of(after)).script_load(seen), 1, "counter") == 2
    assert client.script_exists(loaded) == [True]


def test_rule_01_scripts_that_only_an_eval_named_are_known_too(bed: Testbed) -> None:
    import hashlib

    before = bed.status()
    body = "return 'from an EVAL'"
    assert bed.client(a_follower_of(before)).eval(body, 0) == b"from an EVAL"
    bed.kill(leader_of(before))
    after = another_serves(bed, before)
    assert bed.client(leader_of(after)).evalsha(hashlib.sha1(body.encode()).hexdigest(), 0) == b"from an EVAL"


def test_rule_04_requests_of_other_databases_and_protocols_do_not_mix(bed: Testbed) -> None:
    status = bed.status()
    clients = [
        redis.Redis(*node.client_address, db=database, protocol=protocol)
        for node in status.nodes for database in (0, 3, 15) for protocol in (2, 3)
    ]  # fmt: skip

    def key_of(client: redis.Redis) -> str:
        where = client.connection_pool.connection_kwargs
        return f"h-{where['port']}-{where['protocol']}"

    def work(client: redis.Redis) -> None:
        for i in range(300):
            client.hset(key_of(client), "n", i)
            want = {b"n": str(i).encode()}
            assert client.hgetall(key_of(client)) == want, key_of(client)  # a map in RESP3, an array in RESP2
        assert client.dbsize() == 6

    failures: list[BaseException] = []

    def guarded(client: redis.Redis) -> None:
        try:
            work(client)
        except BaseException as error:
            failures.append(error)

    for client in clients:
        client.hset(key_of(client), "n", -1)
    threads = [threading.Thread(target=guarded, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures, failures[0]
    assert_same_data(bed)


def test_rule_04_a_transaction_that_selects_leaves_the_client_there(bed: Testbed) -> None:
    node = a_follower_of(bed.status())
    with contextlib.closing(socket.create_connection(node.client_address, timeout=10)) as connection:
        connection.sendall(b"MULTI\r\nSET a 1\r\nSELECT 5\r\nSET a 2\r\nEXEC\r\nGET a\r\nSELECT 0\r\nGET a\r\n")
        wanted = b"+OK\r\n" + b"+QUEUED\r\n" * 3 + b"*3\r\n+OK\r\n+OK\r\n+OK\r\n$1\r\n2\r\n+OK\r\n$1\r\n1\r\n"
        got = b""
        while len(got) < len(wanted):
            data = connection.recv(4096)
            assert data, got
            got += data
        assert got == wanted


def test_rule_07_a_leader_that_loses_its_shared_connection_steps_down(bed: Testbed) -> None:
    before = bed.status()
    client = bed.client(leader_of(before))
    assert client.set("before", 1)
    with contextlib.suppress(redis.ConnectionError):
        bed.backend(leader_of(before)).execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    after = another_serves(bed, before)
    assert bed.client(leader_of(after)).get("before") == b"1"
    assert bed.client(leader_of(after)).set("after", 2)
    bed.wait_status("the deposed node follows again", lambda s: follows(s, str(before.leader)))
    assert_same_data(bed)


def test_rule_08_a_large_value_beyond_the_output_limit_is_in_the_stream(bed: Testbed) -> None:
    status = bed.status()
    value = b"x" * (20 << 20)
    assert bed.client(leader_of(status)).set("large", value)
    assert_same_data(bed)
    assert bed.status().term == status.term


def test_rule_10_an_unknown_outcome_closes_and_is_no_error(bed: Testbed) -> None:
    before = bed.status()
    follower = a_follower_of(before)
    bed.stop(leader_of(before))
    connection = send(follower, b"SET", b"k", b"v")
    answer = connection.recv(100)
    assert answer in (b"", b"+OK\r\n")  # never "-ERR ... not done"
    after = another_serves(bed, before)
    bed.cont(leader_of(before))
    if answer:
        assert bed.client(leader_of(after)).get("k") == b"v"


def test_rule_11_a_deep_pipeline_of_large_answers_costs_bounded_memory(bed: Testbed) -> None:
    status = bed.status()
    leader = leader_of(status)
    bed.client(leader).set("m", b"m" * (1 << 20))
    resident = resident_bytes(leader.pid)
    connection = socket.create_connection(leader.client_address, timeout=30)
    connection.setblocking(False)
    requests = b"*2\r\n$3\r\nGET\r\n$1\r\nm\r\n" * 10_000
    with contextlib.suppress(BlockingIOError):
        while requests:
            requests = requests[connection.send(requests) :]
    other = bed.client(leader)
    for _ in range(300):
        assert other.get("absent") is None
    assert resident_bytes(leader.pid) - resident < 400 << 20
    connection.close()


@pytest.mark.timeout(90)
def test_rule_13_a_request_that_hangs_redis_does_not_walk_through_every_node(bed: Testbed) -> None:
    before = bed.status()
    assert bed.client(leader_of(before)).set("kept", 1)
    with contextlib.closing(send(leader_of(before), b"EVAL", b"while true do end", b"0")):
        backend = bed.backend(leader_of(before))

        def hangs() -> bool:
            try:
                return not backend.ping()
            except redis.BusyLoadingError:
                return False
            except redis.ResponseError as error:
                return "BUSY" in str(error)

        wait_until("the script runs", hangs, 20)
        bed.kill(leader_of(before))
    after = another_serves(bed, before, 40.0)
    client = bed.client(leader_of(after))
    assert client.get("kept") == b"1"
    assert client.set("again", 1)


def test_rule_15_a_deposed_leaders_data_is_replaced_where_it_went_too_far(bed: Testbed) -> None:
    before = bed.status()
    leader = leader_of(before)
    assert bed.client(leader).set("kept", 1)
    bed.stop(leader)
    after = another_serves(bed, before)
    assert bed.client(leader_of(after)).set("new", 2)
    bed.backend(leader).set("astray", 3)  # what the log knows nothing of
    bed.cont(leader)
    bed.wait_status("the deposed node follows", lambda s: follows(s, leader.id))
    assert bed.backend(leader).get("astray") is None
    assert bed.backend(leader).get("new") == b"2"
    assert_same_data(bed)


def test_rule_18_a_low_id_that_comes_back_does_not_steal(bed: Testbed) -> None:
    before = bed.status()
    leader = leader_of(before)
    bed.stop(leader)
    after = another_serves(bed, before)
    bed.cont(leader)
    status = bed.wait_status("the node is back", lambda s: follows(s, leader.id))
    assert int(leader.id) < int(status.leader or 0)
    assert (status.leader, status.term) == (after.leader, after.term)


def test_rule_05_another_users_rights_are_not_widened(bed: Testbed) -> None:
    """A restricted user is not let in with the rights of the sidecar's own connection, through no node."""
    status = bed.status()
    leader = leader_of(status)
    bed.client(leader).execute_command("ACL", "SETUSER", "reader", "on", ">word", "~*", "+get", "+hello")
    bed.client(leader).set("k", "v")
    for node in status.nodes:
        for words in ((b"AUTH", b"reader", b"word"), (b"HELLO", b"2", b"AUTH", b"reader", b"word")):
            with contextlib.closing(send(node, *words)) as connection:
                assert not connection.recv(1000).startswith(b"-")
                connection.sendall(encode([b"SET", b"k", b"other"]))
                assert connection.recv(200).startswith(b"-NOPERM")
                connection.sendall(encode([b"GET", b"k"]))
                assert connection.recv(200) == b"$1\r\nv\r\n"
