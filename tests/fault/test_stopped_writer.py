"""Whole nodes of the test build that stop themselves in the middle of a write or of a change of permissions, exactly
where it hurts, under load (ffi/failpoint.h; docs/proof.md, "A writer that is stopped or killed"). Another node takes
over, the stopped one goes on or is killed there, and every acknowledged write is looked for at every node. What the
fabric alone does then is in test_mid_write.py, 200 times.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
from collections.abc import Iterator

import pytest

from musidecar._ffi import ffi, lib
from musidecar.bench.failover import Run, await_traffic, check_data
from musidecar.testbed import ClusterStatus, NodeStatus, Testbed
from musidecar.workload import Load, spread
from tests.fault import plants
from tests.fault.cluster import another_serves, assert_same_data, follows, last_words, leader_of, send
from tests.fault.log_view import NOOP, LogView, Point, Record, committed_point

CHANCE = random.Random(4)
RATE = 2000.0  # writes a second: the ring must not go round while its records are looked at


@pytest.fixture(scope="module")
def stoppable() -> Iterator[Testbed]:
    """A cluster of the test build whose fence lets a writer live: every node comes back."""
    if not lib.shm_fence_check(ffi.NULL, 0):
        pytest.skip("no userfaultfd here")
    with Testbed(env=plants.environment()) as bed:
        yield bed
    assert bed.leftovers() == []


@contextlib.contextmanager
def loaded(bed: Testbed) -> Iterator[Load]:
    """The cluster under load through all its nodes. Afterwards: all nodes serve, and nothing acknowledged is missing or
    there twice at any of them."""
    before = bed.wait_status("all serve", lambda s: all(n.more["serving"] for n in s.nodes))
    bed.client(leader_of(before)).flushall()
    try:
        with Load(spread([n.client_address for n in before.nodes], 2, rate=RATE)) as load:
            load.wait_for(100)
            yield load
            history = load.finish()
    finally:
        bed.signal_all(signal.SIGCONT)  # also when the test failed half-way
    bed.wait_status("all serve again", lambda s: all(n.more["serving"] for n in s.nodes))
    outcome = Run({}, 0.0, history.acknowledged)
    check_data(bed, bed.status(), history, outcome)
    assert outcome.sound, outcome.troubles


def records(bed: Testbed, node: NodeStatus, point: Point) -> list[Record]:
    """What stands in a node's log behind that point, decided or not."""
    with LogView(bed, node, point) as log:
        return log.read()


def stop_leader(bed: Testbed, place: str, stored: bool) -> bool:
    """The leader stops itself there, another one serves, the leader goes on and follows. What it had proposed is in its
    successors' logs if it was `stored`; from then on nothing in them changes any more. True when it was a record that
    was under way, and not a commit index or a probe, which pass the same places."""
    with loaded(bed) as load:
        status = bed.status()
        leader, successors = leader_of(status), status.followers
        plants.arm(leader.pid, place, CHANCE.randrange(100))
        plants.await_stop(leader.pid)
        point = committed_point(leader)
        proposed = records(bed, leader, point)
        await_traffic(load, [i for i, node in enumerate(status.nodes) if node.id != leader.id], 20)
        then = [records(bed, node, point) for node in successors]
        assert all(NOOP in {record.kind for record in log} for log in then)
        under_way = any(log[: len(proposed)] != proposed for log in then)
        assert not (stored and under_way), "what was stored at a majority is not in the next leader's log"
        plants.resume(leader.pid)
        bed.wait_status("it follows", lambda s: follows(s, leader.id))
        assert [records(bed, node, point)[: len(log)] for node, log in zip(successors, then, strict=True)] == then
    return bool(proposed) if stored else under_way


def stop_under_way(bed: Testbed, place: str, stored: bool = False) -> None:
    for _ in range(8):
        if stop_leader(bed, place, stored):
            return
    raise AssertionError(f"no record was ever under way at {place}")


def test_row_01_the_leader_stops_before_it_announces_a_store(stoppable: Testbed) -> None:
    stop_under_way(stoppable, "before-hazard")


