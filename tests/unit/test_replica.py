"""What `replica.h` promises to whoever drives a replica, call by call; scenarios are in tests/sim."""

from __future__ import annotations

import faulthandler
import os
import signal
from typing import Any

import pytest

from musidecar._ffi import ffi, lib
from tests.sim.cluster import NOBODY, TICK_US, Cluster


@pytest.fixture
def c() -> Any:
    with Cluster(3, ring_bytes=1 << 16) as cluster:
        yield cluster


def origin(sequence: int = 1) -> Any:
    return ffi.new("struct record_origin *", {"node": 0, "stream": 3, "sequence": sequence})[0]


class TestLayout:
    def test_every_word_of_the_log_head_has_a_line_of_its_own(self) -> None:
        names = ("min_proposal", "commit", "probe")
        assert [ffi.offsetof("struct replica_log_head", name) for name in names] == [0, 64, 128]
        assert ffi.sizeof("struct replica_log_head") <= lib.REPLICA_RING_OFFSET

    def test_every_writer_of_the_background_has_lines_of_its_own(self) -> None:
        assert ffi.offsetof("struct replica_background", "status") == 0
        assert ffi.offsetof("struct replica_background", "progress") == 64
        for name in ("replica_status", "replica_progress", "replica_request", "replica_ack"):
            assert ffi.sizeof(f"struct {name}") == 64
        assert lib.replica_background_bytes() == ffi.sizeof("struct replica_background")

    def test_the_ring_has_an_overhang_for_the_longest_record(self, c: Cluster) -> None:
        ring, longest = c.config["ring_bytes"], lib.record_span(c.config["piece_bytes_max"])
        assert c.log_bytes >= lib.REPLICA_RING_OFFSET + ring + longest


@pytest.mark.parametrize(
    "wrong",
    [
        {"nodes": 0},
        {"nodes": 9},
        {"self": 3},
        {"ring_bytes": 10_000},
        {"ring_bytes": 512},
        {"piece_bytes_max": 1 << 16},
        {"piece_bytes_max": 0},
        {"request_us": 0},
        {"suspect_us": 9_000},
    ],
)
def test_an_impossible_configuration_is_refused(c: Cluster, wrong: dict[str, int]) -> None:
    config = ffi.new("struct replica_config *", c.config | {"self": 0} | wrong)
    log, background = lib.sim_log(c.sim, 0), lib.sim_background(c.sim, 0)
    assert lib.replica_new(config, lib.sim_fabric(c.sim, 0), log, background) == ffi.NULL


