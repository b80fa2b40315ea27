"""The traps of one-sided replication, each as a scenario: what has to be right when a writer is stopped, killed,
deposed or slow at the worst moment. Numbers are those of the project's list; what random schedules find better is in
test_schedule.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from musidecar._ffi import ffi, lib
from tests.sim.cluster import TICK_US, Cluster


def test_the_lowest_eligible_leads_and_everybody_hears_of_every_commit() -> None:
    with Cluster(3) as c:
        leader = c.all_confirmed()
        assert leader.number == 0
        for i in range(20):
            c.commit(leader, b"record %d" % i, origin=(0, 5, i))
        c.converge()  # the last one too: an idle leader tells its commit index
        assert [n.payloads for n in c.nodes] == [[b"record %d" % i for i in range(20)]] * 3
        assert [n.delivered[3].origin for n in c.nodes] == [(0, 5, 2)] * 3


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_trap_12_other_sizes_of_cluster(n: int) -> None:
    with Cluster(n) as c:
        leader = c.all_confirmed()
        for i in range(5):
            c.commit(leader, b"%d" % i)
        c.converge()
        survivors = n // 2 + 1
        for victim in range(n - 1, survivors - 1, -1):  # all but a bare majority
            c.kill(victim)
        c.commit(leader, b"majority")
        if n > 1:
            c.kill(survivors - 1)
            index = leader.propose(b"minority")
            c.run(20_000)
            assert index < 0 or leader.commit < index


# -- 1 to 3: permission, the leader's own log, ballots


def test_trap_1_a_stopped_leaders_late_writes_do_not_land() -> None:
    with Cluster(3, delay_us=(5, 20), part_bytes=64) as c:
        old = c.all_confirmed()
        c.commit(old, b"before")
        c.converge()
        for peer in (1, 2):
            c.hold(0, peer, 1)  # each post gets a part through, and stops in the middle
        index = old.propose(b"late" * 100)
        c.advance(100)
        c.stop(0)
        new = c.all_confirmed()
        c.commit(new, b"after")
        logs = [bytes(c[i].log) for i in (1, 2)]
        for peer in (1, 2):
            c.release(0, peer)
        lib.sim_freeze(c.sim, 0, False)  # its stores go on; nobody else moves
        c.advance(1000)
        assert [bytes(c[i].log) for i in (1, 2)] == logs
        c.go_on(0)
        old.poll()
        assert not old.leads and old.commit < index
        c.all_confirmed()
        c.converge()
        assert old.payloads == [b"before", b"after"]


def test_trap_1_own_posts_are_drained_before_permission_is_asked_again() -> None:
    with Cluster(3, delay_us=(5, 10), part_bytes=64) as c:
        old = c.all_confirmed()
        c.hold(0, 1, 1)
        c.hold(0, 2, 1)
        old.propose(b"held" * 50)
        c.advance(50)
        lib.replica_resign(old.replica, c.now_us)
        new = c.leader()
        assert new.number == 1
        c.commit(new, b"while it was away", kind=2)
        requests = new.background.requests[0].number
        c.kill(2)
        lib.replica_resign(new.replica, c.now_us)  # only the old leader is left to campaign
        c.run(10_000)
        assert new.background.requests[0].number == requests, "asked while a post of its own was under way"
        c.release(0, 1)
        c.release(0, 2)
        c.run_until(lambda: any(n.leads for n in c.alive))
        c.converge()
        assert old.payloads[-1] == b"while it was away"


def test_trap_2_the_leaders_own_log_is_fenced() -> None:
    with Cluster(3) as c:
        old = c.all_confirmed()
        place = lib.replica_reserve(old.replica, 1, 100)
        assert place != ffi.NULL
        c.tell_down(0)  # the others take it for dead
        for _ in range(20):
            c[1].poll()
            c[2].poll()
        # A request waits; the old leader's process has not looked yet. When it does, it is no leader any more.
        old.poll()
        origin = ffi.new("struct record_origin *")[0]
        assert lib.replica_propose_reserved(old.replica, 1, 0, origin, 100) == lib.REPLICA_NOT_LEADER
        assert old.propose(b"too late") == lib.REPLICA_NOT_LEADER
        assert lib.replica_reserve(old.replica, 1, 100) == ffi.NULL
        new = c.leader()
        assert new.number != 0
        c.commit(new, b"the new leader's")
        c.converge()
        assert old.payloads == [b"the new leader's"]


def test_trap_3_every_term_has_a_ballot_of_its_own() -> None:
    with Cluster(3) as c:
        for turn in range(6):
            leader = c.all_confirmed()
            if turn % 2:
                leader.propose(b"unfinished")
            lib.replica_resign(leader.replica, c.now_us)  # lost and regained, also without a proposal in between
            c.run(500)
        c.all_confirmed()
        c.converge()
        ballots = [r.ballot for r in c[0].delivered if r.kind == lib.RECORD_NOOP]
        assert len(ballots) >= 6
        assert ballots == sorted(set(ballots))
        assert [r.payload for r in c[0].delivered if r.kind == lib.RECORD_NOOP] == [
            b.to_bytes(8, "little") for b in ballots
        ]


def test_trap_3_after_an_abort_the_unfinished_record_is_no_hole() -> None:
    with Cluster(3, delay_us=(1, 5)) as c:
        leader = c.all_confirmed()
        c.isolate(0)
        index = leader.propose(b"unfinished")
        c.run(3_000)
        assert not leader.leads
        c.rejoin(0)
        leader = c.all_confirmed()
        after = c.commit(leader, b"after")
        assert after > index
        c.converge()
        assert c[1].payloads in ([b"after"], [b"unfinished", b"after"])
        assert [r.index for r in c[1].delivered] == list(range(1, len(c[1].delivered) + 1))


# -- 4 to 8: what a dying leader leaves behind


@pytest.mark.parametrize("holder", [1, 2])
def test_trap_4_a_record_on_one_replica_is_adopted_and_delivered_everywhere(holder: int) -> None:
    """Decided or not, nobody can tell any more: so it stays, at its index, and the new leader's own are behind it."""
    with Cluster(3, delay_us=(1, 5)) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        c.hold(0, 3 - holder)
        index = old.propose(b"only on one", origin=(0, 77, 8))
        c.advance(50)  # landed at `holder`; whether the old leader has seen that, nobody knows
        c.kill(0)
        new = c.leader()
        later = c.commit(new, b"later")
        c.converge()
        for node in (c[1], c[2]):
            assert node.delivered[index - 1].payload == b"only on one"
            assert node.delivered[index - 1].origin == (0, 77, 8)
            assert node.payloads == [b"first", b"only on one", b"later"]
        assert later > index + 1  # the term's NOOP is in between


