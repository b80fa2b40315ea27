"""The shm fabric within one process: the contract of every fabric, and what is shm's own. Several processes, stopped
and killed ones: tests/fault/test_shm_processes.py."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from musidecar import doctor
from musidecar._ffi import ffi, lib
from tests.unit.fabric_contract import BACKGROUND_BYTES, DONE, LOG_BYTES, REFUSED, Cluster, FabricContract

PAGE = os.sysconf("SC_PAGESIZE")


def new_shm(
    node: int, nodes: int = 3, log_bytes: int = LOG_BYTES, fence: int = 0, hazard_us: int = 50, hurries: int = 0
) -> Any:
    config = ffi.new(
        "struct shm_config *",
        {
            "self": node,
            "nodes": nodes,
            "log_bytes": log_bytes,
            "background_bytes": BACKGROUND_BYTES,
            "hazard_us": hazard_us,
            "force_fence": fence,
            "hurries": hurries,
        },
    )
    return lib.shm_new(config)


def duplicates(shm: Any) -> Any:
    """Descriptors as a peer would receive them."""
    fds = lib.shm_fds(shm)
    names = ("log", "background", "doorbell")
    return ffi.new("struct shm_descriptors *", {name: os.dup(getattr(fds, name)) for name in names})[0]


def attach(a: Any, b: Any, peer_b: int) -> None:
    assert lib.shm_attach(a, peer_b, duplicates(b), os.getpid()) == 0


def hand_over_fence(writer: Any, owner: Any, writer_id: int, owner_id: int) -> None:
    mapping = ffi.new("uint64_t *")
    fd = lib.shm_fence_fd(writer, owner_id, mapping)
    assert lib.shm_set_fence(owner, writer_id, os.dup(fd) if fd >= 0 else -1, mapping[0]) == 0


class ShmCluster(Cluster):
    def __init__(self, nodes: int, fence: int = 0) -> None:
        super().__init__(nodes)
        self.shm: list[Any] = [new_shm(i, nodes, fence=fence) for i in range(nodes)]
        pairs = [(i, j) for i in range(nodes) for j in range(nodes) if i != j]
        for i, j in pairs:
            attach(self.shm[i], self.shm[j], j)
        for i, j in pairs:
            hand_over_fence(self.shm[i], self.shm[j], i, j)
        for i, j in pairs:
            assert lib.shm_open_link(self.shm[i], j) == 0
        for one in self.shm:
            assert lib.shm_enter(one) == 0

    def fabric(self, node: int) -> Any:
        return lib.shm_fabric(self.shm[node])

    def log(self, node: int) -> memoryview:
        return memoryview(ffi.buffer(lib.shm_log(self.shm[node]), LOG_BYTES)).cast("B")

    def background(self, node: int) -> memoryview:
        return memoryview(ffi.buffer(lib.shm_background(self.shm[node]), BACKGROUND_BYTES)).cast("B")

    def kill(self, node: int) -> None:
        lib.shm_free(self.shm[node])
        self.shm[node] = None
        for other in self.shm:
            if other is not None:
                assert wait_for_dead(other) == 1 << node

    def close(self) -> None:
        for one in self.shm:
            if one is not None:
                lib.shm_free(one)


def wait_for_dead(shm: Any) -> int:
    """The mask that the death notice gives, once it comes."""
    while True:
        readable, _, _ = select.select([lib.shm_wait_fd(shm)], [], [], 30)
        assert readable, "no death notice"
        if dead := lib.shm_drain(shm):
            return int(dead)


class TestShmContract(FabricContract):
    def make(self, nodes: int) -> Cluster:
        return ShmCluster(nodes)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def tasks() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("musidecar-")


def policy() -> int:
    """How the calling thread is scheduled."""
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK


class TestLife:
    def test_nothing_is_left_behind(self) -> None:
        ShmCluster(3).close()
        before = open_files(), tasks(), mappings()
        for _ in range(5):
            ShmCluster(3).close()
        assert (open_files(), tasks(), mappings()) == before

    def test_free_calls_back_a_thread_that_waits_for_a_living_peer(self) -> None:
        c = ShmCluster(3)
        before = tasks()
        lib.shm_free(c.shm[0])
        c.shm[0] = None
        assert wait_for_dead(c.shm[1]) == 1 and wait_for_dead(c.shm[2]) == 1
        assert tasks() <= before - 2
        c.close()

    def test_a_peer_that_never_entered_is_no_obstacle(self) -> None:
        a, b = new_shm(0, 2), new_shm(1, 2)
        attach(a, b, 1)
        attach(b, a, 0)
        assert lib.shm_open_link(a, 1) == 0
        assert lib.shm_open_link(b, 0) == 0
        lib.shm_free(b)
        assert wait_for_dead(a) == 1 << 1
        lib.shm_free(a)

    def test_entering_late_is_heard_of(self) -> None:
        a, b = new_shm(0, 2), new_shm(1, 2)
        attach(a, b, 1)
        assert lib.shm_open_link(a, 1) == 0
        assert lib.shm_enter(b) == 0
        assert lib.shm_enter(b) == -1, "one life has one engine thread"
        lib.shm_free(b)
        assert wait_for_dead(a) == 1 << 1
        lib.shm_free(a)

    def test_the_death_of_the_thread_is_the_death_of_the_node(self) -> None:
        c = ShmCluster(2)
        lib.shm_free(c.shm[1])
        c.shm[1] = None
        assert wait_for_dead(c.shm[0]) == 1 << 1
        again = new_shm(1, 2)
        entered = threading.Thread(target=lambda: lib.shm_enter(again))
        attach(c.shm[0], again, 1)
        assert lib.shm_open_link(c.shm[0], 1) == 0
        entered.start()
        entered.join()
        assert wait_for_dead(c.shm[0]) == 1 << 1
        lib.shm_free(again)
        c.close()

    @pytest.mark.skipif(doctor._priority().verdict != "ok", reason="no right to SCHED_RR")
    def test_whoever_is_to_hear_of_a_death_is_put_in_front(self) -> None:
        a, b = new_shm(0, 2, hurries=1), new_shm(1, 2)
        attach(a, b, 1)
        entered, policies = threading.Event(), []

        def loop() -> None:
            lib.shm_enter(a)
            entered.set()
            select.select([lib.shm_wait_fd(a)], [], [], 30)
            policies.append(policy())

        thread = threading.Thread(target=loop)
        thread.start()
        entered.wait(30)
        assert lib.shm_open_link(a, 1) == 0
        assert lib.shm_enter(b) == 0
        lib.shm_free(b)
        thread.join(30)
        assert policies == [os.SCHED_RR]
        lib.shm_free(a)

    def test_a_new_incarnation_takes_the_place_of_the_dead(self) -> None:
        c = ShmCluster(3)
        old = c.permit(1, 0)
        c.write(0, 1, 0, b"x" * 8)
        c.kill(1)
        c.statuses(0)
        files, threads = open_files(), tasks()
        for _ in range(3):
            again = c.shm[1] = new_shm(1)
            for other in (0, 2):
                attach(c.shm[other], again, 1)
                attach(again, c.shm[other], other)
            for other in (0, 2):
                hand_over_fence(again, c.shm[other], 1, other)
                hand_over_fence(c.shm[other], again, other, 1)
                assert lib.shm_open_link(c.shm[other], 1) == 0
                assert lib.shm_open_link(again, other) == 0
            assert lib.shm_enter(again) == 0
            c.write(0, 1, 0, b"w" * 8)
            assert c.statuses(0) == [REFUSED], "the former link was sound, this one was never accepted"
            assert not any(c.log(1)[:8])
            c.accept(0, 1, old)
            c.write(0, 1, 0, b"y" * 8)
            assert c.statuses(0) == [REFUSED], "a permission does not outlive the incarnation that gave it"
            c.permit(1, 0)
            c.write(0, 1, 0, b"z" * 8)
            assert c.statuses(0) == [DONE]
            assert bytes(c.log(1)[:8]) == b"z" * 8
            c.kill(1)
            c.statuses(0)
        assert open_files() <= files + 6 and tasks() <= threads
        c.close()

    def test_a_living_peer_is_not_replaced(self) -> None:
        c = ShmCluster(2)
        other = new_shm(1, 2)
        assert lib.shm_attach(c.shm[0], 1, duplicates(other), os.getpid()) == -1
        assert ffi.errno == errno.EBUSY
        lib.shm_free(other)
        c.close()


class TestHandOver:
    @pytest.mark.parametrize(
        ("own", "node", "nodes", "log_bytes"),
        [(0, 2, 3, LOG_BYTES), (2, 1, 2, LOG_BYTES), (0, 1, 3, 2 * LOG_BYTES)],
        ids=["another's", "with no place for this node", "of another size"],
    )
    def test_memory_that_is_not_the_peers_is_refused(self, own: int, node: int, nodes: int, log_bytes: int) -> None:
        a, b = new_shm(own), new_shm(node, nodes, log_bytes)
        before = open_files()
        assert lib.shm_attach(a, 1, duplicates(b), os.getpid()) == -1
        assert ffi.errno == errno.EINVAL
        assert open_files() == before, "refused descriptors are closed"
        lib.shm_free(a)
        lib.shm_free(b)

    def test_memory_that_could_shrink_is_refused(self) -> None:
        a, b = new_shm(0), new_shm(1)
        fds = duplicates(b)
        os.close(fds.log)
        fds.log = os.memfd_create("shrinkable")
        os.truncate(fds.log, LOG_BYTES)
        assert lib.shm_attach(a, 1, fds, os.getpid()) == -1
        assert ffi.errno == errno.EINVAL
        lib.shm_free(a)
        lib.shm_free(b)

    def test_what_was_handed_out_cannot_shrink(self) -> None:
        a = new_shm(0)
        with pytest.raises(PermissionError):
            os.truncate(lib.shm_fds(a).log, 0)
        lib.shm_free(a)

    def test_nonsense_is_refused(self) -> None:
        for node, nodes, log_bytes, fence in (
            (3, 3, LOG_BYTES, 0),
            (0, 9, LOG_BYTES, 0),
            (0, 3, 100, 0),
            (0, 3, PAGE, 9),
        ):
            assert new_shm(node, nodes, log_bytes, fence) == ffi.NULL
            assert ffi.errno == errno.EINVAL


class TestWaking:
    def test_the_doorbell(self) -> None:
        c = ShmCluster(2)
        f = c.fabric(0)
        fd = lib.shm_wait_fd(c.shm[1])
        assert select.select([fd], [], [], 0)[0] == []
        f.ops.wake(f, 1)
        assert select.select([fd], [], [], 30)[0] == [fd]
        assert lib.shm_drain(c.shm[1]) == 0
        assert select.select([fd], [], [], 0)[0] == []
        c.close()


class TestFence:
    def test_the_check_says_what_is_used(self) -> None:
        why = ffi.new("char[]", 200)
        works = lib.shm_fence_check(why, 200)
        assert works == (ffi.string(why) == b"")
        a = new_shm(0)
        assert lib.shm_fence_kind(a) == (lib.SHM_FENCE_USERFAULTFD if works else lib.SHM_FENCE_KILL)
        lib.shm_free(a)
        a = new_shm(0, fence=lib.SHM_FENCE_KILL)
        assert lib.shm_fence_kind(a) == lib.SHM_FENCE_KILL
        lib.shm_free(a)

    def test_row_03_an_open_burst_is_fenced_and_mended(self) -> None:
        """A writer between post and poll, as one that was preempted there, again and again."""
        if not lib.shm_fence_check(ffi.NULL, 0):
            pytest.skip("no userfaultfd here")
        c = ShmCluster(2)
        for round_ in range(1, 6):
            c.permit(1, 0)
            c.write(0, 1, 0, bytes([round_]) * 64)
            c.revoke(1)
            assert lib.shm_counters(c.shm[1]).fences == round_
            c.write(0, 1, 0, b"late" * 16)
            assert bytes(c.log(1)[:64]) == bytes([round_]) * 64
            assert c.statuses(0)[0] == REFUSED
        c.permit(1, 0)
        c.write(0, 1, 0, b"good" * 16)
        assert c.statuses(0) == [DONE]
        assert bytes(c.log(1)[:64]) == b"good" * 16
        c.close()

    def test_row_01_an_idle_writer_needs_no_fence(self) -> None:
        c = ShmCluster(3)
        for _ in range(20):
            for writer in (0, 2):
                c.permit(1, writer)
                c.write(writer, 1, 0, b"x" * 64)
                assert c.statuses(writer) == [DONE]
        counters = lib.shm_counters(c.shm[1])
        assert counters.revocations == 40 and counters.fences == 0
        c.close()

    def test_a_bus_error_from_elsewhere_still_kills(self) -> None:
        program = """
import mmap, os
from tests.unit.test_shm import new_shm
assert new_shm(0)
fd = os.memfd_create("gone"); os.truncate(fd, 4096)
memory = mmap.mmap(fd, 4096); os.truncate(fd, 0)
memory[0] = 1
"""
        root = Path(__file__).parents[2]
        done = subprocess.run([sys.executable, "-c", program], cwd=root, timeout=60, check=False)
        assert done.returncode == -signal.SIGBUS