@pytest.mark.parametrize("place", ["before-store", "before-tail"])
def test_row_02_the_leader_stops_with_the_record_half_stored(stoppable: Testbed, place: str) -> None:
    stop_under_way(stoppable, place)


def test_row_03_the_leader_stops_with_the_record_stored_and_not_proved(stoppable: Testbed) -> None:
    """The others cannot know that it was not decided, so it stays."""
    stop_under_way(stoppable, "after-store", stored=True)


def test_row_04_the_leader_stops_with_the_record_done_and_nobody_told(stoppable: Testbed) -> None:
    stop_under_way(stoppable, "settled", stored=True)


@pytest.mark.parametrize("place", ["revoking", "revoked", "granted"])
def test_row_08_an_owner_stops_between_taking_and_giving(stoppable: Testbed, place: str) -> None:
    """The candidate needs its answer, the leader being away: it gets it as soon as the owner goes on."""
    with loaded(stoppable):
        before = stoppable.status()
        leader, owner = leader_of(before), before.followers[-1]
        plants.arm(owner.pid, place)
        stoppable.stop(leader)
        plants.await_stop(owner.pid)
        assert stoppable.status().leader is None
        plants.resume(owner.pid)
        another_serves(stoppable, before)
        stoppable.cont(leader)


def test_row_10_the_new_leader_stops_with_its_permissions(stoppable: Testbed) -> None:
    """The old one goes on meanwhile: whoever leads then, the stopped one's permissions are worth nothing."""
    with loaded(stoppable) as load:
        before = stoppable.status()
        leader, candidate = leader_of(before), before.followers[0]
        others = [i for i, node in enumerate(before.nodes) if node.id != candidate.id]
        plants.arm(candidate.pid, "accepted")
        stoppable.stop(leader)
        plants.await_stop(candidate.pid)
        stoppable.cont(leader)
        await_traffic(load, others, 20)
        point = committed_point(leader)
        then = [records(stoppable, before.nodes[i], point) for i in others]
        plants.resume(candidate.pid)
        status = stoppable.wait_status("it follows", lambda s: follows(s, candidate.id))
        assert status.term > before.term and status.leader != candidate.id
        now = [records(stoppable, before.nodes[i], point) for i in others]
        assert [log[: len(was)] for log, was in zip(now, then, strict=True)] == then


def stop_half_stored(bed: Testbed) -> tuple[ClusterStatus, socket.socket]:
    """Stops the leader with the record of a SET half stored in one follower's log. Returns how things stood before, and
    where the request came from. The others take over in a few milliseconds, and write over it: if one of them did so
    before that was seen, all over again."""
    for _ in range(8):
        before = bed.wait_status("all serve", lambda s: all(n.more["serving"] for n in s.nodes))
        leader = leader_of(before)
        assert_same_data(bed, before)
        with contextlib.ExitStack() as views:
            logs = [views.enter_context(LogView(bed, node)) for node in before.followers]
            for log in logs:
                log.read()
            plants.arm(leader.pid, "before-tail")
            connection = send(leader, b"SET", b"torn", b"x" * 10_000)
            plants.await_stop(leader.pid)
            if [log.begun() for log in logs].count(True) == 1:
                return before, connection
        connection.close()
        plants.resume(leader.pid)
        another_serves(bed, before)
        bed.client(leader).delete("torn")
    raise AssertionError("the others always took over before the logs could be looked at")


def test_row_09_the_leader_is_killed_in_the_middle_of_a_copy() -> None:
    with Testbed(env=plants.environment()) as bed:
        client = bed.client(leader_of(bed.status()))
        for _ in range(100):
            client.incr("counter")
        before, connection = stop_half_stored(bed)
        with contextlib.closing(connection):
            os.kill(leader_of(before).pid, signal.SIGKILL)
            assert last_words(connection) == b""
        after = another_serves(bed, before)
        client = bed.client(leader_of(after))
        assert client.get("counter") == b"100" and client.get("torn") is None
        assert client.incr("counter") == 101
        assert_same_data(bed)