def test_trap_4_a_record_outside_the_majority_asked_may_vanish_but_not_come_back() -> None:
    with Cluster(5, delay_us=(1, 5)) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        c.converge()
        for peer in (1, 2, 3):
            c.hold(0, peer)
        index = old.propose(b"only on four")
        c.advance(50)
        c.kill(0)
        c.isolate(4)
        c.tell_down(4)
        new = c.leader()
        assert c.commit(new, b"instead") > index
        c.rejoin(4)
        c.run_until(lambda: new.confirmed == {1, 2, 3, 4})
        c.converge()
        assert c[4].payloads == [b"first", b"instead"]


@pytest.mark.parametrize("parts", range(0, 12))
def test_trap_5_a_torn_record_is_never_adopted(parts: int) -> None:
    with Cluster(3, delay_us=(1, 3), part_bytes=64) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        c.converge()
        payload = bytes(range(1, 201)) * 3
        c.hold(0, 1, parts)
        c.hold(0, 2, 0)
        index = old.propose(payload)
        c.advance(200)
        c.kill(0)
        new = c.leader()
        c.commit(new, b"later")
        c.converge()
        complete = parts * 64 >= lib.record_bytes(len(payload))
        assert c[2].payloads == [b"first", payload, b"later"] if complete else [b"first", b"later"]
        assert c[1].delivered[index - 1].kind == (1 if complete else lib.RECORD_NOOP)


def test_trap_6_what_lies_behind_a_shorter_record_is_no_record() -> None:
    with Cluster(3, delay_us=(1, 3)) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        c.converge()
        c.hold(0, 1)
        for i in range(6):  # a long tail on node 2 alone
            old.propose(b"undecided %d " % i * 40)
        c.advance(100)
        c.kill(0)
        c.leader()
        c.converge()
        assert c[1].payloads == [b"first", *(b"undecided %d " % i * 40 for i in range(6))]
    with Cluster(5, delay_us=(1, 3)) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        c.converge()
        for peer in (1, 2, 3):
            c.hold(0, peer)
        for i in range(6):
            old.propose(b"undecided %d " % i * 40)
        c.advance(100)
        c.kill(0)
        c.isolate(4)
        c.tell_down(4)
        new = c.leader()
        for i in range(3):
            c.commit(new, b"%d" % i)  # 8 bytes where 480 were
        c.rejoin(4)
        c.run_until(lambda: 4 in new.confirmed)
        c.run(5_000)
        c.converge()
        assert c[4].payloads == [b"first", b"0", b"1", b"2"]


