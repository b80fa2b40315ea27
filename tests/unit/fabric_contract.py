"""What `ffi/fabric/fabric.h` promises, as tests written once: a fabric passes them by subclassing `FabricContract`
and giving it a `cluster` factory. Everything runs in one process and one thread; what needs several processes is in
tests/fault.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from musidecar._ffi import ffi, lib

LOG_BYTES = 1 << 16
BACKGROUND_BYTES = 4096
DONE, REFUSED, DOWN, FLUSHED = 0, 1, 2, 3
STEPS = st.lists(st.tuples(st.sampled_from("wwwwppraagb"), st.integers(0, 2), st.integers(0, 2)), max_size=60)


class Cluster(ABC):
    """`nodes` fabrics, linked to each other, all alive, nobody permitted anywhere.

    Regions are LOG_BYTES and BACKGROUND_BYTES long and zeroed.
    """

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self._next_id = 1
        self._kept: list[Any] = []  # what is posted stays where it is until completion

    @abstractmethod
    def fabric(self, node: int) -> Any:
        """The `struct fabric *` of a node."""

    @abstractmethod
    def log(self, node: int) -> memoryview:
        """A node's own log region."""

    @abstractmethod
    def background(self, node: int) -> memoryview:
        """A node's own background region."""

    @abstractmethod
    def kill(self, node: int) -> None:
        """The node is gone, and every other node has been told."""

    @abstractmethod
    def close(self) -> None: ...

    def advance(self) -> None:  # noqa: B027 (nothing to do where a post is a store)
        """Lets everything arrive that is under way."""

    # -- verbs of one line

    def write(self, node: int, peer: int, offset: int, data: bytes, region: int = 0) -> int:
        """Posts; returns the id."""
        self._next_id += 1
        source = ffi.new("uint8_t[]", data)
        self._kept.append(source)
        f = self.fabric(node)
        f.ops.post_write(f, peer, region, offset, source, len(data), self._next_id)
        return self._next_id

    def read(self, node: int, peer: int, offset: int, length: int, region: int = 0) -> tuple[int, Any]:
        self._next_id += 1
        into = ffi.new("uint8_t[]", length)
        self._kept.append(into)
        f = self.fabric(node)
        f.ops.post_read(f, peer, region, offset, into, length, self._next_id)
        return self._next_id, into

    def poll(self, node: int, most: int = 64) -> list[tuple[int, int, int]]:
        """(id, peer, status) of what one poll gives, after everything under way arrived."""
        self.advance()
        out = ffi.new("struct fabric_completion[]", most)
        f = self.fabric(node)
        count = f.ops.poll(f, out, most)
        return [(out[i].id, out[i].peer, out[i].status) for i in range(count)]

    def statuses(self, node: int) -> list[int]:
        return [status for _, _, status in self.poll(node)]

    def revoke(self, node: int) -> None:
        f = self.fabric(node)
        f.ops.revoke(f)

    def grant(self, node: int, peer: int) -> int:
        f = self.fabric(node)
        return int(f.ops.grant(f, peer))

    def accept(self, node: int, peer: int, epoch: int) -> None:
        f = self.fabric(node)
        f.ops.accept(f, peer, epoch)

    def holds_own(self, node: int) -> bool:
        f = self.fabric(node)
        return bool(f.ops.holds_own(f))

    def permit(self, owner: int, writer: int) -> int:
        """The whole change of permission: revoke, grant, accept. Returns the epoch."""
        self.revoke(owner)
        epoch = self.grant(owner, writer)
        if writer != owner:
            self.accept(writer, owner, epoch)
        return epoch


