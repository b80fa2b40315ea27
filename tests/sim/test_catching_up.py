"""Traps 15 to 19: the ring's reuse, catching up, slow and late followers. See test_traps.py."""

from __future__ import annotations

from typing import Any

import pytest

from musidecar._ffi import ffi, lib
from tests.sim.cluster import Cluster

# -- 15 to 19: recycling, catching up, slow and late ones


def fill(c: Cluster, leader: Any, count: int, size: int = 100) -> list[bytes]:
    """Proposes until `count` records were taken, driving the others meanwhile."""
    sent: list[bytes] = []
    until = c.now_us + 2_000_000
    while len(sent) < count:
        payload = b"%d " % len(sent) + b"f" * size
        if leader.propose(payload) > 0:
            sent.append(payload)
        c.step(20)
        assert c.now_us < until and leader.leads, c.describe()
    return sent


def test_trap_15_a_stopped_follower_is_dropped_before_the_ring_is_full() -> None:
    with Cluster(3, ring_bytes=8192, piece_bytes=512) as c:
        leader = c.all_confirmed()
        c.stop(2)
        sent = fill(c, leader, 300)
        assert leader.confirmed == {0, 1}
        c.converge()
        assert c[1].payloads == sent
        c.go_on(2)
        c.run_until(lambda: c[2].damage == lib.REPLICA_LAPPED)
        c[2].install(leader)
        c.run_until(lambda: leader.confirmed == {0, 1, 2})
        c.commit(leader, b"all three")
        c.converge()
        assert c[2].payloads[-1] == b"all three"


def test_trap_15_without_a_majority_the_leader_waits_rather_than_overwrite() -> None:
    ring = 1 << 15
    with Cluster(3, ring_bytes=ring, piece_bytes=512) as c:
        leader = c.all_confirmed()
        c.kill(2)
        c.run(5_000)
        c[1].applies = False  # it lives, but nothing gets out of its ring
        taken = 0
        for _ in range(2_000):
            taken += leader.propose(b"x" * 100) > 0
            c.step(20)
        assert leader.leads and leader.confirmed == {0, 1}
        assert leader.propose(b"x" * 100) == lib.REPLICA_FULL
        assert taken <= ring // lib.record_span(100)
        assert lib.replica_free_bytes(leader.replica) >= ring // 4  # commands leave the last quarter
        assert leader.propose(b"x" * 100, kind=lib.RECORD_EFFECT) > 0
        handed = list(c[1].delivered)
        c[1].applies = True
        c[1].apply()
        c.commit(leader, b"goes on")
        c.converge()
        assert c[1].delivered[: len(handed)] == handed and c[1].payloads[-1] == b"goes on"


def test_trap_15_leader_killed_while_laps_go_round() -> None:
    for seed in range(6):
        with Cluster(3, ring_bytes=4096, piece_bytes=256, delay_us=(1, 40), part_bytes=64, seed=seed) as c:
            leader = c.all_confirmed()
            sent = fill(c, leader, 60 + 7 * seed)
            c.kill(0, told=bool(seed % 2))
            new = c.leader()
            c.commit(new, b"after")
            c.converge()
            assert c[1].payloads == c[2].payloads
            kept = c[1].payloads[:-1]
            assert kept == sent[: len(kept)] and c[1].payloads[-1] == b"after"
            assert len(kept) >= leader.commit - 1


def test_trap_16_a_stale_candidate_copies_first_and_proposes_then() -> None:
    with Cluster(3, ring_bytes=1 << 16, delay_us=(1, 10)) as c:
        leader = c.all_confirmed()
        c.isolate(1)
        c.tell_down(1)
        c.run(6_000)
        sent = fill(c, leader, 100, size=300)
        c.run_until(lambda: c[2].commit == leader.commit)
        c.kill(0)
        c.rejoin(1)
        lib.replica_set_eligible(c[2].replica, False)  # the one that has it all may not lead
        new = c.leader()
        assert new.number == 1
        c.commit(new, b"after")
        c.converge()
        assert c[1].payloads == c[2].payloads == [*sent, b"after"]


def test_trap_16_a_candidate_that_the_ring_left_behind_does_not_lead() -> None:
    with Cluster(3, ring_bytes=8192, piece_bytes=512, delay_us=(1, 10)) as c:
        leader = c.all_confirmed()
        c.isolate(1)
        c.tell_down(1)
        fill(c, leader, 200)
        c.run_until(lambda: c[2].commit == leader.commit)
        c.kill(0)
        c.rejoin(1)
        c.run_until(lambda: c[1].damage == lib.REPLICA_LAPPED)
        c.run(20_000)
        assert not any(n.leads for n in c.alive)  # the one that could lead has no follower that could follow
        assert lib.replica_source(c[1].replica) == 2
        c[1].install(c[2])  # from who is most advanced, leader or not
        new = c.leader()
        c.run_until(lambda: new.confirmed == {1, 2})
        c.commit(new, b"after")
        c.converge()