def test_trap_7_slots_of_the_lap_before_are_empty() -> None:
    with Cluster(3, ring_bytes=8192, piece_bytes=512) as c:
        leader = c.all_confirmed()
        sent = []
        for i in range(150):  # several laps
            sent.append(b"record %d" % i)
            c.commit(leader, sent[-1])
        c.converge()
        for _ in range(3):
            c.kill(leader.number, told=False)
            leader = c.leader()
            sent.append(b"of leader %d" % leader.number)
            c.commit(leader, sent[-1])
            c.converge()
            assert leader.payloads == sent
            if len(c.alive) == 2:
                break
        c.check()


@pytest.mark.parametrize("length", [0, 1, 55, 56, 57, 120, 121, 511, 512])
def test_trap_8_records_across_the_rings_end_and_of_every_size(length: int) -> None:
    with Cluster(3, ring_bytes=4096, piece_bytes=512) as c:
        leader = c.all_confirmed()
        for i in range(60):
            c.commit(leader, (bytes([i]) * length)[: length - 1] + bytes(1) if length else b"")
        c.converge()
        assert c[2].payloads == c[0].payloads and len(c[0].payloads) == 60
        assert leader.propose(b"x" * 513) == lib.REPLICA_TOO_LARGE
        c.kill(0)
        c.commit(c.leader(), b"x" * 512)
        c.converge()


# -- 10 to 14: candidates, acks, commit index, holes


def test_trap_10_two_candidates_do_not_alternate_for_ever() -> None:
    with Cluster(3, delay_us=(1, 30)) as c:
        c.all_confirmed()
        c.kill(0, told=False)
        # Each sees the other as dead: both campaign.
        for a, b in ((1, 2), (2, 1)):
            lib.replica_peer_down(c[a].replica, b, c.now_us)
            lib.replica_peer_down(c[a].replica, 0, c.now_us)
        c.leader()
        terms = c[1].term
        c.run(50_000)
        assert c[1].term == c[2].term == terms <= 6
        c.converge()


def test_trap_10_a_flapping_low_node_steals_nothing() -> None:
    with Cluster(3, delay_us=(1, 20)) as c:
        leader = c.all_confirmed()
        c.stop(0)
        leader = c.leader()
        assert leader.number == 1
        term = leader.term
        for _ in range(8):
            c.go_on(0)
            c.run(1_500)
            c.stop(0)
            c.run(1_500)
            assert leader.leads and leader.term == term
        c.go_on(0)
        c.all_confirmed()
        c.commit(leader, b"still here")
        c.converge()


def test_trap_10_flips_are_bounded_when_links_are_one_sided() -> None:
    with Cluster(3, delay_us=(1, 20)) as c:
        c.all_confirmed()
        lib.sim_cut(c.sim, 1, 0)  # node 1 sees nothing of the leader, which sees it
        before = c[0].term
        c.run(100_000)
        terms = max(n.term for n in c.nodes) - before
        assert terms < 60, terms
        lib.sim_heal(c.sim, 1, 0)
        lib.replica_peer_up(c[1].replica, 0, c.now_us)
        leader = c.all_confirmed()
        c.commit(leader, b"quiet again")
        c.converge()


def test_trap_11_an_ack_of_an_older_round_does_not_count() -> None:
    with Cluster(3) as c:
        old = c.all_confirmed()
        c.kill(0)
        c.tell_down(0)
        candidate = c[1]
        c[2].poll()  # serves the first round
        stale = bytes(ffi.buffer(candidate.background.acks + 2, 64))
        c.stop(2)
        assert any(stale)
        for _ in range(10):  # the second round is never answered; the first round's ack stands there once more
            ffi.buffer(candidate.background.acks + 2, 64)[:] = bytes(64)
            c.run(20_000)
            ffi.buffer(candidate.background.acks + 2, 64)[:] = stale
            c.step()
            assert not candidate.leads
        assert old.dead
        c.go_on(2)
        c.leader()


