"""Changes of membership: growing and shrinking, replacing a node that lost its memory, and what becomes of a CONFIG
record when the leader changes in between. A node is a slot; who counts is the incarnation in it.
"""

from __future__ import annotations

import pytest

from musidecar._ffi import ffi, lib
from tests.sim.cluster import Cluster, Node


def no_leader(c: Cluster, us: int = 200_000) -> None:
    until = c.now_us + us
    while c.now_us < until:
        c.step()
        assert not any(n.leads for n in c.alive), c.describe()


def agreed(c: Cluster, members: dict[int, int]) -> None:
    """Runs until every member that is alive knows that these are the members."""
    c.run_until(lambda: all(n.members == members for n in c.alive if n.number in members))


def config_records(node: Node) -> list[tuple[int, int, int]]:
    """(slot, step, incarnation) of each CONFIG record handed out."""
    changes = [ffi.from_buffer("struct membership_change *", r.payload) for r in node.delivered if r.kind == 4]
    return [(change.slot, change.step, change.incarnation) for change in changes]


# -- 22: amnesia


@pytest.mark.parametrize("told", [True, False])
def test_trap_22_amnesia_does_not_forget_what_the_lost_memory_decided(told: bool) -> None:
    """Decided by {0, 1}; 1 comes back empty, 0 dies: {1, 2} is no majority, for that 1 is not the member."""
    with Cluster(3, delay_us=(1, 5)) as c:
        leader = c.all_confirmed()
        c.commit(leader, b"known to all")
        c.converge()
        c.hold(0, 2)
        index = leader.propose(b"decided by 0 and 1")
        c.run_until(lambda: leader.commit >= index)
        c.restart(1, 2)
        c.kill(0, told)
        assert not c[1].is_member and c[2].is_member
        no_leader(c)
        assert c[2].payloads == [b"known to all"]


def test_trap_22_amnesia_a_new_incarnation_follows_but_does_not_count() -> None:
    with Cluster(3, delay_us=(1, 5)) as c:
        leader = c.all_confirmed()
        c.commit(leader, b"before")
        c.restart(1, 2)
        c.run_until(lambda: leader.confirmed == {0, 1, 2})
        c.commit(leader, b"with 2")
        c.run_until(lambda: c[1].payloads == [b"before", b"with 2"])  # caught up, from the ring
        c.hold(0, 2)
        index = leader.propose(b"without 2")
        probe = lib.replica_probe(leader.replica)
        c.run(3_000)
        assert c[1].last >= index  # it is in the logs of two
        assert leader.commit < index and lib.replica_probed(leader.replica) < probe
        c.release(0, 2)
        c.commit(c.leader(), b"after")
        c.converge()


def test_trap_22_amnesia_of_a_majority_starts_nothing() -> None:
    with Cluster(3, delay_us=(1, 5)) as c:
        leader = c.all_confirmed()
        c.commit(leader, b"remembered by one")
        c.converge()
        c.restart(1, 2)
        c.restart(2, 2)
        c.run(5_000)
        assert not leader.leads
        no_leader(c)
        assert leader.payloads == [b"remembered by one"]


def test_trap_22_amnesia_of_all_starts_nothing() -> None:
    with Cluster(3) as c:
        c.all_confirmed()
        for i in range(3):
            c.restart(i, 2)
        no_leader(c)


def test_trap_22_amnesia_an_acknowledgement_of_another_incarnation_does_not_count() -> None:
    """Everything else about it is right: the number, the epoch, the permission itself."""
    with Cluster(3) as c:
        c.all_confirmed()
        c.kill(0)
        c.isolate(2)
        c.restart(2, 7)
        c.run_until(lambda: any(c[1].background.acks[2].incarnation == 7 for _ in (1,)))
        assert lib.sim_holder(c.sim, 2) == 1
        no_leader(c)