def test_trap_16_a_late_follower_is_brought_up_to_date_while_the_leader_goes_on() -> None:
    with Cluster(3, ring_bytes=1 << 16, delay_us=(1, 30), part_bytes=256) as c:
        leader = c.all_confirmed()
        c.isolate(2)
        c.tell_down(2)
        sent = fill(c, leader, 60, size=400)
        c.rejoin(2)
        sent += fill(c, leader, 60, size=10)
        c.run_until(lambda: leader.confirmed == {0, 1, 2})
        c.converge()
        assert c[2].payloads == sent


def test_trap_16_left_behind_is_nobody_once_those_ahead_are_gone() -> None:
    """Three hold decided records without knowing that they are; one that installed a snapshot of what is behind them
    knows. While it lives they must think that the log has left them behind; when it dies the log is theirs."""
    with Cluster(5) as c:
        leader = c.all_confirmed()
        c.commit(leader, b"known to all")
        c.converge()
        c.isolate(3)
        c.run_until(lambda: leader.confirmed == {0, 1, 2, 4})
        for i in range(3):
            index = leader.propose(b"decided %d" % i)
        c.advance(1)
        leader.poll()
        assert leader.commit == index  # and nobody was told
        c[3].install(leader)
        c.kill(0)
        c.rejoin(3)
        c.run_until(lambda: all(c[n].damage == lib.REPLICA_LAPPED for n in (1, 2, 4)))
        c.kill(3)
        c.leader()
        c.converge()
        assert c[1].payloads == [b"known to all", *(b"decided %d" % i for i in range(3))]


def test_trap_17_applied_is_what_was_copied_out_not_what_was_handed_out() -> None:
    with Cluster(3, ring_bytes=8192, piece_bytes=512) as c:
        leader = c.all_confirmed()
        c.kill(2)
        c[1].applies = False
        c.run(2_000)
        sent = fill(c, leader, 20)
        c.run_until(lambda: c[1].commit == leader.commit)
        applied = c[1].background.progress.applied_index
        assert applied + 20 <= c[1].background.progress.index
        c.run(3_000)
        assert c[1].payloads == sent  # all handed out, none copied out
        for _ in range(500):
            leader.propose(b"y" * 100, kind=lib.RECORD_EFFECT)
            c.step(20)
        position = lib.REPLICA_RING_OFFSET + c[1].applied_point()[1]
        header = ffi.cast("struct record_header *", ffi.from_buffer(c[1].log) + position)
        assert lib.record_whole(header, 4096, applied + 1, c.config["salt"])  # nothing was written over it


@pytest.mark.parametrize("how", ["stop", "slow", "kill", "cut"])
def test_trap_18_a_slow_or_dead_minority_is_not_waited_for(how: str) -> None:
    with Cluster(3, ring_bytes=1 << 16, delay_us=(1, 5)) as c:
        leader = c.all_confirmed()
        term = leader.term
        if how == "stop":
            c.stop(2)
        elif how == "slow":
            lib.sim_set_slow(c.sim, 0, 2, 3_000)
        elif how == "kill":
            c.kill(2, told=False)
        else:
            c.cut(0, 2)
        for i in range(200):
            index = leader.propose(b"%d" % i)
            assert index > 0
            c.step(20)
            c.step(20)
            assert leader.commit >= index, how  # at once, each
        assert leader.leads and leader.term == term
        if how == "stop":
            c.go_on(2)
        elif how == "slow":
            lib.sim_set_slow(c.sim, 0, 2, 0)
        elif how == "cut":
            c.heal(0, 2)
        if how != "kill":
            c.run_until(lambda: leader.confirmed == {0, 1, 2})
        c.converge()


def test_trap_19_a_joiner_with_a_larger_ballot_makes_the_leader_prepare_anew() -> None:
    with Cluster(3, delay_us=(1, 5)) as c:
        leader = c.all_confirmed()
        c.commit(leader, b"first")
        c.cut(0, 2)
        c.cut(1, 2)
        c.run(10_000)
        c[2].head.min_proposal = 40 << 8 | 2  # somebody was there with term 40
        c.heal(0, 2)
        c.heal(1, 2)
        c.run_until(lambda: any(n.leads and n.confirmed == {0, 1, 2} for n in c.nodes))
        leader = c.leader()
        assert leader.term > 40
        c.commit(leader, b"second")
        c.converge()


def test_trap_19_what_a_joiner_holds_beyond_is_junk() -> None:
    with Cluster(3, delay_us=(1, 5)) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        c.converge()
        c.hold(0, 1)
        c.hold(0, 2)
        for i in range(5):
            old.propose(b"junk %d" % i * 20)  # in the own log only
        c.stop(0)
        new = c.leader()
        assert new.number == 1
        c.commit(new, b"second")
        c.release(0, 1)
        c.release(0, 2)
        c.go_on(0)
        c.run_until(lambda: new.confirmed == {0, 1, 2})
        for i in range(10):
            c.commit(new, b"%d" % i)
        c.converge()
        assert old.payloads == [b"first", b"second", *(b"%d" % i for i in range(10))]