def test_trap_11_who_granted_and_then_granted_somebody_else_is_no_follower() -> None:
    with Cluster(5, delay_us=(1, 5)) as c:
        leader = c.all_confirmed()
        c.commit(leader, b"first")
        c.stop(0)
        f = c[4].fabric
        f.ops.revoke(f)
        f.ops.grant(f, 3)  # it took the permission away while the leader was stopped
        c.go_on(0)
        c[0].propose(b"second")
        c.step(50)
        c.step(50)
        assert 4 not in leader.confirmed
        assert leader.leads  # four are left
        c.run_until(lambda: leader.confirmed == {0, 1, 2, 3, 4})  # joined again, through a new grant
        c.converge()


def test_trap_13_several_in_flight_nobody_applies_what_is_not_decided() -> None:
    with Cluster(5, delay_us=(1, 5)) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        c.converge()
        decided = c[1].commit
        for peer in (2, 3, 4):
            c.hold(0, peer)
        for i in range(4):
            assert old.propose(b"in flight %d" % i) > 0
        for _ in range(20):
            c.step(20)  # all four stand in node 1's log, one after the other
        assert old.commit == decided and c[1].commit == decided
        assert c[1].last >= decided + 4
        c.kill(0)
        new = c.leader()
        c.commit(new, b"last")
        c.converge()
        assert c[3].payloads in (
            [b"first", *(b"in flight %d" % i for i in range(4)), b"last"],
            [b"first", b"last"],
        )
        assert c[3].payloads == c[1].payloads


def test_trap_14_nothing_lands_behind_a_failed_write() -> None:
    with Cluster(3, delay_us=(2, 2)) as c:
        leader = c.all_confirmed()
        c.commit(leader, b"first")
        before = bytes(c[1].log)
        f = c[1].fabric
        leader.propose(b"fails at 1")
        f.ops.revoke(f)
        c.advance(3)  # refused on arrival
        f.ops.grant(f, 0)  # and now it would be let in again
        leader.propose(b"would succeed at 1")
        c.advance(10)
        assert bytes(c[1].log) == before
        c.run_until(lambda: leader.confirmed == {0, 1, 2})
        c.converge()
        assert c[1].payloads == [b"first", b"fails at 1", b"would succeed at 1"]


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


# -- 21 to 24: suspicion, reads, divergence


def test_trap_21_an_idle_leader_is_not_deposed() -> None:
    with Cluster(3, delay_us=(1, 30)) as c:
        leader = c.all_confirmed()
        term = leader.term
        c.run(1_000_000)
        assert leader.leads and leader.term == term
        assert [lib.replica_suspects(n.replica) for n in c.nodes] == [0, 0, 0]


def test_trap_21_who_woke_late_himself_gives_no_verdict() -> None:
    with Cluster(3, delay_us=(1, 10)) as c:
        leader = c.all_confirmed()
        term = leader.term
        for _ in range(20):  # the whole host stands still for 30 ms, again and again
            c.now_us += 30_000
            lib.sim_advance(c.sim, c.now_us)
            for node in (c[1], c[2], c[0]):
                node.tick()
                node.poll()
            c.run(3 * TICK_US)
        assert leader.leads and leader.term == term


def test_trap_21_records_that_stand_still_while_heartbeats_go_on() -> None:
    with Cluster(3, delay_us=(1, 10)) as c:
        old = c.all_confirmed()
        c.hold(0, 1)
        c.hold(0, 2)
        old.propose(b"stuck")
        c.run_until(lambda: not old.leads)
        c.release(0, 1)
        c.release(0, 2)
        leader = c.leader()
        c.commit(leader, b"goes on")
        c.converge()


def test_trap_23_a_deposed_leader_gets_no_probe_through() -> None:
    with Cluster(3, delay_us=(1, 10)) as c:
        old = c.all_confirmed()
        probe = lib.replica_probe(old.replica)
        c.run_until(lambda: lib.replica_probed(old.replica) >= probe)
        c.stop(0)
        new = c.leader()
        c.commit(new, b"it does not know")
        c[0].running = True
        lib.sim_freeze(c.sim, 0, False)
        assert old.leads  # so it believes
        probe = lib.replica_probe(old.replica)
        assert probe > 0
        for _ in range(50):
            c.step(10)
            assert lib.replica_probed(old.replica) < probe
        assert not old.leads
        assert lib.replica_probe(old.replica) == 0


