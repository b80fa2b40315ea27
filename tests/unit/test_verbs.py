"""The verbs fabric: the contract of every fabric, and what is its own. Needs an RDMA device (tests/vm has one:
soft-RoCE in a virtual machine); several nodes of this process share it."""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from musidecar._ffi import ffi, lib
from tests.unit.fabric_contract import (
    BACKGROUND_BYTES,
    DONE,
    DOWN,
    FLUSHED,
    LOG_BYTES,
    REFUSED,
    STEPS,
    Cluster,
    FabricContract,
)

WHY = 400
EXAMPLES = 12  # each makes a cluster anew, which takes its time
RINGS = 256  # of one peer that may lie there unread


def new_verbs(node: int, nodes: int = 3, **changes: Any) -> Any:
    """A node's fabric on the first device; LookupError with the reason when it cannot be made."""
    settings = {
        "self": node,
        "nodes": nodes,
        "log_bytes": LOG_BYTES,
        "background_bytes": BACKGROUND_BYTES,
        "staging_bytes": 2 * LOG_BYTES,
        "gid_index": -1,
        "timeout": 13,
        "retry_count": 7,  # rxe takes that for "without end", unless the fabric sees to it
        "queue_depth": 32,
    }
    why = ffi.new("char[]", WHY)
    verbs = lib.verbs_new(ffi.new("struct verbs_config *", settings | changes), why, WHY)
    if verbs == ffi.NULL:
        raise LookupError(ffi.string(why).decode())
    return verbs


def why_not() -> str:
    """Why there can be no verbs here; empty when there can."""
    try:
        lib.verbs_free(new_verbs(0))
    except LookupError as error:
        return str(error)
    return ""


@pytest.fixture(autouse=True)
def _device() -> None:
    if reason := why_not():
        pytest.skip(f"no verbs here: {reason}")


def describe(verbs: Any, peer: int) -> Any:
    end, why = ffi.new("struct verbs_end *"), ffi.new("char[]", WHY)
    assert lib.verbs_describe(verbs, peer, end, why, WHY) == 0, ffi.string(why)
    return end


def attach(verbs: Any, peer: int, theirs: Any) -> str:
    """The reason why not, or nothing."""
    why = ffi.new("char[]", WHY)
    return "" if lib.verbs_attach(verbs, peer, theirs, why, WHY) == 0 else ffi.string(why).decode()


def link(a: Any, b: Any, node_a: int, node_b: int) -> None:
    for_b, for_a = describe(a, node_b), describe(b, node_a)
    assert attach(a, node_b, for_a) == ""
    assert attach(b, node_a, for_b) == ""
    assert lib.verbs_open_link(a, node_b) == 0
    assert lib.verbs_open_link(b, node_a) == 0


class VerbsCluster(Cluster):
    def __init__(self, nodes: int, **changes: Any) -> None:
        super().__init__(nodes)
        self.verbs: list[Any] = [new_verbs(i, nodes, **changes) for i in range(nodes)]
        for i in range(nodes):
            for j in range(i):
                link(self.verbs[i], self.verbs[j], i, j)

    def fabric(self, node: int) -> Any:
        return lib.verbs_fabric(self.verbs[node])

    def log(self, node: int) -> memoryview:
        return memoryview(ffi.buffer(lib.verbs_log(self.verbs[node]), LOG_BYTES)).cast("B")

    def background(self, node: int) -> memoryview:
        return memoryview(ffi.buffer(lib.verbs_background(self.verbs[node]), BACKGROUND_BYTES)).cast("B")

    def kill(self, node: int) -> None:
        lib.verbs_free(self.verbs[node])
        self.verbs[node] = None

    def advance(self) -> None:
        for verbs in self.verbs:
            while verbs is not None and lib.verbs_outstanding(verbs):
                lib.verbs_arm(verbs)

    def close(self) -> None:
        for verbs in self.verbs:
            if verbs is not None:
                lib.verbs_free(verbs)


class TestVerbsContract(FabricContract):
    def make(self, nodes: int) -> Cluster:
        return VerbsCluster(nodes)

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps=STEPS)
    def test_promises_hold_in_any_order(self, steps: list[tuple[str, int, int]]) -> None:
        self.keep_promises(steps)