def test_trap_22_amnesia_words_of_the_former_life_do_not_count() -> None:
    """The new life has not published anything yet: the progress of the old one, still known to the leader, is void."""
    with Cluster(3, delay_us=(1, 5)) as c:
        leader = c.all_confirmed()
        for i in range(5):
            c.commit(leader, b"%d" % i)
        c.converge()
        c.restart(1, 2)
        c.run_until(lambda: c[1].background.progress.incarnation == 2)
        c.run_until(lambda: leader.confirmed == {0, 1, 2})
        c.converge()
        assert c[1].payloads == [b"0", b"1", b"2", b"3", b"4"]  # from the beginning, not from where its former life was


def test_a_node_that_lost_its_memory_is_replaced_under_writes() -> None:
    with Cluster(3, ring_bytes=8192, piece_bytes=512, delay_us=(1, 10), part_bytes=64) as c:
        leader = c.all_confirmed()
        sent: list[bytes] = []

        def write(count: int) -> None:
            for _ in range(count):
                payload = b"write %d" % len(sent)
                if leader.propose(payload) > 0:
                    sent.append(payload)
                c.step(20)

        write(200)  # more than the ring holds: a snapshot is needed
        c.restart(2, 2)
        for slot, incarnation in ((2, 0), (2, 2)):
            until = c.now_us + 400_000
            while (index := leader.propose_member(slot, incarnation)) < 0:
                assert index in (lib.REPLICA_NOT_NOW, lib.REPLICA_FULL) and c.now_us < until
                write(1)
                if c[2].damage == lib.REPLICA_LAPPED:
                    c[2].install(leader)
        write(100)
        c.run_until(lambda: leader.commit >= index)
        assert leader.leads and leader.members == {0: 1, 1: 1, 2: 2}
        c.kill(1)  # and now it counts
        write(50)
        c.converge()
        assert leader.payloads == sent
        assert c[2].first > 1 and c[2].is_member and c[2].members == leader.members
        c.kill(0)
        c.restart(1, 2)
        no_leader(c, 50_000)  # 2 alone is no majority, whoever stands beside it


# -- growing and shrinking


def test_the_cluster_grows_to_five_and_shrinks_again() -> None:
    with Cluster(5, delay_us=(1, 10), members=range(3)) as c:
        leader = c.all_confirmed()
        assert leader.members == {0: 1, 1: 1, 2: 1}
        assert not c[3].is_member
        c.commit(leader, b"three")
        c.change(leader, 3, 1)
        c.commit(leader, b"four")
        c.change(leader, 4, 1)
        agreed(c, dict.fromkeys(range(5), 1))
        c.commit(leader, b"five")
        for i in (1, 2):
            c.stop(i)
        c.commit(leader, b"three of five")  # 0, 3 and 4
        for i in (1, 2):
            c.go_on(i)
        c.all_confirmed()
        for slot in (4, 3):
            c.change(leader, slot, 0)
            c.run_until(lambda slot=slot: not c[slot].is_member)
        agreed(c, dict.fromkeys(range(3), 1))
        c.run_until(lambda: leader.confirmed == {0, 1, 2})
        held = [n.last for n in c.nodes]
        c.commit(leader, b"three again")
        c.run(20_000)
        assert [c[3].last, c[4].last] == held[3:]  # nobody writes there any more
        c.kill(1)
        c.commit(leader, b"two of three")
        c.kill(2)
        index = leader.propose(b"one of three")
        c.run(20_000)
        assert index < 0 or leader.commit < index
        no_leader(c, 50_000)  # 0, 3 and 4 run, but two of them are none of it
        c.check()


def test_one_node_grows_to_three_and_shrinks_to_one() -> None:
    with Cluster(3, members=[0]) as c:
        leader = c.leader()
        c.commit(leader, b"alone")
        for slot in (1, 2):
            c.change(leader, slot, 1)
        c.kill(1)
        c.commit(leader, b"two of three")
        c.change(leader, 1, 0)
        c.change(leader, 2, 0)
        assert leader.members == {0: 1}
        c.kill(2)
        c.commit(leader, b"alone again")
        c.step()
        assert leader.propose_member(0, 0) == lib.REPLICA_NO_CHANGE  # nobody would be left
        assert leader.leads and leader.payloads == [b"alone", b"two of three", b"alone again"]