class TestProposing:
    def test_only_the_leader_proposes(self, c: Cluster) -> None:
        assert c[0].propose(b"early") == lib.REPLICA_NOT_LEADER
        assert lib.replica_reserve(c[0].replica, 1, 10) == ffi.NULL
        assert lib.replica_probe(c[0].replica) == 0
        leader = c.all_confirmed()
        assert leader.propose(b"right") == 2  # behind the term's NOOP
        assert c[1].propose(b"elsewhere") == lib.REPLICA_NOT_LEADER

    def test_a_reserved_place_is_filled_and_proposed(self, c: Cluster) -> None:
        leader = c.all_confirmed()
        place = lib.replica_reserve(leader.replica, lib.RECORD_COMMAND, 1000)
        ffi.memmove(place, b"written in place", 16)
        index = lib.replica_propose_reserved(leader.replica, lib.RECORD_COMMAND, lib.RECORD_MORE, origin(9), 16)
        c.run_until(lambda: leader.commit >= index)
        c.converge()
        record = c[2].delivered[-1]
        assert (record.payload, record.flags, record.origin) == (b"written in place", lib.RECORD_MORE, (0, 3, 9))

    def test_a_place_is_given_away_until_anything_else_is_proposed(self, c: Cluster) -> None:
        """Both would be written there: the process ends rather than spoil a record."""
        leader = c.all_confirmed()
        child = os.fork()
        if child == 0:
            faulthandler.disable()  # what follows is meant
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            lib.replica_reserve(leader.replica, lib.RECORD_COMMAND, 100)
            leader.propose(b"something else")
            lib.replica_propose_reserved(leader.replica, lib.RECORD_COMMAND, 0, origin(9), 16)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGABRT

    def test_too_long_and_full_are_told_apart(self, c: Cluster) -> None:
        leader = c.all_confirmed()
        longest = c.config["piece_bytes_max"]
        assert leader.propose(b"x" * (longest + 1)) == lib.REPLICA_TOO_LARGE
        assert lib.replica_reserve(leader.replica, 1, longest + 1) == ffi.NULL
        taken = 0
        while (index := leader.propose(b"x" * longest)) > 0:
            taken += 1
        assert index == lib.REPLICA_FULL
        ring = c.config["ring_bytes"]
        free = lib.replica_free_bytes(leader.replica)
        assert ring // 4 <= free < ring // 4 + lib.record_span(longest)  # COMMANDs leave the last quarter
        while leader.propose(b"x" * longest, kind=lib.RECORD_EFFECT) > 0:
            taken += 1
        assert lib.replica_free_bytes(leader.replica) >= ring // 16  # and nothing but a NOOP takes the last of it
        c.run_until(lambda: lib.replica_free_bytes(leader.replica) > ring // 2)
        c.converge()
        assert len(c[1].payloads) == taken

    def test_trap_20_nothing_is_committed_before_its_completion_is_polled(self) -> None:
        with Cluster(3, delay_us=(10, 10)) as c:
            leader = c.all_confirmed()
            index = leader.propose(b"on its way")
            before = leader.commit
            c.advance(19)  # landed, but no answer yet
            leader.poll()
            assert leader.commit == before < index
            c.advance(1)
            leader.poll()
            assert leader.commit == index

    def test_commit_index_is_told_to_idle_followers(self, c: Cluster) -> None:
        leader = c.all_confirmed()
        c.converge()
        index = leader.propose(b"last")
        leader.poll()
        assert leader.commit == index
        c[1].poll()
        assert c[1].commit == index - 1  # the record came with the commit index of its proposal
        lib.replica_flush_commit(leader.replica)
        leader.poll()
        c[1].poll()
        assert c[1].commit == index and c[1].payloads == [b"last"]
        posts = lib.sim_posts(c.sim)
        lib.replica_flush_commit(leader.replica)
        assert lib.sim_posts(c.sim) == posts  # nothing new to tell

    def test_what_is_handed_out_stays_until_it_is_applied(self, c: Cluster) -> None:
        leader = c.all_confirmed()
        leader.applies = False
        c.commit(leader, b"stay")
        index = leader.applied_point()[0]
        assert index < leader.commit
        leader.apply()
        assert leader.applied_point()[0] == leader.commit


class TestProbes:
    def test_a_probe_is_done_when_a_majority_answered(self) -> None:
        with Cluster(3, delay_us=(10, 10)) as c:
            leader = c.all_confirmed()
            lib.sim_set_slow(c.sim, 0, 2, 5_000)
            first = lib.replica_probe(leader.replica)
            second = lib.replica_probe(leader.replica)
            assert second == first + 1
            assert lib.replica_probed(leader.replica) < first
            c.advance(20)
            leader.poll()
            assert lib.replica_probed(leader.replica) == second

    def test_alone_it_is_its_own_majority(self) -> None:
        with Cluster(1) as c:
            leader = c.all_confirmed()
            probe = lib.replica_probe(leader.replica)
            assert lib.replica_probed(leader.replica) == probe
            assert leader.propose(b"x") == leader.commit == 2


class TestLooking:
    def test_before_anything_happened(self, c: Cluster) -> None:
        node = c[0]
        assert (node.role, node.commit, node.last, node.term, node.damage) == (0, 0, 0, 0, lib.REPLICA_SOUND)
        assert lib.replica_leader(node.replica) == NOBODY
        assert lib.replica_alive(node.replica) == 1
        assert lib.replica_confirmed(node.replica) == 0
        assert lib.replica_deadline_us(node.replica) == 2**64 - 1

    def test_everybody_names_the_leader_and_its_term(self, c: Cluster) -> None:
        leader = c.all_confirmed()
        c.converge()
        assert {lib.replica_leader(n.replica) for n in c.nodes} == {0}
        assert {n.term for n in c.nodes} == {leader.term} == {1}
        assert {lib.replica_alive(n.replica) for n in c.nodes} == {7}
        assert {n.hash for n in c.nodes} == {leader.hash}
        assert leader.confirmed == {0, 1, 2} and c[1].confirmed == set()

    def test_suspicion_comes_before_the_verdict(self, c: Cluster) -> None:
        c.all_confirmed()
        c.stop(2)
        c.run_until(lambda: lib.replica_suspects(c[0].replica) == 4)
        assert lib.replica_alive(c[0].replica) == 7
        c.run_until(lambda: lib.replica_alive(c[0].replica) == 3)
        c.go_on(2)
        c.run_until(lambda: lib.replica_alive(c[0].replica) == 7 and lib.replica_suspects(c[0].replica) == 0)

    def test_a_promised_pause_is_no_silence(self, c: Cluster) -> None:
        c.all_confirmed()
        lib.replica_tick(c[2].replica, c.now_us, 10_000)  # the next tick comes within 10 ms
        c.step()
        c[2].running = False
        c.run(9_000)
        assert lib.replica_suspects(c[0].replica) == 0
        c.run_until(lambda: lib.replica_suspects(c[0].replica) == 4, within_us=3_000 + 4 * TICK_US)

    def test_a_failed_attempt_says_when_it_wants_to_go_on(self) -> None:
        with Cluster(3, delay_us=(1, 5)) as c:
            c.all_confirmed()
            c.kill(0)
            c.stop(2)  # it will not answer
            c[1].poll()
            c.run_until(lambda: c[1].role == lib.REPLICA_FOLLOWER)
            deadline_us = lib.replica_deadline_us(c[1].replica)
            assert c.now_us < deadline_us < c.now_us + 100 * c.config["request_us"]

    def test_a_request_wakes_its_owner(self, c: Cluster) -> None:
        c.all_confirmed()
        before = lib.sim_wakes(c.sim, 2)
        lib.replica_peer_down(c[1].replica, 0, c.now_us)
        assert c[1].role == lib.REPLICA_CANDIDATE
        assert lib.sim_wakes(c.sim, 2) == before + 1


class TestInstalling:
    def test_a_log_goes_on_behind_a_snapshot(self, c: Cluster) -> None:
        leader = c.all_confirmed()
        c.isolate(2)
        c.tell_down(2)
        for i in range(30):
            c.commit(leader, b"%d" % i)
        c[2].install(leader)
        assert (c[2].commit, c[2].hash) == (leader.commit, leader.hash)
        c.rejoin(2)
        c.run_until(lambda: leader.confirmed == {0, 1, 2})
        c.commit(leader, b"behind it")
        c.converge()
        assert c[2].payloads == [b"behind it"]

    def test_what_lies_before_a_snapshot_is_not_given_to_others(self) -> None:
        """Its ring may hold there what a deposed leader left, which never was decided."""
        with Cluster(3, ring_bytes=1 << 14, delay_us=(1, 5)) as c:
            old = c.all_confirmed()
            c.commit(old, b"first")
            c.converge()
            c.isolate(2)
            c.tell_down(2)
            c.isolate(0)
            junk = old.propose(b"never decided")
            c.run(5_000)
            c[1].isolated = False
            for a in (1,):
                c.heal(a, 2)
            c[2].isolated = False
            new = c.leader()
            assert new.number == 1
            for i in range(40):
                c.commit(new, b"%d" % i)
            c[0].install(new)
            assert c[0].background.progress.oldest_position == c[0].applied_point()[1]
            c.rejoin(0)
            c.run_until(lambda: new.confirmed == {0, 1, 2})
            c.converge()
            assert c[0].first > junk
