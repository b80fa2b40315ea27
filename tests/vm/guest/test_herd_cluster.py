"""A cluster of HERDs on three hosts, under load: its leader is killed and comes back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from musidecar.protocols.herd.connection import Status
from musidecar.testbed import wait_until
from tests.fault.clients import Crowd
from tests.fault.nursery import Nursery
from tests.vm import herd_double, hosts
from tests.vm.guest.test_cluster import kill_and_start_again
from tests.vm.herd_cluster import HerdBed
from tests.vm.hosts_cluster import CLIENT_PORT, WELL_AGAIN_S, Siege, siege

TIME_LIMIT_S = 3600 if herd_double.REAL else 600
KILLS, KILLS_LONG = 1, 10


@pytest.fixture
def bed(nursery: Nursery, network: hosts.Network, tmp_path: Path) -> Iterator[HerdBed]:
    with HerdBed(nursery, network, herd_double.main(tmp_path)) as one:
        yield one
    assert one.leftovers() == []


def lose_herd(s: Siege, bed: HerdBed) -> None:
    """The leader's HERD loses a reply, or a real one's workers die: its node steps down, and has it filled anew."""
    leader = s.leader()
    s.note(f"node {leader}, the leader, loses its HERD")
    workers = herd_double.processes(int(str(bed.says(leader)["backend_pid"])))[1]
    os.kill(workers, signal.SIGKILL if herd_double.REAL else signal.SIGUSR1)
    s.served_again(leader)
    s.well(leader)
    assert "HERD and the sidecar must be started together" in bed.log_of(leader)


def say_the_same_to_a_common_client(bed: HerdBed) -> None:
    """What one writes at a node, another reads at the next."""
    first, second = (redis.Redis(host=f"10.8.0.{host}", port=CLIENT_PORT, protocol=2) for host in (1, 2))
    with first, second:
        assert first.set("by redis-py", "v" * 33) and second.get("by redis-py") == b"v" * 33
        with pytest.raises(redis.ResponseError, match="HERD keeps values of up to 33 bytes"):
            first.set("by redis-py", "v" * 34)
        assert second.delete("by redis-py") == 1 and first.get("by redis-py") is None


def answered(counted: Status) -> bool:
    return counted.requests == counted.replies > 0


def kill_again_and_again(bed: HerdBed, crowd: Crowd, kills: int, seed: int) -> None:
    """What was acknowledged is there afterwards, at every node; and each HERD has answered all that it was asked."""
    with siege(bed, crowd, seed) as s:
        lose_herd(s, bed)
        for _ in range(kills):
            kill_and_start_again(s)
    say_the_same_to_a_common_client(bed)
    for host in bed.hosts:
        wait_until("it has answered all", lambda h=host: answered(bed.counted(h)), WELL_AGAIN_S)  # type: ignore[misc]
        counted = bed.counted(host)
        print(f"node {host}: {counted}", flush=True)
        assert counted.strays == counted.gone == 0
    print(s.story.text(), flush=True)


@pytest.mark.timeout(TIME_LIMIT_S)
def test_a_leader_loses_its_herd_and_another_is_killed(bed: HerdBed, crowd: Crowd) -> None:
    kill_again_and_again(bed, crowd, KILLS, 41)


@pytest.mark.slow
@pytest.mark.timeout(3 * TIME_LIMIT_S)
def test_leaders_are_killed_ten_times(bed: HerdBed, crowd: Crowd) -> None:
    kill_again_and_again(bed, crowd, KILLS_LONG, 42)