def test_a_removed_leader_steps_down_when_its_removal_is_decided() -> None:
    with Cluster(3, delay_us=(1, 5)) as c:
        leader = c.all_confirmed()
        c.hold(0, 1)
        c.hold(0, 2)
        index = leader.propose_member(0, 0)
        assert index > 0
        c.run(300)
        assert leader.leads and leader.is_member  # not yet
        c.release(0, 1)
        c.run(300)
        assert leader.leads and leader.commit < index  # 0 and 1 are no majority of {1, 2}
        c.release(0, 2)
        c.run_until(lambda: leader.commit >= index)
        assert not leader.leads and not leader.is_member
        new = c.leader()
        assert new.number == 1 and new.members == {1: 1, 2: 1}
        c.commit(new, b"without it")
        term = new.term
        c.run(100_000)
        assert new.leads and new.term == term and c[0].role == lib.REPLICA_FOLLOWER
        assert 0 not in new.confirmed


def test_who_was_removed_without_hearing_of_it_is_not_answered() -> None:
    with Cluster(4, delay_us=(1, 5)) as c:
        leader = c.all_confirmed()
        c.isolate(3)
        c.tell_down(3)
        c.change(leader, 3, 0)
        agreed(c, dict.fromkeys(range(3), 1))
        for i in (1, 2):
            lib.replica_set_eligible(c[i].replica, False)
        c.rejoin(3)
        c.kill(0)
        requests = set()
        until = c.now_us + 200_000
        while c.now_us < until:
            c.step()
            assert not any(n.leads for n in c.alive)
            assert 3 not in {lib.sim_holder(c.sim, i) for i in (1, 2)}
            requests.add(c[1].background.requests[3].number)
        assert len(requests) > 2 and c[3].is_member  # by what it knows, it would be its turn
        lib.replica_set_eligible(c[2].replica, True)
        new = c[2]
        c.run_until(lambda: new.leads)
        c.commit(new, b"undisturbed")
        term = new.term
        c.run(100_000)
        assert new.leads and new.term == term and new.confirmed == {1, 2}
        c.check()


# -- what is refused


def test_one_change_at_a_time() -> None:
    with Cluster(5, delay_us=(1, 5), members=range(3)) as c:
        assert c[1].propose_member(3, 1) == lib.REPLICA_NOT_LEADER
        leader = c.all_confirmed()
        c.run(2_000)
        c.hold(0, 1)
        c.hold(0, 2)
        index = leader.propose_member(3, 1)
        assert index > 0
        assert leader.propose_member(4, 1) == lib.REPLICA_NOT_NOW
        assert leader.propose_member(2, 0) == lib.REPLICA_NOT_NOW
        c.run(300)
        assert leader.commit < index and leader.propose_member(4, 1) == lib.REPLICA_NOT_NOW
        c.release(0, 1)
        c.release(0, 2)
        c.run_until(lambda: leader.commit >= index)
        c.change(leader, 4, 1)
        agreed(c, dict.fromkeys(range(5), 1))
        assert config_records(c[1]) == [(3, lib.MEMBERSHIP_ADD, 1), (4, lib.MEMBERSHIP_ADD, 1)]


def test_what_is_no_single_step_is_refused() -> None:
    with Cluster(4, members=range(3)) as c:
        leader = c.all_confirmed()
        for slot, incarnation in ((2, 1), (2, 2), (3, 0), (4, 1), (1 << 31, 1)):
            assert leader.propose_member(slot, incarnation) == lib.REPLICA_NO_CHANGE, (slot, incarnation)
        change = bytes(ffi.buffer(ffi.new("struct membership_change *", {"slot": 3, "step": 1, "incarnation": 1})))
        assert leader.propose(change, kind=lib.RECORD_CONFIG) == lib.REPLICA_NO_CHANGE
        assert lib.replica_reserve(leader.replica, lib.RECORD_CONFIG, 16) == ffi.NULL
        c.change(leader, 2, 0)
        assert leader.propose_member(2, 1) == lib.REPLICA_NO_CHANGE  # it was; only a later life can come back
        c.restart(2, 2)
        c.change(leader, 2, 2)
        assert leader.members == {0: 1, 1: 1, 2: 2}


