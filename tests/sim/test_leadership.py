"""Traps 21 to 24, suspicion, reads and divergence; who leads, when, and what becomes of it. See test_traps.py."""

from __future__ import annotations

from musidecar._ffi import lib
from tests.sim.cluster import TICK_US, Cluster

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
        another_past = running_hash ^ 1
        lib.replica_install(c[2].replica, index, position, another_past, c[2].applied_members(), c.now_us)
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


def test_rule_18_only_an_eligible_node_leads() -> None:
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


def test_rule_20_whoever_is_named_takes_over_and_nobody_else() -> None:
    with Cluster(5, delay_us=(1, 10)) as c:
        old = c.all_confirmed()
        c.commit(old, b"before")
        c.converge()
        assert lib.replica_heirs(old.replica) == 0b11110
        terms = [old.term]
        for named in (c[4], c[2], c[0]):
            for other in c.nodes:
                if other is not named:
                    lib.replica_defer(other.replica, c.now_us + 50_000)
            c.run(3 * TICK_US)
            assert old.leads  # nobody is in a hurry
            assert lib.replica_campaign(named.replica, c.now_us)
            c.run_until(lambda named=named: named.leads)
            assert not old.leads
            c.run(100_000)
            assert named.leads and named.term == terms[-1] + 1
            terms.append(named.term)
            old = c.all_confirmed()
            c.commit(old, b"after")
            c.converge()


def test_rule_20_the_others_go_on_when_who_is_named_dies() -> None:
    with Cluster(3, delay_us=(1, 10)) as c:
        c.all_confirmed()
        for i in (0, 1):
            lib.replica_defer(c[i].replica, c.now_us + 50_000)
        assert lib.replica_campaign(c[2].replica, c.now_us)
        c.run_until(lambda: not c[0].leads)
        c.kill(2)
        began = c.now_us
        leader = c.leader()
        assert c.now_us - began > 30_000  # they had been asked to wait
        c.commit(leader, b"after")
        c.converge()


def test_rule_20_only_who_may_lead_campaigns() -> None:
    with Cluster(3, delay_us=(1, 10)) as c:
        leader = c.all_confirmed()
        lib.replica_set_eligible(c[2].replica, False)
        c.run(3 * TICK_US)
        assert lib.replica_heirs(leader.replica) == 0b010
        assert not lib.replica_campaign(c[2].replica, c.now_us)
        assert not lib.replica_campaign(leader.replica, c.now_us)
        c.run(50_000)
        assert leader.leads


def test_while_it_is_paused_nobody_takes_over_by_itself() -> None:
    with Cluster(3, delay_us=(1, 10)) as c:
        first = c.all_confirmed()
        for node in c.nodes:
            lib.replica_pause(node.replica, True)
        assert lib.replica_campaign(c[1].replica, c.now_us)  # by plan
        c.run_until(lambda: c[1].leads)
        assert not first.leads
        c.commit(c.all_confirmed(), b"before")
        c.kill(1)
        c.run(400_000)
        assert not any(node.leads for node in c.alive)
        for node in c.alive:
            lib.replica_pause(node.replica, False)
        c.commit(c.leader(), b"after")
        c.converge()


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
