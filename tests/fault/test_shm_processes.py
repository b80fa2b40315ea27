"""The shm fabric between real processes that are stopped, continued and killed in the middle of a write."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from musidecar._ffi import ffi, lib
from tests.fault.shm_cluster import DONE, DOWN, FLUSHED, KILL, LOG_BYTES, REFUSED, USERFAULTFD, Process, Three, link


@pytest.fixture
def three() -> Iterator[Three]:
    cluster = Three()
    yield cluster
    cluster.end()


@pytest.fixture(params=[USERFAULTFD, KILL], ids=["userfaultfd", "kill"])
def fenced(request: pytest.FixtureRequest) -> Iterator[Three]:
    """A cluster of each fence, hazard wait a millisecond."""
    if request.param == USERFAULTFD and not lib.shm_fence_check(ffi.NULL, 0):
        pytest.skip("no userfaultfd here")
    cluster = Three(fence=request.param, hazard_us=1000)
    yield cluster
    cluster.end()


@pytest.fixture
def barring() -> Iterator[Three]:
    """A cluster whose fence lets the writer live."""
    if not lib.shm_fence_check(ffi.NULL, 0):
        pytest.skip("no userfaultfd here")
    cluster = Three(fence=USERFAULTFD, hazard_us=1000)
    yield cluster
    cluster.end()


def fence_of(cluster: Three) -> int:
    return int(cluster.members[0].get("counters", "fence"))


# -- the ordinary way


def test_writes_land_in_the_other_process(three: Three) -> None:
    a, b, c = three.members
    three.permit(1, 0)
    three.permit(2, 0)
    a.ask("write", peer=1, offset=0, byte=7, length=1000)
    a.ask("write", peer=2, offset=64, byte=8, length=1000)
    assert a.statuses() == [DONE, DONE]
    assert b.log[:1001] == bytes([7]) * 1000 + b"\0"
    assert c.log[63:1065] == b"\0" + bytes([8]) * 1000 + b"\0"
    b.ask("revoke")
    a.ask("write", peer=1, offset=0, byte=9, length=8)
    a.ask("write", peer=1, offset=0, byte=9, length=8)
    a.ask("write", peer=2, offset=0, byte=9, length=8)
    assert a.statuses() == [REFUSED, FLUSHED, DONE]
    assert b.log[:8] == bytes([7]) * 8
    three.permit(1, 0)
    a.ask("write", peer=1, offset=0, byte=10, length=8)
    assert a.statuses() == [DONE]
    assert b.log[:8] == bytes([10]) * 8


# -- writers stopped in mid-write


def test_row_03_a_writer_stopped_in_its_burst_stores_nothing_more(fenced: Three) -> None:
    a, b, c = fenced.members
    kind = fence_of(fenced)
    fenced.permit(1, 0)
    a.ask("write", peer=1, offset=0, byte=1, length=LOG_BYTES // 2)  # and no poll: the burst stays open
    a.stop()
    b.ask("revoke")
    assert b.get("counters", "fences") == 1
    epoch = b.get("grant", "epoch", peer=2)
    c.ask("accept", peer=1, epoch=epoch)
    c.ask("write", peer=1, offset=0, byte=2, length=64)
    assert c.statuses() == [DONE]
    decided = b.log[:]
    if kind == KILL:
        assert a.process.wait(60) == -signal.SIGKILL
        assert c.get("deaths", "dead", count=1) == [0]
        assert b.get("deaths", "dead", count=1) == [0]
    else:
        a.resume()
        for offset in (0, 32, LOG_BYTES // 4, LOG_BYTES - 64):
            a.ask("write", peer=1, offset=offset, byte=3, length=64)
        assert a.statuses() == [REFUSED] + [FLUSHED] * 4
        a.ask("write", peer=1, offset=0, byte=3, length=64)
        assert a.statuses() == [FLUSHED]
    assert b.log[:] == decided


def test_a_fenced_writer_writes_again_after_a_new_grant(barring: Three) -> None:
    a, b, _ = barring.members
    for round_ in range(1, 4):
        barring.permit(1, 0)
        a.ask("write", peer=1, offset=0, byte=round_, length=64)
        a.stop()
        b.ask("revoke")
        assert b.get("counters", "fences") == round_
        a.resume()
        assert a.statuses() == [REFUSED]
    barring.permit(1, 0)
    a.ask("write", peer=1, offset=0, byte=9, length=LOG_BYTES)
    assert a.statuses() == [DONE]
    assert b.log[:] == bytes([9]) * LOG_BYTES


def test_trap_01_a_grant_to_a_writer_still_stopped_in_its_burst_lets_nothing_old_land(barring: Three) -> None:
    """It asked before it was stopped, and is answered while it stands: its old stores must not profit."""
    a, b, _ = barring.members
    barring.permit(1, 0)
    a.ask("write", peer=1, offset=0, byte=1, length=64)
    a.stop()
    b.ask("revoke")
    epoch = b.get("grant", "epoch", peer=0)
    a.resume()
    a.ask("write", peer=1, offset=0, byte=2, length=64)
    assert b.log[:64] == bytes([1]) * 64
    a.ask("accept", peer=1, epoch=epoch)
    assert a.statuses() == [REFUSED, FLUSHED]
    a.ask("write", peer=1, offset=0, byte=3, length=64)
    assert a.statuses() == [REFUSED], "still barred: it has to ask once more"
    barring.permit(1, 0)
    a.ask("write", peer=1, offset=0, byte=4, length=64)
    assert a.statuses() == [DONE]
    assert b.log[:64] == bytes([4]) * 64


@pytest.mark.parametrize("kind", [USERFAULTFD, KILL], ids=["userfaultfd", "kill"])
def test_row_02_writers_stopped_anywhere_in_a_copy(kind: int) -> None:
    """A writer that copies megabytes all the time is stopped at any moment: what it says was done is there, and from
    the revocation on its log does not change."""
    if kind == USERFAULTFD and not lib.shm_fence_check(ffi.NULL, 0):
        pytest.skip("no userfaultfd here")
    log_bytes = 4 << 20
    cluster = Three(fence=kind, log_bytes=log_bytes)
    try:
        a, b, _ = cluster.members
        for round_ in range(12 if kind == USERFAULTFD else 1):
            cluster.permit(1, 0)
            a.tell("flood", peer=1, length=log_bytes)
            start = b.log[:8]
            while b.log[:8] in (start, bytes(8)) or int.from_bytes(b.log[:8], "little") < 3:
                os.sched_yield()
            time.sleep(0.0007 * round_)  # a different place in the copy each time
            a.stop()
            b.ask("revoke")
            then = b.log[:]
            if kind == KILL and b.get("counters", "fences"):
                assert a.process.wait(60) == -signal.SIGKILL
            else:
                a.resume()
                answer, _ = a.hear()
                assert answer["status"] == REFUSED
                numbers = {int.from_bytes(then[i : i + 8], "little") for i in range(0, log_bytes, 4096)}
                assert min(numbers) >= answer["done"] and max(numbers) <= answer["done"] + 1
            assert b.log[:] == then
    finally:
        cluster.end()


def test_a_writer_that_runs_is_revoked_without_harm(three: Three) -> None:
    """Not stopped, only busy: it finds out by itself, or is fenced, and lives on."""
    a, b, _ = three.members
    for _ in range(30):
        three.permit(1, 0)
        start = b.log[:64]
        a.tell("flood", peer=1, length=64)
        while b.log[:64] == start:
            os.sched_yield()
        b.ask("revoke")
        then = b.log[:64]
        answer, _ = a.hear()
        assert answer["status"] == REFUSED
        assert answer["done"] <= int.from_bytes(then[:8], "little") <= answer["done"] + 1
        assert b.log[:64] == then


# -- death


@pytest.mark.parametrize("how", ["kill", "leave", "free"])
def test_row_07_every_peer_hears_of_a_death(three: Three, how: str) -> None:
    a, b, c = three.members
    three.permit(2, 0)
    three.permit(2, 1)
    if how == "kill":
        os.kill(c.pid, signal.SIGKILL)
    else:
        c.tell(how)
    assert a.get("deaths", "dead", count=1) == [2]
    assert b.get("deaths", "dead", count=1) == [2]
    b.ask("write", peer=2, offset=0, byte=1, length=8)
    b.ask("write", peer=2, offset=0, byte=1, length=8, region=1)
    statuses = b.statuses()
    assert statuses[0] == DOWN and set(statuses) <= {DOWN, FLUSHED}
    three.permit(1, 0)
    a.ask("write", peer=1, offset=0, byte=1, length=8)
    assert a.statuses() == [DONE], "the others go on"


def test_row_06_a_stopped_process_is_not_dead_and_a_stopped_one_killed_is(three: Three) -> None:
    a, b, c = three.members
    three.permit(2, 0)
    c.stop()
    a.ask("write", peer=2, offset=0, byte=1, length=8)
    assert a.statuses() == [DONE], "its memory works, as that of a stopped host behind a working card"
    os.kill(c.pid, signal.SIGKILL)
    assert a.get("deaths", "dead", count=1) == [2]
    assert b.get("deaths", "dead", count=1) == [2]
    a.ask("write", peer=2, offset=0, byte=1, length=8)
    assert a.statuses() == [DOWN]


def test_row_05_a_writer_killed_in_its_burst_needs_no_fence(three: Three) -> None:
    a, b, c = three.members
    three.permit(1, 0)
    a.ask("write", peer=1, offset=0, byte=1, length=64)
    os.kill(a.pid, signal.SIGKILL)
    assert b.get("deaths", "dead", count=1) == [0]
    three.permit(1, 2)
    assert b.get("counters", "fences") == 0, "its hazard word stands for ever, its death is proved"
    c.ask("write", peer=1, offset=0, byte=2, length=64)
    assert c.statuses() == [DONE]
    assert b.log[:64] == bytes([2]) * 64


def test_both_others_killed_at_once(three: Three) -> None:
    a, b, c = three.members
    os.kill(b.pid, signal.SIGKILL)
    os.kill(c.pid, signal.SIGKILL)
    assert a.get("deaths", "dead", count=2) == [1, 2]


def test_trap_22_a_killed_node_comes_back_as_another_incarnation(three: Three) -> None:
    a, b, c = three.members
    three.permit(1, 0)
    b.end()
    for other in (a, c):
        assert other.get("deaths", "dead", count=1) == [1]
    again = three.members[1] = Process(1, 3, LOG_BYTES, 0, 50)
    link(a, again)
    link(again, c)
    assert again.get("enter") == 0
    a.ask("write", peer=1, offset=0, byte=1, length=64)
    assert a.statuses() == [REFUSED]
    assert not any(again.log[:64])
    three.permit(1, 0)
    a.ask("write", peer=1, offset=0, byte=1, length=64)
    assert a.statuses() == [DONE]
    assert again.log[:64] == bytes([1]) * 64
    again.process.kill()
    assert c.get("deaths", "dead", count=1) == [1]
