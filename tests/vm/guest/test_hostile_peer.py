"""A peer that is connected, by pyverbs and not by our code, and asks for no permission: the owner's device says no."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from musidecar._ffi import ffi, lib
from tests.unit.fabric_contract import BACKGROUND_BYTES, DONE, LOG_BYTES
from tests.unit.test_verbs import attach, describe, link, new_verbs

LOG, BACKGROUND = 0, 1
OWNER, HOSTILE, OTHER = 0, 1, 2


class Hostile:
    """Node 1 of the owner's cluster: a queue pair to its log and one to its background."""

    def __init__(self, device: str, owner: Any) -> None:
        from tests.vm.queue_pair import Peer, Place

        self.owner = owner
        self.peers = [Peer(device), Peer(device)]
        self.told = told = describe(owner, HOSTILE)
        place = self.peers[LOG].place
        end = {
            "layout": told.layout, "node": HOSTILE, "mtu": told.mtu, "is_ethernet": True,
            "gid": bytes(told.gid), "log_bytes": LOG_BYTES, "background_bytes": BACKGROUND_BYTES,
            "log_address": place.address, "background_address": place.address, "log_key": place.rkey,
            "background_key": place.rkey, "life": 1 + told.life // 2,
            "out_number": [peer.place.qpn for peer in self.peers], "out_psn": [peer.place.psn for peer in self.peers],
            "in_number": [peer.place.qpn for peer in self.peers], "in_psn": [7, 7],
        }  # fmt: skip
        assert attach(owner, HOSTILE, ffi.new("struct verbs_end *", end)) == ""
        assert lib.verbs_open_link(owner, HOSTILE) == 0
        for region, peer in enumerate(self.peers):
            peer.connect(Place(told.in_number[region], place.gid, told.in_psn[region]))

    def write_log(self, data: bytes, by: int = LOG) -> int:
        """Tries to write the owner's log; the completion's status."""
        return self.peers[by].write(data, self.told.log_address, self.told.log_key)

    def write_background(self, data: bytes) -> int:
        return self.peers[BACKGROUND].write(data, self.told.background_address, self.told.background_key)

    def close(self) -> None:
        for peer in self.peers:
            peer.close()


@pytest.fixture
def owner() -> Iterator[Any]:
    one = new_verbs(OWNER)
    yield one
    lib.verbs_free(one)


@pytest.fixture
def other(owner: Any) -> Iterator[Any]:
    one = new_verbs(OTHER)
    link(owner, one, OWNER, OTHER)
    yield one
    lib.verbs_free(one)


def log_of(owner: Any) -> bytes:
    return bytes(ffi.buffer(lib.verbs_log(owner), LOG_BYTES))


def give(owner: Any, peer: int) -> int:
    """The permission on the owner's log, to this peer and nobody else; the epoch."""
    f = lib.verbs_fabric(owner)
    f.ops.revoke(f)
    return int(f.ops.grant(f, peer))


def write_by(other: Any, epoch: int, data: bytes) -> None:
    """A write by a peer that has the permission."""
    f = lib.verbs_fabric(other)
    f.ops.accept(f, OWNER, epoch)
    f.ops.post_write(f, OWNER, LOG, 0, data, len(data), 1)
    done = ffi.new("struct fabric_completion[4]")
    while not f.ops.poll(f, done, 4):
        lib.verbs_arm(other)
    assert done[0].status == DONE


def test_never_granted_it_writes_the_background_and_not_the_log(rxe0: str, owner: Any) -> None:
    from tests.vm.queue_pair import REFUSALS, e

    hostile = Hostile(rxe0, owner)
    assert hostile.write_background(b"a beat") == e.IBV_WC_SUCCESS
    assert hostile.write_log(b"forged") in REFUSALS
    assert log_of(owner) == bytes(LOG_BYTES)
    hostile.close()


def test_the_logs_key_is_of_no_use_on_the_backgrounds_queue_pair(rxe0: str, owner: Any) -> None:
    from tests.vm.queue_pair import REFUSALS

    give(owner, HOSTILE)
    hostile = Hostile(rxe0, owner)
    assert hostile.write_log(b"forged", by=BACKGROUND) in REFUSALS
    assert log_of(owner) == bytes(LOG_BYTES)
    hostile.close()


def test_before_and_after_a_fail_over(rxe0: str, owner: Any, other: Any) -> None:
    """The other one leads; then the hostile one does, and its writes land; then it is deposed and goes on writing."""
    from tests.vm.queue_pair import REFUSALS, e

    hostile = Hostile(rxe0, owner)
    write_by(other, give(owner, OTHER), b"leader 2")
    assert hostile.write_log(b"forged 1") in REFUSALS
    assert log_of(owner)[:8] == b"leader 2"
    hostile.close()
    hostile = Hostile(rxe0, owner)
    give(owner, HOSTILE)
    assert hostile.write_log(b"leader 1") == e.IBV_WC_SUCCESS
    assert log_of(owner)[:8] == b"leader 1"
    epoch = give(owner, OTHER)
    assert hostile.write_log(b"too late") in REFUSALS
    assert log_of(owner)[:8] == b"leader 1"
    write_by(other, epoch, b"leader 2")
    assert log_of(owner)[:8] == b"leader 2"
    hostile.close()
