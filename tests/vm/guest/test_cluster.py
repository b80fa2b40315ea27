"""A cluster over verbs on three hosts, under load: its leader is killed, stopped, and cut off."""

from __future__ import annotations

import os
import signal

import pytest

from tests.fault.clients import Crowd
from tests.vm.hosts_cluster import HostsBed, Siege, siege

TIME_LIMIT_S = 600  # of one test; it takes a fifth of that where nothing else runs
ROUNDS = 3


def stop_and_continue(s: Siege) -> None:
    """The leader stands still until another one serves, and goes on."""
    leader = s.leader()
    s.note(f"SIGSTOP of the leader, node {leader}")
    os.kill(s.bed.pids[leader], signal.SIGSTOP)
    try:
        s.served_again(leader)
    finally:
        os.kill(s.bed.pids[leader], signal.SIGCONT)
    s.well(leader)
    assert s.leader() != leader


def cut_off(s: Siege) -> None:
    """The leader's host vanishes from the network and closes nothing; then its cable is back."""
    leader = s.leader()
    s.note(f"both cables of the leader's host, {leader}, are out")
    s.bed.network.cut(leader)
    try:
        s.served_again(leader)
    finally:
        s.bed.network.mend(leader)
    s.note("both are in again")
    s.well(leader)


def kill(s: Siege) -> int:
    """The leader is gone for good. Returns which one it was."""
    leader = s.leader()
    s.note(f"SIGKILL of the leader, node {leader}")
    os.kill(s.bed.pids[leader], signal.SIGKILL)
    s.dead.add(leader)
    s.served_again(leader)
    return leader


def kill_and_start_again(s: Siege) -> None:
    """The leader dies, and comes back as another life of it, with nothing."""
    leader = kill(s)
    s.bed.revive(leader)
    s.dead.discard(leader)
    s.well(leader)


@pytest.mark.timeout(TIME_LIMIT_S)
def test_leaders_stopped_and_killed_and_a_cable_cut(bed: HostsBed, crowd: Crowd) -> None:
    """One cluster, one load, no pause between the strikes: three nodes take the guest long to start."""
    with siege(bed, crowd, 22) as s:
        for _ in range(ROUNDS):
            stop_and_continue(s)
            kill_and_start_again(s)
        cut_off(s)


@pytest.mark.slow
@pytest.mark.timeout(TIME_LIMIT_S)
@pytest.mark.parametrize("seed", range(1, 21))
def test_leader_stopped_and_continued_then_the_next_one_killed(bed: HostsBed, crowd: Crowd, seed: int) -> None:
    with siege(bed, crowd, seed) as s:
        stop_and_continue(s)
        kill(s)


@pytest.mark.slow
@pytest.mark.timeout(TIME_LIMIT_S)
def test_the_leaders_host_vanishes_and_comes_back(bed: HostsBed, crowd: Crowd) -> None:
    with siege(bed, crowd, 21) as s:
        cut_off(s)
