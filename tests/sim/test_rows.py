"""What a replica that is stopped or killed leaves to the others, row by row (docs/proof.md), where the simulator can
show it; real processes are stopped in tests/fault. And traps 9 and 20: outcomes nobody knows, and completions.
"""

from __future__ import annotations

import pytest

from musidecar._ffi import lib
from tests.sim.cluster import Cluster

# -- rows


@pytest.mark.parametrize("holder", [1, 2])
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_row_04_decided_and_told_to_nobody(how: str, holder: int) -> None:
    """On a majority, of which one is gone: the next leader finds it, whether the other one is itself or not."""
    with Cluster(3, delay_us=(1, 5)) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        c.converge()
        c.hold(0, 3 - holder)
        index = old.propose(b"decided", origin=(0, 9, 4))
        while old.commit < index:
            c.advance(5)
            old.poll()
        assert max(c[1].commit, c[2].commit) < index
        if how == "kill":
            c.kill(0)
        else:
            c.stop(0)
        new = c.leader()
        assert new.number == 1
        c.commit(new, b"later")
        if how == "stop":
            c.release(0, 3 - holder)
            c.go_on(0)
        c.converge()
        for node in c.alive:
            assert node.payloads == [b"first", b"decided", b"later"]
            assert node.delivered[index - 1].origin == (0, 9, 4)


def test_row_06_a_stopped_follower_counts_but_grants_nothing() -> None:
    with Cluster(5, delay_us=(1, 5)) as c:
        old = c.all_confirmed()
        for peer in (3, 4):
            c.hold(0, peer)  # only the two that will be stopped make the majority
        for peer in (1, 2):
            c.stop(peer)
        index = old.propose(b"in the memory of the stopped")
        c.run_until(lambda: old.commit >= index, within_us=1_000)
        c.kill(0)
        c.run(50_000)
        assert not any(n.leads for n in c.alive)  # two are no majority, and the stopped answer no request
        c.go_on(1)
        new = c.leader()
        assert new.confirmed == {1, 3, 4}
        c.commit(new, b"found")
        c.go_on(2)
        c.run_until(lambda: new.confirmed == {1, 2, 3, 4})
        c.converge()
        assert c[4].payloads == [b"in the memory of the stopped", b"found"]


def test_row_08_an_owner_stopped_between_taking_and_giving() -> None:
    """Nobody holds that log: the leader loses one follower and goes on, and a candidate does without its answer."""
    with Cluster(5, delay_us=(1, 5)) as c:
        leader = c.all_confirmed()
        c.commit(leader, b"first")
        f = c[4].fabric
        f.ops.revoke(f)
        c.stop(4)
        before = bytes(c[4].log)
        c.commit(leader, b"second")
        c.run_until(lambda: leader.confirmed == {0, 1, 2, 3})
        c.kill(0)
        new = c.leader()
        c.commit(new, b"third")
        assert new.confirmed == {1, 2, 3}
        assert bytes(c[4].log) == before
        c.go_on(4)
        c.run_until(lambda: new.confirmed == {1, 2, 3, 4})
        c.converge()
        assert c[4].payloads == [b"first", b"second", b"third"]


@pytest.mark.parametrize("announced", [False, True])
@pytest.mark.parametrize("n", [3, 5])
def test_row_10_the_new_leader_stopped_with_its_permissions(n: int, announced: bool) -> None:
    """It asked, was granted a majority, and stands still before its first record: before its ballot is under way, or
    while it is."""
    with Cluster(n, delay_us=(5, 20)) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        c.converge()
        decided = c.commit(old, b"decided")
        c.stop(0)
        term = c[1].term
        if announced:
            c.run_until(lambda: c[1].head.min_proposal >> 8 > term)
        else:
            c.run_until(lambda: lib.replica_takeover_times(c[1].replica).permitted_us > 0)
        assert c[1].role == lib.REPLICA_CANDIDATE
        c.stop(1)
        granted = [i for i in range(2, n) if lib.sim_holder(c.sim, i) == 1]
        assert granted
        if n == 3:
            c.go_on(0)  # without it there is no majority
        new = c.leader()
        assert new.number != 1
        index = c.commit(new, b"second")
        logs = [bytes(c[i].log) for i in granted]
        lib.sim_freeze(c.sim, 1, False)  # what it had posted goes on, nobody else does
        c.advance(1_000)
        assert [bytes(c[i].log) for i in granted] == logs
        c[1].running = True
        if n == 5:
            c.go_on(0)
        c.all_confirmed()
        c.converge()
        assert c[1].payloads == [b"first", b"decided", b"second"]
        assert c[1].delivered[decided - 1].payload == b"decided" and c[1].delivered[index - 1].payload == b"second"


# -- trap 9: nobody knows whether it was done


@pytest.mark.parametrize("landed", [(), (1,), (2,), (1, 2)])
def test_trap_09_an_attempt_that_was_given_up_is_done_once_or_never(landed: tuple[int, ...]) -> None:
    """It is at most once in the log, and whatever the client does then is told apart by its origin, everywhere."""
    with Cluster(3, delay_us=(1, 5)) as c:
        old = c.all_confirmed()
        c.commit(old, b"first")
        c.converge()
        for peer in (1, 2):
            if peer not in landed:
                c.hold(0, peer)
        index = old.propose(b"attempt", origin=(0, 7, 1))
        c.advance(20)
        c.stop(0)
        new = c.leader()
        retry = c.commit(new, b"attempt", origin=(1, 7, 1))
        for peer in (1, 2):
            c.release(0, peer)
        c.go_on(0)
        c.all_confirmed()
        c.run(20_000)  # the old leader has every chance to propose it once more
        c.converge()
        attempts = [(r.index, r.origin) for r in c[0].delivered if r.payload == b"attempt"]
        first = [(index, (0, 7, 1))]
        assert attempts == (first if landed else []) + [(retry, (1, 7, 1))]