def test_trap_23_an_idle_leader_that_was_deposed_finds_out() -> None:
    with Cluster(3, delay_us=(1, 10)) as c:
        old = c.all_confirmed()
        for other in (1, 2):
            lib.sim_cut(c.sim, other, 0)  # the others see it no more; it sees them
            lib.sim_cut(c.sim, 0, other)
        c.run_until(lambda: not old.leads)


def test_trap_24_a_follower_that_disagrees_stops_and_says_so() -> None:
    with Cluster(3, delay_us=(1, 10)) as c:
        leader = c.all_confirmed()
        c.commit(leader, b"first")
        c.converge()
        index, position, running_hash = c[2].applied_point()
        lib.replica_install(c[2].replica, index, position, running_hash ^ 1, c.now_us)  # another past
        leader.propose(b"second")
        c.run_until(lambda: c[2].damage != lib.REPLICA_SOUND)
        assert c[2].payloads == [b"first"]
        c[2].install(leader)
        assert c[2].damage == lib.REPLICA_SOUND
        c.commit(leader, b"third")
        c.run_until(lambda: leader.confirmed == {0, 1, 2})
        c.converge()
        assert c[2].payloads[-1] == b"third"


# -- fail-over, leadership


def test_the_new_leader_takes_over_at_the_death_notice() -> None:
    """Without delays a take-over takes no time: everything that is waited for is an event."""
    with Cluster(3) as c:
        leader = c.all_confirmed()
        c.commit(leader, b"first")
        at = c.now_us
        c.kill(0)
        for _ in range(3):
            for node in c.alive:
                node.poll()
        assert c[1].leads and c.now_us == at
        times = lib.replica_takeover_times(c[1].replica)
        assert times.suspected_us == times.requested_us == times.opened_us == at
        assert times.requested_us <= times.permitted_us <= times.prepared_us <= times.opened_us


def test_a_majority_that_died_serves_nothing_and_nothing_starts_by_itself() -> None:
    with Cluster(5, delay_us=(1, 10)) as c:
        leader = c.all_confirmed()
        c.commit(leader, b"first")
        for victim in (0, 1, 2):
            c.kill(victim)
        c.run(200_000)
        assert not any(n.leads for n in c.alive)


def test_only_an_eligible_node_leads() -> None:
    with Cluster(3, eligible=[2]) as c:
        assert c.all_confirmed().number == 2
        lib.replica_set_eligible(c[0].replica, True)
        c.run(50_000)
        assert c[2].leads  # a better claim is no reason while there is a healthy leader
        lib.replica_resign(c[2].replica, c.now_us)
        assert c.leader().number == 0


def test_who_resigns_leaves_it_to_another() -> None:
    with Cluster(3, delay_us=(1, 10)) as c:
        first = c.all_confirmed()
        lib.replica_resign(first.replica, c.now_us)
        assert not first.leads
        second = c.leader()
        assert second.number == 1
        c.run(60_000)
        assert second.leads
        lib.replica_set_eligible(c[1].replica, False)
        lib.replica_set_eligible(c[2].replica, False)
        lib.replica_resign(second.replica, c.now_us)
        assert c.leader().number == 0  # eligible, and needed again


def test_a_candidate_that_dies_before_it_opens_its_term_is_succeeded() -> None:
    with Cluster(5, delay_us=(5, 20)) as c:
        leader = c.all_confirmed()
        c.commit(leader, b"first")
        c.converge()
        c.kill(0)
        c.run_until(lambda: c[1].role == lib.REPLICA_CANDIDATE)
        c.run(60)
        c.kill(1, told=False)
        new = c.leader()
        assert new.number == 2
        c.commit(new, b"second")
        c.converge()


def test_a_snapshot_point_names_what_was_applied() -> None:
    with Cluster(3) as c:
        leader = c.all_confirmed()
        for i in range(10):
            c.commit(leader, b"%d" % i)
        leader.applies = False
        c.commit(leader, b"handed out only")
        index, _, running_hash = leader.applied_point()
        assert index == leader.commit - 1
        leader.applies = True
        leader.apply()
        assert leader.applied_point()[0] == leader.commit
        assert leader.applied_point()[2] == leader.hash != running_hash