def test_who_does_not_keep_up_is_not_added() -> None:
    with Cluster(4, delay_us=(1, 5), members=range(3)) as c:
        c.hold(0, 3)
        leader = c.leader()
        c.run(5_000)
        assert leader.propose_member(3, 1) == lib.REPLICA_NOT_NOW
        c.release(0, 3)
        assert leader.propose_member(3, 2) == lib.REPLICA_NOT_NOW  # nobody like that is there
        c.change(leader, 3, 1)


def test_no_change_takes_the_majority_away() -> None:
    with Cluster(3, delay_us=(1, 5)) as c:
        leader = c.all_confirmed()
        c.kill(2)
        c.run_until(lambda: leader.confirmed == {0, 1})
        assert leader.propose_member(1, 0) == lib.REPLICA_NOT_NOW  # of {0, 2} only one runs
        assert leader.propose_member(0, 0) == lib.REPLICA_NOT_NOW
        c.change(leader, 2, 0)
        assert leader.members == {0: 1, 1: 1}
        c.change(leader, 1, 0)
        assert leader.members == {0: 1}


# -- 25: a change of membership during a change of leaders


def test_trap_25_configuration_change_straddling_a_leader_change_two_changes_by_two_leaders() -> None:
    """The known hole in single steps without a NOOP first: each of two leaders counts in its own next membership."""
    with Cluster(5, delay_us=(1, 5), members=range(4)) as c:
        first = c.all_confirmed()
        assert first.number == 0
        c.run(2_000)
        for peer in (1, 2, 3):
            c.hold(0, peer)
        index = first.propose_member(4, 1)  # {0, 1, 2, 3, 4}: in the logs of 0 and 4 alone
        assert index > 0
        c.run_until(lambda: c[4].last >= index)
        for a in (0, 4):
            for b in (1, 2, 3):
                c.cut(a, b)
        for peer in (1, 2, 3):
            c.release(0, peer)
        lib.replica_set_eligible(c[2].replica, False)
        lib.replica_set_eligible(c[3].replica, False)
        c.run_until(lambda: c[1].leads and not first.leads)  # by three of four
        second = c[1]
        c.hold(1, 3)
        c.hold(1, 2)
        c.run(100)
        c.release(1, 2)
        removed = second.propose_member(0, 0)  # {1, 2, 3}, by 1 and 2
        assert removed > 0
        c.run_until(lambda: second.commit >= removed)
        c.commit(second, b"decided by 1 and 2")
        for i in (1, 2):
            c.isolate(i)
        c.release(1, 3)
        for a in (0, 4):
            c.heal(a, 3)
        lib.replica_set_eligible(c[3].replica, True)
        until = c.now_us + 200_000
        while c.now_us < until:  # 0, 3 and 4: three of the five that 0 would like
            c.step()
            assert not any(c[i].leads for i in (0, 3, 4)), c.describe()
        for i in (1, 2):
            c.rejoin(i)
        c.run_until(lambda: any(n.leads and n.number in (1, 2, 3) for n in c.nodes))
        agreed(c, {1: 1, 2: 1, 3: 1})
        c.run_until(lambda: all(c[i].payloads == [b"decided by 1 and 2"] for i in (1, 2, 3)))
        c.check()