# -- trap 20: completions


@pytest.mark.parametrize("lost", [1, 2])
def test_trap_20_an_error_that_comes_late_still_counts(lost: int) -> None:
    """Every post is completed on its own: what was behind a failed one is no acknowledgement, however many are."""
    with Cluster(3, delay_us=(5, 5)) as c:
        leader = c.all_confirmed()
        c.commit(leader, b"first")
        c.hold(0, 3 - lost)  # the majority depends on the one that is about to fail
        before = leader.commit
        f = c[lost].fabric
        f.ops.revoke(f)
        for i in range(50):
            assert leader.propose(b"%d" % i) > 0
        c.advance(20)
        assert leader.leads  # it has not polled
        leader.poll()
        assert leader.commit == before
        c.release(0, 3 - lost)
        c.run_until(lambda: any(n.leads for n in c.nodes))
        c.all_confirmed()
        c.converge()


def test_trap_20_a_queue_to_a_slow_follower_does_not_overflow() -> None:
    """Beyond so many posts in flight it is fed in larger ones; the majority is not held up meanwhile."""
    with Cluster(3, ring_bytes=1 << 20) as c:
        leader = c.all_confirmed()
        c.hold(0, 2)
        posts, sent = lib.sim_posts(c.sim), 3_000
        for i in range(sent):
            index = leader.propose(b"%d" % i)
            leader.poll()
            assert leader.commit == index > 0
        assert lib.sim_posts(c.sim) - posts < sent + 600  # one for each to node 1, a queue's worth to node 2
        c.release(0, 2)
        c.run_until(lambda: leader.confirmed == {0, 1, 2})
        c.converge()
        assert c[2].payloads == [b"%d" % i for i in range(sent)]


@pytest.mark.parametrize("needed", [False, True])
def test_trap_20_probes_of_a_slow_follower_do_not_overflow_its_queue(needed: bool) -> None:
    """However many reads there are; and when it answers at last, the last of them is answered, too."""
    with Cluster(3) as c:
        leader = c.all_confirmed()
        if needed:
            c.kill(1)
            c.run_until(lambda: leader.leads and leader.confirmed == {0, 2})
        c.hold(0, 2)
        posts, probe = lib.sim_posts(c.sim), 0
        for _ in range(3_000):
            probe = lib.replica_probe(leader.replica)
            leader.poll()
            assert needed or lib.replica_probed(leader.replica) == probe > 0
        assert lib.sim_posts(c.sim) - posts < (0 if needed else 3_000) + 600
        c.release(0, 2)
        c.run_until(lambda: lib.replica_probed(leader.replica) >= probe)


@pytest.mark.parametrize("seed", range(4))
def test_trap_20_what_is_under_way_is_not_overwritten(seed: int) -> None:
    """Longer posts are read from the ring when they land: it must not have gone on under a follower that counts."""
    with Cluster(3, ring_bytes=4096, piece_bytes=512, delay_us=(1, 5), part_bytes=64, seed=seed) as c:
        leader = c.all_confirmed()
        c.isolate(1)  # every commit depends on the slow one
        lib.sim_set_slow(c.sim, 0, 2, 1_000)
        sent = 0
        while sent < 150 + seed:
            sent += leader.propose((b"%d " % sent) * 90) > 0
            c.step(40)
        assert leader.leads
        committed = [r.contents for r in leader.delivered]
        c.kill(0)
        c.rejoin(1)
        c.run_until(lambda: c[1].damage == lib.REPLICA_LAPPED)
        c[1].install(c[2])  # it has nothing to add: what the slow one holds is all there is
        c.commit(c.leader(), b"last")
        c.converge()
        assert [r.contents for r in c[2].delivered[: len(committed)]] == committed


@pytest.mark.parametrize("seed", range(4))
def test_trap_20_what_the_ring_went_over_before_it_was_read_does_not_count(seed: int) -> None:
    """The ring does not wait for a follower that is only being fed what it missed: what is read too late is not what
    was posted, however well the post completes."""
    with Cluster(3, ring_bytes=4096, piece_bytes=512, delay_us=(5, 10), part_bytes=64, seed=seed) as c:
        leader = c.all_confirmed()
        c.isolate(2)
        c.run_until(lambda: leader.confirmed == {0, 1})
        for i in range(6):
            c.commit(leader, b"missed %d " % i * 55)  # most of the ring
        c.rejoin(2)
        c.run_until(lambda: leader.confirmed == {0, 1, 2})
        c.hold(0, 2)  # it is being fed
        c.isolate(1)
        c.run_until(lambda: leader.confirmed == {0, 2})
        index = leader.propose(b"to be decided by the one that is fed " * 12)
        c.step()
        assert leader.propose(b"over the first of what is under way " * 12) > index > 0
        c.release(0, 2)
        c.run_until(lambda: not leader.leads or leader.commit >= index)
        assert leader.commit < index or c[2].commit >= index - 1
        c.rejoin(1)
        c.run_until(lambda: c[2].damage == lib.REPLICA_LAPPED)
        c[2].install(c.leader())
        c.converge()
