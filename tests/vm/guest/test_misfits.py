"""A cluster of three hosts, and who does not fit into it: another MTU, another ring, another secret, no node at all."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from musidecar import mesh
from musidecar.testbed import ClusterStatus
from tests.fault.nursery import Nursery
from tests.vm.hosts import Network
from tests.vm.hosts_cluster import MESH_PORT, POLL_S, START_S, HostsBed

MTU_REMEDY = "set verbs.mtu = 512 for all, or give the interfaces the same MTU"
RING_REMEDY = "give all nodes the same limits.ring_bytes and piece_bytes_max, in one configuration file"
KNOCK_S = 10.0


def wait_for(bed: HostsBed, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not holds():
        assert time.monotonic() < deadline, bed.logs()
        time.sleep(POLL_S)


def start_otherwise(bed: HostsBed, host: int, old: str, new: str) -> None:
    """A node whose configuration file differs from the others' in this."""
    text = bed.config.path.read_text()
    assert old in text
    other = bed.dir / "other.toml"
    other.write_text(text.replace(old, new))
    bed.revive(host, other)


def check_writes(bed: HostsBed, key: str) -> None:
    with bed.client(bed.status()["1"]) as client:
        assert client.set(key, "1")


class Misfits(HostsBed):
    """The first time, node 3 has another MTU."""

    def start(self, timeout_s: float = START_S) -> ClusterStatus:
        self.configure()
        for host in (1, 2):
            self.revive(host)
        start_otherwise(self, 3, 'device = "rxe3"', 'device = "rxe3", mtu = 512')
        wait_for(self, lambda: 3 in self.died())
        wait_for(self, lambda: all(i in self.died() or "the cluster did not form" in self.log_of(i) for i in (1, 2)))
        return self.mend(timeout_s)

    def mend(self, timeout_s: float) -> ClusterStatus:
        """Node 3 said what to do, and so did whoever else has ended. With that done the cluster begins."""
        for host, how in self.died().items():
            assert how == "exit code 2" and MTU_REMEDY in self.log_of(host), self.logs()
            self.revive(host)
        return self.wait_ready(timeout_s)


@pytest.fixture
def bed(nursery: Nursery, network: Network) -> Iterator[HostsBed]:
    with Misfits(nursery, network) as one:
        yield one
    assert one.leftovers() == []


def join_with_another_ring(bed: HostsBed) -> None:
    """The next life of node 3 is told, the others say so as well and go on; put right, it is taken in."""
    os.kill(bed.pids[3], signal.SIGKILL)
    wait_for(bed, lambda: not bed.alive(3))
    start_otherwise(bed, 3, "[timing]", '[limits]\nring_bytes = "32 MiB"\n[timing]')
    wait_for(bed, lambda: all(RING_REMEDY in bed.log_of(host) for host in bed.hosts))
    check_writes(bed, "two go on")
    os.kill(bed.pids[3], signal.SIGTERM)
    wait_for(bed, lambda: not bed.alive(3))
    bed.revive(3)
    wait_for(bed, lambda: bed.is_well(3))


def knock_at_the_mesh_port(bed: HostsBed) -> None:
    """Somebody who speaks something else, and a node with another secret."""
    with socket.create_connection(("10.8.0.1", MESH_PORT), KNOCK_S) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        try:
            assert stranger.recv(100) == b""
        except ConnectionResetError:
            pass
    wait_for(bed, lambda: "10.8.0.100" in bed.log_of(1) and mesh.KEEP_OUT in bed.log_of(1))
    pretender = replace(mesh.Member.of(bed.config, 3), secret=b"another secret, of 32 bytes ....")
    for role in ("peer", "link", "ask"):
        with pytest.raises(mesh.Refused, match=r"give all nodes the same cluster\.secret_file"):
            mesh.dial(pretender, 1, role, KNOCK_S)

    def told() -> bool:
        """Refusals that come at once are not all logged."""
        with pytest.raises(mesh.Refused):
            mesh.dial(pretender, 1, "peer", KNOCK_S)
        return f"it calls itself node 3 and {mesh.NO_SECRET}" in bed.log_of(1)

    wait_for(bed, told)
    check_writes(bed, "nobody came in")


@pytest.mark.timeout(600)
def test_a_cluster_keeps_out_what_does_not_fit_and_says_what_to_do(bed: HostsBed) -> None:
    check_writes(bed, "formed")
    join_with_another_ring(bed)
    knock_at_the_mesh_port(bed)
    assert not bed.died()