class FabricContract(ABC):
    """Subclass it as `Test...`, with `make()` giving a fresh cluster."""

    @abstractmethod
    def make(self, nodes: int) -> Cluster: ...

    @pytest.fixture
    def c(self) -> Any:
        cluster = self.make(3)
        yield cluster
        cluster.close()

    # -- permission

    def test_without_permission_nothing_lands(self, c: Cluster) -> None:
        c.write(0, 1, 0, b"x" * 64)
        c.write(0, 1, 64, b"y" * 64)
        assert c.statuses(0) == [REFUSED, FLUSHED]
        assert not any(c.log(1))

    def test_a_permitted_write_lands(self, c: Cluster) -> None:
        c.permit(1, 0)
        first = c.write(0, 1, 128, b"hello, log")
        assert c.poll(0) == [(first, 1, DONE)]
        assert bytes(c.log(1)[128:138]) == b"hello, log"
        assert not any(c.log(1)[:128]) and not any(c.log(1)[138:])

    def test_permission_is_for_one_log(self, c: Cluster) -> None:
        c.permit(1, 0)
        c.write(0, 2, 0, b"z" * 8)
        c.write(0, 1, 0, b"z" * 8)
        assert sorted(c.poll(0), key=lambda one: one[0]) == [(2, 2, REFUSED), (3, 1, DONE)]
        assert not any(c.log(2))

    def test_revoked_is_refused_and_stays_so(self, c: Cluster) -> None:
        c.permit(1, 0)
        c.write(0, 1, 0, b"a" * 8)
        assert c.statuses(0) == [DONE]
        c.revoke(1)
        c.write(0, 1, 8, b"b" * 8)
        assert c.statuses(0) == [REFUSED]
        c.write(0, 1, 16, b"c" * 8)
        assert c.statuses(0) == [FLUSHED]
        assert bytes(c.log(1)[:24]) == b"a" * 8 + bytes(16)

    def test_a_new_grant_alone_does_not_mend_a_broken_link(self, c: Cluster) -> None:
        c.permit(1, 0)
        c.revoke(1)
        c.write(0, 1, 0, b"b" * 8)
        assert c.statuses(0) == [REFUSED]
        epoch = c.grant(1, 0)
        c.write(0, 1, 0, b"b" * 8)
        assert c.statuses(0) == [FLUSHED]
        assert not any(c.log(1))
        c.accept(0, 1, epoch)
        c.write(0, 1, 0, b"b" * 8)
        assert c.statuses(0) == [DONE]
        assert bytes(c.log(1)[:8]) == b"b" * 8

    def test_an_old_epoch_does_not_write(self, c: Cluster) -> None:
        old = c.permit(1, 0)
        c.permit(1, 2)
        c.accept(0, 1, old)
        c.write(0, 1, 0, b"late" * 2)
        assert c.statuses(0) == [REFUSED]
        assert not any(c.log(1))

    def test_an_old_epoch_of_the_same_writer_does_not_write(self, c: Cluster) -> None:
        old = c.permit(1, 0)
        c.revoke(1)
        c.grant(1, 0)
        c.accept(0, 1, old)
        c.write(0, 1, 0, b"late" * 2)
        assert c.statuses(0) == [REFUSED]
        assert not any(c.log(1))

    def test_one_writer_at_a_time(self, c: Cluster) -> None:
        c.permit(1, 0)
        c.permit(1, 2)
        c.write(0, 1, 0, b"0" * 8)
        c.write(2, 1, 0, b"2" * 8)
        assert c.statuses(0) == [REFUSED]
        assert c.statuses(2) == [DONE]
        assert bytes(c.log(1)[:8]) == b"2" * 8

    def test_epochs_grow(self, c: Cluster) -> None:
        epochs = [c.permit(1, writer) for writer in (0, 2, 0, 1, 0, 0)]
        assert epochs == sorted(set(epochs))

    def test_own_permission(self, c: Cluster) -> None:
        assert not c.holds_own(1)
        c.permit(1, 1)
        assert c.holds_own(1)
        assert not c.holds_own(0)
        c.write(0, 1, 0, b"x" * 8)
        assert c.statuses(0) == [REFUSED]
        c.permit(1, 0)
        assert not c.holds_own(1)

    def test_row_03_revoked_between_post_and_poll(self, c: Cluster) -> None:
        """Done before the revocation or refused: either, but nothing lands after it, and DONE is not a lie."""
        c.permit(1, 0)
        c.write(0, 1, 0, b"q" * 4096)
        c.revoke(1)
        before = bytes(c.log(1))
        statuses = c.statuses(0)
        assert statuses in ([DONE], [REFUSED])
        assert bytes(c.log(1)) == before
        if statuses == [DONE]:
            assert before[:4096] == b"q" * 4096
        c.write(0, 1, 0, b"r" * 8)
        assert c.statuses(0)[0] in (REFUSED, FLUSHED)
        assert bytes(c.log(1)) == before
        c.permit(1, 0)
        c.write(0, 1, 0, b"s" * 8)
        assert c.statuses(0) == [DONE]
        assert bytes(c.log(1)[:8]) == b"s" * 8

    def test_accept_finishes_or_flushes_what_was_posted_before(self, c: Cluster) -> None:
        c.permit(1, 0)
        c.write(0, 1, 0, b"a" * 8)
        c.revoke(1)
        c.write(0, 1, 8, b"b" * 8)
        epoch = c.grant(1, 0)
        c.accept(0, 1, epoch)
        c.write(0, 1, 16, b"c" * 8)
        statuses = c.statuses(0)
        assert statuses[0] in (DONE, REFUSED)
        assert statuses[1] in (REFUSED, FLUSHED)
        assert statuses[2] == DONE
        assert bytes(c.log(1)[8:24]) == bytes(8) + b"c" * 8

    # -- background, reads

    def test_background_needs_no_permission(self, c: Cluster) -> None:
        first = c.write(0, 1, 256, b"beat" * 4, region=1)
        assert c.poll(0) == [(first, 1, DONE)]
        assert bytes(c.background(1)[256:272]) == b"beat" * 4

    def test_a_broken_log_link_leaves_the_others_alone(self, c: Cluster) -> None:
        c.permit(2, 0)
        c.write(0, 1, 0, b"x" * 8)
        assert c.statuses(0) == [REFUSED]
        background = c.write(0, 1, 0, b"x" * 8, region=1)
        other = c.write(0, 2, 0, b"x" * 8)
        assert sorted(c.poll(0)) == [(background, 1, DONE), (other, 2, DONE)]

    def test_reads_need_no_permission(self, c: Cluster) -> None:
        c.log(1)[64:72] = b"written."
        c.background(1)[0:4] = b"word"
        _, log = c.read(0, 1, 64, 8)
        _, word = c.read(0, 1, 0, 4, region=1)
        assert c.statuses(0) == [DONE, DONE]
        assert ffi.buffer(log)[:] == b"written." and ffi.buffer(word)[:] == b"word"

    def test_a_read_behind_a_write_sees_it(self, c: Cluster) -> None:
        c.permit(1, 0)
        c.write(0, 1, 512, b"12345678")
        _, into = c.read(0, 1, 512, 8)
        c.write(0, 1, 512, b"abcdefgh")
        assert c.statuses(0) == [DONE, DONE, DONE]
        assert ffi.buffer(into)[:] == b"12345678"
        assert bytes(c.log(1)[512:520]) == b"abcdefgh"

    # -- order and completions

    def test_posts_complete_in_order_and_once(self, c: Cluster) -> None:
        c.permit(1, 0)
        c.permit(2, 0)
        ids = [c.write(0, 1 + i % 2, 8 * i, bytes([i]) * 8) for i in range(40)]
        seen: list[tuple[int, int, int]] = []
        while batch := c.poll(0, most=7):
            assert len(batch) <= 7
            seen += batch
        assert sorted(one[0] for one in seen) == ids
        for peer in (1, 2):
            mine = [one[0] for one in seen if one[1] == peer]
            assert mine == sorted(mine)
        assert all(status == DONE for _, _, status in seen)
        assert c.poll(0) == []

    def test_the_later_of_two_writes_stays(self, c: Cluster) -> None:
        c.permit(1, 0)
        for value in range(50):
            c.write(0, 1, 1000, bytes([value]) * 100)
        assert c.statuses(0) == [DONE] * 50
        assert bytes(c.log(1)[1000:1100]) == bytes([49]) * 100

    def test_trap_20_inline_bytes_may_be_reused_at_once(self, c: Cluster) -> None:
        c.permit(1, 0)
        source = ffi.new("uint8_t[]", b"i" * lib.FABRIC_INLINE_MAX)
        f = c.fabric(0)
        f.ops.post_write(f, 1, 0, 0, source, lib.FABRIC_INLINE_MAX, 1)
        ffi.memmove(source, b"j" * lib.FABRIC_INLINE_MAX, lib.FABRIC_INLINE_MAX)
        assert c.statuses(0) == [DONE]
        assert bytes(c.log(1)[: lib.FABRIC_INLINE_MAX]) == b"i" * lib.FABRIC_INLINE_MAX

    @pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 63, 64, 65, 136, 4095, 4096, 40_001])
    @pytest.mark.parametrize("offset", [0, 1, 64, 4090])
    def test_every_length_and_alignment(self, c: Cluster, length: int, offset: int) -> None:
        data = bytes(1 + i % 255 for i in range(length))
        c.permit(1, 0)
        c.write(0, 1, offset, data)
        assert c.statuses(0) == [DONE]
        assert bytes(c.log(1)) == bytes(offset) + data + bytes(LOG_BYTES - offset - length)

    def test_the_ends_of_the_regions(self, c: Cluster) -> None:
        c.permit(1, 0)
        c.write(0, 1, 0, b"f" * LOG_BYTES)
        c.write(0, 1, LOG_BYTES - 8, b"lastword")
        c.write(0, 1, BACKGROUND_BYTES - 8, b"lastword", region=1)
        assert c.statuses(0) == [DONE] * 3
        assert bytes(c.log(1)) == b"f" * (LOG_BYTES - 8) + b"lastword"
        assert bytes(c.background(1)[-8:]) == b"lastword"

    # -- death

    def test_row_07_the_dead_acknowledge_nothing(self, c: Cluster) -> None:
        c.permit(1, 0)
        c.permit(2, 0)
        c.kill(1)
        c.write(0, 1, 0, b"x" * 8)
        c.write(0, 1, 0, b"x" * 8, region=1)
        c.read(0, 1, 0, 8)
        c.write(0, 2, 0, b"x" * 8)
        outcome = c.poll(0)
        assert next(status for _, peer, status in outcome if peer == 1) == DOWN
        assert all(status in (DOWN, FLUSHED) for _, peer, status in outcome if peer == 1)
        assert [status for _, peer, status in outcome if peer == 2] == [DONE]

    def test_row_07_a_peer_that_dies_between_post_and_poll_acknowledges_nothing(self, c: Cluster) -> None:
        c.permit(1, 0)
        c.write(0, 1, 0, b"x" * 8)
        c.kill(1)
        c.write(0, 1, 8, b"x" * 8)
        statuses = c.statuses(0)
        assert statuses[0] in (DONE, DOWN)  # done only if it was complete before the death
        assert statuses[1] in (DOWN, FLUSHED)

    def test_row_05_the_permission_of_the_dead_is_revoked_like_any_other(self, c: Cluster) -> None:
        c.permit(1, 0)
        c.write(0, 1, 0, b"x" * 8)
        c.kill(0)
        c.permit(1, 2)
        c.write(2, 1, 0, b"y" * 8)
        assert c.statuses(2) == [DONE]
        assert bytes(c.log(1)[:8]) == b"y" * 8

    # -- anything at all

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps=STEPS)
    def test_promises_hold_in_any_order(self, steps: list[tuple[str, int, int]]) -> None:
        self.keep_promises(steps)

    def keep_promises(self, steps: list[tuple[str, int, int]]) -> None:
        c = self.make(3)
        try:
            _Promises(c).run(steps)
        finally:
            c.close()


