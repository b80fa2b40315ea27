"""Clock, chance, scripts, streams, functions: at equal offsets all replicas hold the same, to the last millisecond.
And the sidecars hold no more than is needed to get them there."""

from __future__ import annotations

import threading
from pathlib import Path

import redis

from musidecar.bench.failover import new_leader
from musidecar.testbed import ClusterStatus, Testbed, wait_until
from tests.fault.cluster import assert_same_data, leader_of
from tests.fault.mixed import Mixed

SECONDS = 5.0


def _load_through_all(bed: Testbed, status: ClusterStatus, seeds: int, seconds: float) -> list[Mixed]:
    clients = [Mixed(bed.client(n), seeds + i) for i, n in enumerate(status.alive)]
    for mixed in clients:
        mixed.prepare()
    failures: list[BaseException] = []

    def drive(mixed: Mixed) -> None:
        try:
            mixed.run(seconds)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=drive, args=(m,)) for m in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    for mixed in clients:
        assert mixed.steps > 10 and not mixed.errors, mixed.errors
    return clients


def test_all_nodes_hold_the_same(bed: Testbed) -> None:
    status = bed.status()
    _load_through_all(bed, status, 1, SECONDS)
    assert assert_same_data(bed, status) > 20


def test_a_new_leader_goes_on_from_the_same_data(bed: Testbed) -> None:
    before = bed.status()
    leader = leader_of(before)
    digest = bed.client(leader).script_load("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    _load_through_all(bed, before, 1, SECONDS / 2)
    assert_same_data(bed, before)
    bed.kill(leader)
    after = new_leader(bed, leader.id, before.term)
    _load_through_all(bed, after, 11, SECONDS / 2)
    client = bed.client(leader_of(after))
    assert client.evalsha(digest, 1, "counted", 5) == 5  # the script's body travelled, though Redis does not send it
    assert client.execute_command("SELECT", 3) and client.get("db3:1") == b"there"
    assert_same_data(bed, bed.status())


def test_rule_02_keys_expire_everywhere_and_only_by_the_leaders_clock(bed: Testbed) -> None:
    status = bed.status()
    client = bed.client(leader_of(status))
    with client.pipeline(transaction=False) as pipe:
        for i in range(2000):
            pipe.set(f"short:{i}", i, px=1 + i % 20)
        pipe.set("stays", 1)
        pipe.execute()
    # Expired for every reader at once, through any node; gone from every backend once the leader's effects say so.
    readers = [bed.client(n) for n in status.alive]
    backends = bed.backends(status)
    bed.wait_status("all short keys are gone everywhere", lambda _: all(b.dbsize() == 1 for b in backends.values()))
    for reader in readers:
        assert reader.mget([f"short:{i}" for i in range(0, 2000, 97)]) == [None] * 21
    assert_same_data(bed, status)


def test_writing_to_a_followers_redis_directly_is_refused(bed: Testbed) -> None:
    status = bed.status()
    for follower in status.followers:
        try:
            bed.backend(follower).set("x", 1)
        except redis.exceptions.ReadOnlyError:
            continue
        raise AssertionError(f"node {follower.id}'s Redis took a write past its sidecar")
    bed.backend(leader_of(status)).set("direct", "logged like any effect")
    bed.client(status.followers[0]).set("after", 1)
    assert_same_data(bed, status)
    assert all(b.get("direct") == b"logged like any effect" for b in bed.backends(status).values())


def _peak_kib(pid: int) -> int:
    """The largest resident size since it was last set back, KiB."""
    words = Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()
    return int(words[0])


def test_what_a_backend_has_applied_is_not_kept(bed: Testbed) -> None:
    """A replica says by itself only once a second how far it is: all that was fed meanwhile would be kept for it."""
    status = bed.status()
    client = bed.client(leader_of(status))

    backends = bed.backends(status)

    def offset(node: str) -> int:
        return int(backends[node].info("replication")["master_repl_offset"])

    def write(mib: int) -> None:
        for _ in range(0, mib, 8):
            with client.pipeline(transaction=False) as pipe:
                for i in range(512):
                    pipe.set(f"k{i}", b"v" * 16384)
                pipe.execute()
            end = offset(status.leader)  # who is slower on a busy host may lag behind: not here
            wait_until("the followers have it", lambda: all(offset(n.id) >= end for n in status.followers), 30.0)  # noqa: B023

    write(64)  # every page of the rings has been touched
    for node in status.followers:
        Path(f"/proc/{node.pid}/clear_refs").write_text("5")
    before = {node.id: _peak_kib(node.pid) for node in status.followers}
    write(128)
    grown = {node.id: _peak_kib(node.pid) - before[node.id] for node in status.followers}
    assert max(grown.values()) < 48 << 10, grown
