"""A node is killed in an exact phase of a commit (ffi/failpoint.h) and started again at once, with empty memory, under
load: nothing acknowledged is missing or doubled, and it becomes a voter again (trap 22)."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator

import pytest

from musidecar.bench.failover import await_traffic
from musidecar.testbed import NodeStatus, wait_until
from musidecar.workload import Load, spread, verify
from tests.fault import plants
from tests.fault.cluster import another_serves, leader_of
from tests.fault.nursery import Cradle, Nursery
from tests.fault.test_rejoin import REJOIN_S, assert_equal, rejoined

PHASES = ("before-hazard", "before-store", "before-tail", "after-store", "settled")
COPIES = 6  # writes to the followers' logs at which it may be: of a record to one or the other, of a commit index
RATE = 3000.0


@pytest.fixture(scope="module")
def stoppable() -> Iterator[Nursery]:
    """Of nodes of the test build."""
    with Nursery(plants.environment()) as one:
        yield one


def kill(bed: Cradle, node: NodeStatus) -> None:
    """The sidecar, and its server with it."""
    pid = bed.pids[int(node.id)]
    os.kill(pid, signal.SIGKILL)
    wait_until("it is gone", lambda: not bed.alive(int(node.id)), 5)


def forget(bed: Cradle, phase: str, passes: int, victim: str) -> None:
    """The leader stops itself in that phase. It is killed there, or a follower is meanwhile, and comes back empty."""
    before = bed.wait_status("all are members", rejoined, REJOIN_S)
    leader, followers = leader_of(before), before.followers
    pid = bed.pids[int(leader.id)]
    plants.arm(pid, phase, passes)
    plants.await_stop(pid)
    lost = {"leader": leader, "one": followers[0], "other": followers[1]}[victim]
    try:
        kill(bed, lost)
        bed.revive(int(lost.id))
    finally:
        if lost is not leader:
            os.kill(pid, signal.SIGCONT)
    after = bed.wait_status("it is a member again", rejoined, REJOIN_S)
    assert after[lost.id].more["incarnation"] > lost.more["incarnation"]


def ends_well(bed: Cradle, load: Load) -> None:
    """Writes go on; then nothing acknowledged is missing or doubled, and all nodes hold the same."""
    before = sum(load.counts())
    wait_until("writes go on", lambda: sum(load.counts()) > before + 200, 20)
    history = load.finish()
    assert_equal(bed)
    for node in bed.status().nodes:
        verdict = verify(history, bed.client(node))
        assert not verdict.lost and not verdict.doubled, verdict.troubles


def run(nursery: Nursery, moments: list[tuple[str, int, str]]) -> None:
    with contextlib.ExitStack() as stack:
        bed = stack.enter_context(Cradle(nursery, 3))
        status = bed.status()
        load = stack.enter_context(Load(spread([node.client_address for node in status.nodes], 2, rate=RATE)))
        load.wait_for(100)
        for phase, passes, victim in moments:
            forget(bed, phase, passes, victim)
        ends_well(bed, load)
    assert bed.leftovers() == []


def test_the_backend_that_led_last_goes_on_where_no_other_follows_the_log(nursery: Nursery) -> None:
    """The leader stands still, another one leads; the third node forgets, with it the majority is gone; the first goes
    on. Both backends have led and were overthrown, the third one is empty: none can be filled from another."""
    with contextlib.ExitStack() as stack:
        bed = stack.enter_context(Cradle(nursery, 3))
        before = bed.status()
        leader = leader_of(before)
        load = stack.enter_context(Load(spread([node.client_address for node in before.nodes], 2, rate=RATE)))
        load.wait_for(100)
        os.kill(bed.pids[int(leader.id)], signal.SIGSTOP)
        try:
            after = another_serves(bed, before)
            await_traffic(load, [i for i, node in enumerate(before.nodes) if node.id != leader.id], 20)
            second = leader_of(after)
            third = next(node for node in before.nodes if node.id not in (leader.id, second.id))
            kill(bed, third)
            bed.wait_status("it has stepped down", lambda s: s[second.id].role != "leader")
        finally:
            os.kill(bed.pids[int(leader.id)], signal.SIGCONT)
        bed.revive(int(third.id))
        bed.wait_status("all are members", rejoined, REJOIN_S)
        resumed = "this one led last, and goes on with what it has done since"
        assert resumed in (bed.dir / f"{second.id}.log").read_text()
        ends_well(bed, load)
    assert bed.leftovers() == []


@pytest.mark.parametrize("victim", ["leader", "one", "other"])
def test_trap_22_a_node_forgets_in_every_phase_of_a_commit(stoppable: Nursery, victim: str) -> None:
    run(stoppable, [(phase, number % 2, victim) for number, phase in enumerate(PHASES)])


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(4))
def test_trap_22_in_every_phase_of_a_commit_and_of_each_copy(stoppable: Nursery, seed: int) -> None:
    moments = [(phase, passes, victim) for phase in PHASES for passes in range(COPIES) for victim in
               ("leader", "one", "other")]  # fmt: skip
    random.Random(seed).shuffle(moments)
    run(stoppable, moments)