@pytest.mark.parametrize("holder", [1, 2])
def test_trap_25_configuration_change_straddling_a_leader_change_is_adopted(holder: int) -> None:
    with Cluster(4, delay_us=(1, 5), members=range(3)) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        c.run(2_000)
        for peer in {1, 2} - {holder}:
            c.hold(0, peer)
        c.hold(0, 3)
        index = old.propose_member(3, 1)
        assert index > 0
        c.advance(50)  # it stands in the logs of 0 and `holder`; nobody has decided it
        c.kill(0)
        assert c[holder].members == dict.fromkeys(range(3), 1)
        new = c.leader()  # three of the four are needed for that: 3 counts as soon as the record is in the log chosen
        assert new.commit > index
        c.commit(new, b"second")
        c.converge()
        assert all(n.members == dict.fromkeys(range(4), 1) for n in c.alive)
        assert config_records(c[3]) == [(3, lib.MEMBERSHIP_ADD, 1)]
        c.kill(3)
        index = new.propose(b"two of four")
        c.run(20_000)
        assert index < 0 or new.commit < index


def test_trap_25_configuration_change_straddling_a_leader_change_is_overwritten() -> None:
    with Cluster(4, delay_us=(1, 5), members=range(3)) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        c.run(2_000)
        for peer in (1, 2, 3):
            c.hold(0, peer)
        index = old.propose_member(3, 1)
        assert index > 0
        c.isolate(0)
        for peer in (1, 2, 3):
            c.release(0, peer)
        c.tell_down(0)
        c.run_until(lambda: c[1].leads)
        new = c[1]
        c.commit(new, b"second")
        assert new.commit > index and new.members == dict.fromkeys(range(3), 1)
        c.kill(2)
        c.run(5_000)  # 1 and 3 run; 3 is no member
        assert not new.leads
        c.rejoin(0)
        leader = c.leader()  # 0 or 1, by the two of them
        c.commit(leader, b"third")
        c.converge()
        for node in c.alive:
            assert node.members == dict.fromkeys(range(3), 1) and config_records(node) == []
            assert node.payloads == [b"first", b"second", b"third"]


def test_trap_25_configuration_change_straddling_a_leader_change_counts_in_the_log_that_was_chosen() -> None:
    """With a majority of the three that it knows, a candidate adopts the record that makes them four: too few."""
    with Cluster(4, delay_us=(1, 5), members=range(3)) as c:
        old = c.all_confirmed()
        c.run(2_000)
        c.hold(0, 1)
        index = old.propose_member(3, 1)
        assert index > 0
        c.advance(50)
        c.kill(0)
        c.kill(3)
        no_leader(c)
        assert c[1].commit < index and c[2].commit < index


def test_trap_25_configuration_change_straddling_a_leader_change_a_candidate_finds_its_own_removal() -> None:
    with Cluster(4, delay_us=(1, 5)) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        for i in (2, 3):
            lib.replica_set_eligible(c[i].replica, False)
        c.run(2_000)
        for peer in (1, 3):
            c.hold(0, peer)
        index = old.propose_member(1, 0)
        assert index > 0
        c.advance(50)  # in the logs of 0 and 2
        c.kill(0)
        no_leader(c)  # 1 has the permission of three, of whom two are a majority without it
        assert lib.sim_holder(c.sim, 2) == 1 and c[2].last == index
        lib.replica_set_eligible(c[2].replica, True)
        c.run_until(lambda: c[2].leads)
        c.commit(c[2], b"second")
        agreed(c, {0: 1, 2: 1, 3: 1})
        c.run_until(lambda: not c[1].is_member)
        c.check()


def test_trap_25_configuration_change_straddling_a_leader_change_a_removal_nobody_heard_was_decided() -> None:
    """{0, 1, 2, 3} without 3 is {0, 1, 2}: two are enough, also for followers who only have it in their logs."""
    with Cluster(4, delay_us=(1, 5)) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        c.kill(3)
        c.run_until(lambda: old.confirmed == {0, 1, 2})
        index = old.propose_member(3, 0)
        assert index > 0
        while old.commit < index:
            c.advance(10)
            old.poll()
        assert c[1].commit < index and c[2].commit < index
        c.kill(0)
        new = c.leader()
        c.commit(new, b"second")
        c.converge()
        assert new.members == {1: 1, 2: 1, 0: 1} and new.payloads == [b"first", b"second"]


