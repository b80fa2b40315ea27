"""A leader that stands still in the middle of a write, exactly where it hurts: between its permission check and its
store, in the store, and between the store and its completion. It is fenced, another one writes, it goes on: nothing of
it lands, and it does not take its write for done."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from musidecar._ffi import ffi, lib
from tests.fault import plants
from tests.fault.shm_cluster import DONE, FLUSHED, REFUSED, USERFAULTFD, Three

ROUNDS = 200
LENGTH = 256


@pytest.fixture(scope="module")
def stoppable() -> Iterator[Three]:
    """Members of the test build whose fence lets a writer live."""
    if not lib.shm_fence_check(ffi.NULL, 0):
        pytest.skip("no userfaultfd here")
    cluster = Three(fence=USERFAULTFD, hazard_us=200, env=plants.environment())
    yield cluster
    cluster.end()


def stop_at(cluster: Three, place: str, offset: int, byte: int) -> None:
    """The writer, node 0, begins a write into the log of node 1 and stops itself at that place."""
    writer = cluster.members[0]
    plants.arm(writer.pid, place)
    writer.tell("write", peer=1, offset=offset, byte=byte, length=LENGTH)
    if place in ("after-store", "settled"):
        writer.hear()
        writer.tell("poll")
    plants.await_stop(writer.pid)


@pytest.mark.parametrize("place", ["before-store", "before-tail", "after-store"])
def test_trap_01_a_leader_stopped_in_mid_write_lands_nothing_after_its_fence(stoppable: Three, place: str) -> None:
    """ROUNDS times in a row on the same processes, at random places of the log."""
    writer, owner, successor = stoppable.members
    chance = random.Random(place)
    for round_ in range(ROUNDS):
        offset = chance.randrange(0, len(owner.log) - LENGTH, 8)
        late, before, after = chance.sample(range(1, 256), 3)
        stoppable.permit(1, 0)
        writer.ask("write", peer=1, offset=offset, byte=before, length=LENGTH)
        assert writer.statuses() == [DONE], round_
        fences = owner.get("counters", "fences")
        stop_at(stoppable, place, offset, late)
        landed = {"before-store": 0, "before-tail": LENGTH - 8, "after-store": LENGTH}[place]
        assert owner.log[offset : offset + LENGTH] == bytes([late]) * landed + bytes([before]) * (LENGTH - landed)

        owner.ask("revoke")
        assert owner.get("counters", "fences") == fences + 1
        epoch = owner.get("grant", "epoch", peer=2)
        successor.ask("accept", peer=1, epoch=epoch)
        successor.ask("write", peer=1, offset=offset, byte=after, length=LENGTH // 2)
        assert successor.statuses() == [DONE]
        decided = owner.log[:]

        plants.resume(writer.pid)
        answer, _ = writer.hear()
        statuses = answer.get("statuses") or writer.statuses()
        assert statuses == [REFUSED], (place, round_)
        writer.ask("write", peer=1, offset=offset, byte=late, length=LENGTH)
        assert writer.statuses() == [FLUSHED]
        assert owner.log[:] == decided, (place, round_)


def test_the_fence_is_what_keeps_it_out(stoppable: Three) -> None:
    """Without a revocation the same write lands: the test above can fail."""
    writer, owner, _ = stoppable.members
    for place in ("before-store", "before-tail", "after-store"):
        stoppable.permit(1, 0)
        stop_at(stoppable, place, 0, 77)
        plants.resume(writer.pid)
        answer, _ = writer.hear()
        assert (answer.get("statuses") or writer.statuses()) == [DONE]
        assert owner.log[:LENGTH] == bytes([77]) * LENGTH
        stoppable.permit(1, 0)
        writer.ask("write", peer=1, offset=0, byte=1, length=LENGTH)
        assert writer.statuses() == [DONE]