class CyclingCluster(VerbsCluster):
    """Permission changes by the state cycle only. Whoever lost it that way finds nobody who answers, so that to him the
    owner is DOWN: here, where everybody is alive, that is a refusal."""

    def __init__(self, nodes: int) -> None:
        super().__init__(nodes, always_cycle=True, timeout=11, retry_count=3)

    def poll(self, node: int, most: int = 64) -> list[tuple[int, int, int]]:
        def told(status: int) -> int:
            return REFUSED if status == DOWN and None not in self.verbs else status

        return [(number, peer, told(status)) for number, peer, status in super().poll(node, most)]

    def close(self) -> None:
        used = [lib.verbs_counters(verbs).flags for verbs in self.verbs if verbs is not None]
        super().close()
        assert not any(used), "a permission was given by flags"


class TestCyclingVerbsContract(TestVerbsContract):
    """The slow path of a change of permission, always."""

    test_every_length_and_alignment = None  # type: ignore[assignment]  # nothing to do with permission

    def make(self, nodes: int) -> Cluster:
        return CyclingCluster(nodes)


@pytest.fixture
def c() -> Iterator[VerbsCluster]:
    cluster = VerbsCluster(3)
    yield cluster
    cluster.close()


class TestPermission:
    def changes(self, c: VerbsCluster, node: int) -> tuple[int, int]:
        """By access flags, by the state cycle."""
        counters = lib.verbs_counters(c.verbs[node])
        return counters.flags, counters.cycles

    def release(self, c: VerbsCluster, node: int, peer: int) -> None:
        f = c.fabric(node)
        f.ops.release(f, peer)
        c.advance()

    def test_flags_do_for_a_first_grant_and_for_what_was_released(self, c: VerbsCluster) -> None:
        c.permit(1, 0)
        c.permit(1, 2)
        assert self.changes(c, 1) == (2, 0)
        self.release(c, 0, 1)
        c.permit(1, 0)
        assert self.changes(c, 1) == (3, 0)
        c.write(0, 1, 0, b"a" * 8)
        assert c.statuses(0) == [DONE]

    def test_what_was_not_released_is_cycled(self, c: VerbsCluster) -> None:
        c.permit(1, 0)
        c.permit(1, 0)
        assert self.changes(c, 1) == (1, 1)
        c.write(0, 1, 0, b"a" * 8)
        assert c.statuses(0) == [DONE]

    def test_what_was_refused_is_cycled_and_then_flags_do_again(self, c: VerbsCluster) -> None:
        c.permit(1, 0)
        c.revoke(1)
        c.write(0, 1, 0, b"a" * 8)
        assert c.statuses(0) == [REFUSED]
        c.permit(1, 0)
        assert self.changes(c, 1) == (1, 1)
        c.write(0, 1, 0, b"b" * 8)
        assert c.statuses(0) == [DONE]
        self.release(c, 0, 1)
        c.permit(1, 0)
        assert self.changes(c, 1) == (2, 1)
        c.write(0, 1, 0, b"c" * 8)
        assert c.statuses(0) == [DONE]

    def test_nothing_is_written_under_what_was_released(self, c: VerbsCluster) -> None:
        c.permit(1, 0)
        self.release(c, 0, 1)
        c.write(0, 1, 0, b"a" * 8)
        assert c.statuses(0) == [REFUSED]
        assert not any(c.log(1))
        c.permit(1, 0)
        c.write(0, 1, 0, b"a" * 8)
        assert c.statuses(0) == [DONE]