@dataclass(frozen=True)
class _Post:
    node: int
    peer: int
    background: bool
    permitted: bool  # when it was posted
    accepts: int  # how often the link had been accepted by then
    stamp: int  # what it wrote


class _Promises:
    """Runs any sequence of calls and checks the promises of fabric.h that can be checked from outside."""

    def __init__(self, c: Cluster) -> None:
        self.c = c
        self.holder: list[int | None] = [None] * 3
        self.epoch = [0] * 3
        self.frozen: dict[int, bytes] = {}  # owner -> its log, from revoke() to the next grant to a peer
        self.accepted: dict[tuple[int, int], int] = {}  # (writer, owner) -> epoch
        self.accepts: dict[tuple[int, int], int] = defaultdict(int)
        self.failed_at: dict[tuple[int, int], int] = {}  # accepts when the link's last failure was posted
        self.posted: dict[int, _Post] = {}
        self.queue: dict[tuple[int, int], list[int]] = defaultdict(list)
        self.stamp = 0

    def run(self, steps: list[tuple[str, int, int]]) -> None:
        verbs = {"w": self.write, "p": self.poll, "r": self.revoke, "g": self.grant, "a": self.accept, "b": self.beat}
        for verb, node, peer in steps:
            verbs[verb](node, peer)
            for owner, then in self.frozen.items():
                assert bytes(self.c.log(owner)) == then, "a write landed after revoke() returned"
        for node in range(3):
            self.poll(node, node)
        assert not self.posted, "a post never completed"

    def write(self, node: int, peer: int) -> None:
        if node == peer:
            return
        self.stamp += 1
        permitted = self.holder[peer] == node and self.accepted.get((node, peer)) == self.epoch[peer]
        post = self.c.write(node, peer, 8 * node, self.stamp.to_bytes(8, "little"))
        self.posted[post] = _Post(node, peer, False, permitted, self.accepts[node, peer], self.stamp)
        self.queue[node, peer].append(post)

    def beat(self, node: int, peer: int) -> None:
        if node != peer:
            post = self.c.write(node, peer, 8 * node, b"beat" * 2, region=1)
            self.posted[post] = _Post(node, peer, True, True, 0, 0)

    def poll(self, node: int, _: int) -> None:
        newest: dict[int, int] = {}
        for number, peer, status in self.c.poll(node, most=256):
            post = self.posted.pop(number)
            assert (post.node, post.peer) == (node, peer)
            if post.background:
                assert status == DONE
                continue
            assert self.queue[node, peer].pop(0) == number, "completions out of order"
            if status == DONE:
                assert post.permitted, "done without permission"
                assert post.accepts > self.failed_at.get((node, peer), -1), "done behind a failure"
                newest[peer] = post.stamp
            else:
                self.failed_at[node, peer] = post.accepts
        for peer, stamp in newest.items():
            landed = int.from_bytes(self.c.log(peer)[8 * node : 8 * node + 8], "little")
            assert landed >= stamp, "done, but the owner does not see it"

    def revoke(self, node: int, _: int) -> None:
        self.c.revoke(node)
        self.holder[node] = None
        self.frozen[node] = bytes(self.c.log(node))

    def grant(self, node: int, peer: int) -> None:
        self.revoke(node, peer)
        epoch = self.c.grant(node, peer)
        assert epoch > self.epoch[node]
        self.epoch[node], self.holder[node] = epoch, peer
        if peer != node:
            del self.frozen[node]

    def accept(self, node: int, peer: int) -> None:
        if node != peer and self.holder[peer] == node:
            self.c.accept(node, peer, self.epoch[peer])
            self.accepted[node, peer] = self.epoch[peer]
            self.accepts[node, peer] += 1
