"""The three hosts of the cluster tests: their devices reach each other over the switch, and a cut cable stops that."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from musidecar._ffi import lib
from tests.unit.fabric_contract import DONE, DOWN, FLUSHED, REFUSED, Cluster
from tests.unit.test_verbs import VerbsCluster, link, new_verbs
from tests.vm import hosts

WRITER = """
from tests.vm.queue_pair import Peer
with Peer("rxe1") as a, Peer("rxe3") as b:
    a.connect(b.place)
    b.connect(a.place)
    print("status", a.write(b"across", b.place.address, b.place.rkey), b.region.read(6, 0).decode())
"""


def packets_from(host: int) -> int:
    """How many the switch has got from a host's RDMA cable."""
    path = f"/sys/class/net/r{host}/statistics/rx_packets"
    return int(hosts.run("ip", "netns", "exec", "switch", "cat", path))


def test_a_write_goes_over_the_switch_and_not_over_a_cut_cable(network: hosts.Network) -> None:
    from tests.vm.queue_pair import Peer, e

    with Peer("rxe1") as a, Peer("rxe2") as b:
        a.connect(b.place)
        b.connect(a.place)
        before = packets_from(1), packets_from(2)
        for _ in range(20):
            assert a.write(b"across", b.place.address, b.place.rkey) == e.IBV_WC_SUCCESS
        assert b.region.read(6, 0) == b"across"
        assert packets_from(1) >= before[0] + 20 and packets_from(2) > before[1]
        network.cut(2)
        try:
            assert a.write(b"cut", b.place.address, b.place.rkey) == e.IBV_WC_RETRY_EXC_ERR
            assert b.region.read(6, 0) == b"across"
            assert "DOWN" in Path("/sys/class/infiniband/rxe2/ports/1/state").read_text()
        finally:
            network.mend(2)
    with Peer("rxe1") as a, Peer("rxe2") as b:
        a.connect(b.place)
        b.connect(a.place)
        assert a.write(b"again", b.place.address, b.place.rkey) == e.IBV_WC_SUCCESS


def test_a_process_in_a_hosts_namespace_has_the_devices(network: hosts.Network, root: Path) -> None:
    command = network.on(1, sys.executable, "-c", WRITER)
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["status", "0", "across"], done.stderr


class HostsCluster(VerbsCluster):
    """Node i has the device of host i + 1. What is not answered for 16 ms is sent again, three times."""

    def __init__(self, count: int) -> None:
        Cluster.__init__(self, count)
        settings = {"timeout": 12, "retry_count": 3}
        self.verbs = [new_verbs(i, count, device=f"rxe{i + 1}".encode(), **settings) for i in range(count)]
        for i in range(count):
            for j in range(i):
                link(self.verbs[i], self.verbs[j], i, j)


@pytest.fixture
def c(network: hosts.Network) -> Iterator[HostsCluster]:
    one = HostsCluster(network.count)
    yield one
    one.close()


def await_port(host: int, state: str) -> None:
    """Until the device of a host says so of its port."""
    path = Path(f"/sys/class/infiniband/rxe{host}/ports/1/state")
    deadline = time.monotonic() + 30
    while state not in path.read_text():
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.05)


def test_a_link_that_went_down_stays_broken_until_it_is_made_anew(network: hosts.Network, c: HostsCluster) -> None:
    c.permit(1, 0)
    c.permit(2, 0)
    c.write(0, 1, 0, b"before..")
    assert c.statuses(0) == [DONE]
    network.cut(2)
    try:
        await_port(2, "DOWN")
        c.write(0, 1, 0, b"lost....")
        c.write(0, 1, 0, b"lost....", region=1)
        c.read(0, 1, 0, 8)
        c.write(0, 2, 0, b"kept....")
        outcome = c.poll(0)
        assert [status for _, peer, status in outcome if peer == 2] == [DONE]
        assert sorted(status for _, peer, status in outcome if peer == 1) == [DOWN, DOWN, FLUSHED]
        assert lib.verbs_is_broken(c.verbs[0], 1) and not lib.verbs_is_broken(c.verbs[0], 2)
    finally:
        network.mend(2)
    await_port(2, "ACTIVE")
    c.write(0, 1, 0, b"too late")
    assert c.statuses(0) == [FLUSHED]
    link(c.verbs[0], c.verbs[1], 0, 1)
    c.write(0, 1, 0, b"unasked.")
    assert c.statuses(0) == [REFUSED], "a permission does not outlive the link on which it was given"
    assert not lib.verbs_is_broken(c.verbs[0], 1) and lib.verbs_is_open(c.verbs[0], 1)
    assert bytes(c.log(1)[:8]) == b"before.."
    c.permit(1, 0)
    c.write(0, 1, 0, b"after...")
    c.write(0, 1, 0, b"beat....", region=1)
    assert c.statuses(0) == [DONE, DONE]
    assert bytes(c.log(1)[:8]) == b"after..." and bytes(c.background(1)[:8]) == b"beat...."


def test_a_pause_shorter_than_the_retries_breaks_nothing(network: hosts.Network, c: HostsCluster) -> None:
    """What was under way is sent again, and arrives."""
    lib.verbs_free(c.verbs[0])
    c.verbs[0] = new_verbs(0, network.count, device=b"rxe1", timeout=18, retry_count=6)  # a second, six times
    for peer in (1, 2):
        link(c.verbs[0], c.verbs[peer], 0, peer)
    c.permit(1, 0)
    network.cut(2)
    await_port(2, "DOWN")
    first = c.write(0, 1, 0, b"patient.")
    network.mend(2)
    await_port(2, "ACTIVE")
    assert c.poll(0) == [(first, 1, DONE)]
    assert bytes(c.log(1)[:8]) == b"patient."