def test_trap_25_configuration_change_straddling_a_leader_change_a_new_member_that_alone_has_it_leads() -> None:
    """{0, 1} and 2: decided by 0 and 2 while 1 stood still; then 0 dies, and only 2 knows that it is a member."""
    with Cluster(3, delay_us=(1, 5), members=range(2)) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        c.run(2_000)
        c.hold(0, 1)
        index = old.propose_member(2, 1)
        assert index > 0
        while old.commit < index:
            c.advance(10)
            old.poll()
        assert c[1].last < index and c[2].commit < index
        c.kill(0)
        new = c.leader()
        c.commit(new, b"second")
        c.converge()
        assert new.members == {0: 1, 1: 1, 2: 1} and c[1].payloads == [b"first", b"second"]


def leader_dies_during_a_change(slot: int, incarnation: int, at_us: int) -> tuple[bool, bool]:
    """Whether the leader saw the change decided, and whether it holds in the end."""
    with Cluster(5, delay_us=(1, 25), seed=at_us, members=range(4)) as c:
        leader = c.all_confirmed()
        c.commit(leader, b"first")
        c.run(2_000)
        index = leader.propose_member(slot, incarnation)
        assert index > 0
        c.advance(at_us)
        leader.poll()
        decided = leader.commit >= index
        c.kill(0, told=bool(at_us % 2))
        c.run_until(lambda: any(n.leads and n.commit >= index for n in c.alive))
        new = next(n for n in c.alive if n.leads)
        c.commit(new, b"second")
        after = {i: 1 for i in range(4) if i != slot} | ({slot: 1} if incarnation else {})
        taken = new.members == after
        assert taken or (new.members == dict.fromkeys(range(4), 1) and not decided)
        agreed(c, new.members)
        assert new.payloads == [b"first", b"second"]
        c.check()
        return decided, taken


@pytest.mark.parametrize(("slot", "incarnation"), [(4, 1), (3, 0), (0, 0)])
def test_trap_25_configuration_change_straddling_a_leader_change_at_every_moment(slot: int, incarnation: int) -> None:
    """The leader dies so long after it proposed the change: one of the two memberships holds everywhere."""
    outcomes = {leader_dies_during_a_change(slot, incarnation, at_us) for at_us in range(0, 120, 3)}
    assert outcomes >= {(False, False), (False, True), (True, True)}


# -- snapshots


def test_a_snapshot_carries_the_membership_at_its_index() -> None:
    with Cluster(4, ring_bytes=8192, piece_bytes=512, delay_us=(1, 5), members=range(3)) as c:
        leader = c.all_confirmed()
        before = leader.applied_members()
        assert before.index == 0
        index = c.change(leader, 3, 1)
        c.converge()
        assert leader.applied_members().index == index
        c[1].applies = False
        removed = c.change(leader, 3, 0)
        c.run_until(lambda: c[1].commit >= removed)
        assert c[1].members == dict.fromkeys(range(3), 1)
        assert c[1].applied_members().index == index  # what is applied there is of before
        c[1].applies = True
        c[1].apply()
        assert c[1].applied_members().index == removed
        c.isolate(2)
        c.tell_down(2)
        for _ in range(100):
            c.commit(leader, b"x" * 100)
        c.change(leader, 2, 0)
        c.rejoin(2)
        c.run_until(lambda: c[2].damage == lib.REPLICA_LAPPED)
        assert c[2].is_member  # so it believes
        c[2].install(leader)
        assert not c[2].is_member and c[2].members == {0: 1, 1: 1}
        c.run(20_000)
        assert leader.leads and 2 not in leader.confirmed
        c.restart(2, 2)
        c.run_until(lambda: c[2].damage == lib.REPLICA_LAPPED)
        c[2].install(leader)
        c.change(leader, 2, 2)
        c.run_until(lambda: c[2].is_member)
        c.check()
