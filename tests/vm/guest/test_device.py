"""What the guest has before any of our code: a kernel with verbs, a soft-RoCE device, writes that can be refused."""

import os
from pathlib import Path

from musidecar import pyverbs


def test_the_device_is_there_and_active(rxe0: str) -> None:
    state = Path("/sys/class/infiniband", rxe0, "ports/1/state").read_text()
    assert "ACTIVE" in state
    pyverbs.load()
    from pyverbs.device import get_device_list

    assert rxe0 in [device.name.decode() for device in get_device_list()]


def test_the_tree_is_the_hosts_and_can_be_written(root: Path) -> None:
    before = (root / "pyproject.toml").read_bytes()
    (root / "pyproject.toml").write_bytes(b"")
    (root / "pyproject.toml").write_bytes(before)
    assert os.uname().nodename == "(none)"


def test_a_write_lands_in_the_other_queue_pairs_memory(rxe0: str) -> None:
    from tests.vm.queue_pair import Peer, e

    with Peer(rxe0) as a, Peer(rxe0) as b:
        a.connect(b.place)
        b.connect(a.place)
        for turn in range(20):
            one, other = (a, b) if turn % 2 else (b, a)
            assert one.write(b"turn %2d" % turn, other.place.address, other.place.rkey) == e.IBV_WC_SUCCESS
            assert other.region.read(7, 0) == b"turn %2d" % turn


def test_a_queue_pair_without_write_access_refuses_and_its_memory_stays(rxe0: str) -> None:
    from tests.vm.queue_pair import REFUSALS, Peer, e

    with Peer(rxe0) as a, Peer(rxe0, access=e.IBV_ACCESS_REMOTE_READ) as b:
        b.region.write(b"mine", 4)
        a.connect(b.place)
        b.connect(a.place)
        status, seen = a.read(4, b.place.address, b.place.rkey)
        assert (status, seen) == (e.IBV_WC_SUCCESS, b"mine")
        assert a.write(b"thine", b.place.address, b.place.rkey) in REFUSALS
        assert b.region.read(4, 0) == b"mine"