class TestQueues:
    def test_more_posts_than_the_queue_pair_holds_wait_and_complete_in_order(self, c: VerbsCluster) -> None:
        c.permit(1, 0)
        ids = [c.write(0, 1, 8 * i, i.to_bytes(8, "little")) for i in range(1000)]
        seen: list[tuple[int, int, int]] = []
        while batch := c.poll(0, most=100):
            seen += batch
        assert seen == [(each, 1, DONE) for each in ids]
        assert bytes(c.log(1)[:8000]) == b"".join(i.to_bytes(8, "little") for i in range(1000))

    def test_reads_and_writes_that_need_staging_wait_for_it(self, c: VerbsCluster) -> None:
        c.permit(1, 0)
        for i in range(6):
            c.write(0, 1, 0, bytes([i + 1]) * 60_000)
            _, into = c.read(0, 1, 0, 60_000)
        assert c.statuses(0) == [DONE] * 12
        assert ffi.buffer(into)[:] == b"\6" * 60_000

    def test_a_peer_that_hangs_fills_neither_its_queue_nor_the_others(self, c: VerbsCluster) -> None:
        c.permit(1, 0)
        c.permit(2, 0)
        c.kill(1)
        f, source = c.fabric(0), ffi.new("uint8_t[]", 8)
        for i in range(1900):
            f.ops.post_write(f, 1, 0, 0, source, 8, i)
        other = c.write(0, 2, 0, b"x" * 8)
        outcome = []
        while batch := c.poll(0, most=500):
            outcome += batch
        assert [status for _, peer, status in outcome if peer == 1] == [DOWN] + [FLUSHED] * 1899
        assert (other, 2, DONE) in outcome

    def test_completions_and_rings_wake_the_sleeper(self, c: VerbsCluster) -> None:
        sleeper, f = lib.verbs_wait_fd(c.verbs[0]), c.fabric(1)
        lib.verbs_drain(c.verbs[0])
        for _ in range(2 * RINGS):
            assert not select.select([sleeper], [], [], 0)[0]
            f.ops.wake(f, 0)
            assert select.select([sleeper], [], [], 30)[0], "a ring was not heard"
            lib.verbs_drain(c.verbs[0])
            assert c.statuses(1) == []  # nobody is told of a ring
        c.permit(1, 0)
        c.write(0, 1, 0, b"x" * 60_000)
        if lib.verbs_arm(c.verbs[0]):
            assert select.select([sleeper], [], [], 30)[0], "a completion was not heard"
        assert c.statuses(0) == [DONE]


class TestLinks:
    def test_a_link_made_anew_works_and_its_permission_is_gone(self, c: VerbsCluster) -> None:
        old = c.permit(1, 0)
        c.write(0, 1, 0, b"a" * 8)
        assert c.statuses(0) == [DONE]
        life = lib.verbs_life(c.verbs[0], 1)
        link(c.verbs[0], c.verbs[1], 0, 1)
        assert lib.verbs_life(c.verbs[0], 1) != life
        c.write(0, 1, 0, b"b" * 8)
        assert c.statuses(0) == [REFUSED]
        assert c.statuses(1) == [] and lib.verbs_is_open(c.verbs[1], 0)
        c.accept(0, 1, old)
        c.write(0, 1, 0, b"b" * 8)
        assert c.statuses(0)[-1] != DONE
        c.permit(1, 0)
        c.write(0, 1, 0, b"c" * 8)
        assert c.statuses(0)[-1] == DONE
        assert bytes(c.log(1)[:8]) == b"c" * 8

    def test_a_link_whose_peer_is_gone_says_that_it_is_broken(self, c: VerbsCluster) -> None:
        assert not lib.verbs_is_broken(c.verbs[0], 1)
        c.kill(1)
        c.write(0, 1, 0, b"x" * 8, region=1)
        assert c.statuses(0) == [DOWN]
        assert lib.verbs_is_broken(c.verbs[0], 1) and not lib.verbs_is_broken(c.verbs[0], 2)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"mtu": 256}, "set verbs.mtu = 256 for all"),
            ({"log_bytes": 4096}, "the same limits.ring_bytes"),
            ({"layout": 77}, "another version"),
            ({"is_ethernet": False}, "one network in verbs.device"),
            ({"node": 2}, "another node"),
        ],
    )
    def test_two_nodes_that_do_not_fit_are_told_what_to_do(self, change: dict[str, Any], words: str) -> None:
        a, b = new_verbs(0), new_verbs(1)
        describe(a, 1)
        theirs = describe(b, 0)
        for name, value in change.items():
            setattr(theirs, name, value)
        assert words in attach(a, 1, theirs)
        lib.verbs_free(a)
        lib.verbs_free(b)
