"""The traps of one-sided replication, each as a scenario: what has to be right when a writer is stopped, killed,
deposed or slow at the worst moment. Numbers are those of the project's list; what random schedules find better is in
test_schedule.py.
"""

from __future__ import annotations

import pytest

from musidecar._ffi import ffi, lib
from tests.sim.cluster import Cluster


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


def test_trap_01_a_stopped_leaders_late_writes_do_not_land() -> None:
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


def test_trap_01_own_posts_are_drained_before_permission_is_asked_again() -> None:
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


def test_trap_02_the_leaders_own_log_is_fenced() -> None:
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


def test_trap_03_every_term_has_a_ballot_of_its_own() -> None:
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


def test_trap_03_after_an_abort_the_unfinished_record_is_no_hole() -> None:
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


def test_trap_03_nothing_of_earlier_terms_is_committed_before_the_own_noop() -> None:
    """A leader that comes to lead again feeds its follower what it lacks; that one has no room yet for the rest and
    the NOOP. What it holds by then is on a majority, and yet not decided: a leader of another term may hold more."""
    with Cluster(3, eligible=[0]) as c:
        leader = c.all_confirmed()
        c[2].applies = False
        c.cut(0, 2)
        for _ in range(12):
            c.commit(leader, b"a" * 1000, kind=lib.RECORD_EFFECT)
        c.heal(0, 2)  # it joins again, without a say in what the ring may reuse
        c.run_until(lambda: c[2].commit == leader.commit)
        c.hold(0, 1)
        c.hold(0, 2)
        for _ in range(6):
            assert leader.propose(b"b" * 1000, kind=lib.RECORD_EFFECT) > 0
        c.kill(1)
        lib.replica_resign(leader.replica, c.now_us)
        c.release(0, 2)
        held = leader.commit
        for _ in range(2000):
            c.step()
            assert not leader.leads
        assert leader.commit == held and b"b" * 1000 in bytes(c[2].log)
        c[2].applies = True
        c[2].apply()
        c.run_until(lambda: leader.leads)
        assert leader.delivered[-1].kind == lib.RECORD_NOOP and leader.delivered[-1].ballot >> 8 == leader.term
        c.converge()


@pytest.mark.parametrize("holder", [1, 2])
def test_trap_04_a_record_on_one_replica_is_adopted_and_delivered_everywhere(holder: int) -> None:
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


def test_trap_04_a_record_outside_the_majority_asked_may_vanish_but_not_come_back() -> None:
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
def test_trap_05_a_torn_record_is_never_adopted(parts: int) -> None:
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


def test_trap_06_what_lies_behind_a_shorter_record_is_no_record() -> None:
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


def test_trap_07_slots_of_the_lap_before_are_empty() -> None:
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
def test_trap_08_records_across_the_rings_end_and_of_every_size(length: int) -> None:
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
