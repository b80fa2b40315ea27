"""Fixtures of the guest: a device alone, and hosts with a cluster on them."""

from collections.abc import Iterator, Sequence

import pytest

from tests.fault.clients import Crowd
from tests.fault.nursery import Nursery
from tests.vm import hosts
from tests.vm.hosts_cluster import START_S, HostsBed


@pytest.fixture(scope="session")
def rxe0() -> str:
    """The name of a soft-RoCE device on 10.9.1.1, alone on its network. The agent has made it."""
    return hosts.DEVICE


@pytest.fixture
def port_down(rxe0: str) -> Iterator[None]:
    """The cable of that device is out."""
    hosts.ip(f"link set {hosts.LONE_NETDEV} down")
    yield
    hosts.ip(f"link set {hosts.LONE_NETDEV} up")
    hosts.ip(f"addr replace {hosts.ADDRESS}/24 dev {hosts.LONE_NETDEV}")


@pytest.fixture(scope="module")
def host_count() -> int:
    """How many hosts the network has. A file that wants others has a fixture of this name of its own."""
    return 3


@pytest.fixture(scope="module")
def joining() -> Sequence[int]:
    """The hosts whose nodes are to join later; likewise."""
    return ()


@pytest.fixture(scope="module")
def network(host_count: int) -> Iterator[hosts.Network]:
    one = hosts.Network(host_count)
    yield one
    one.remove()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery(timeout_s=START_S) as one:
        yield one


@pytest.fixture(scope="module")
def crowd() -> Iterator[Crowd]:
    with Crowd() as one:
        yield one


@pytest.fixture
def bed(nursery: Nursery, network: hosts.Network, joining: Sequence[int]) -> Iterator[HostsBed]:
    """A cluster with a node on each host, but for those that join later."""
    with HostsBed(nursery, network, joining=joining) as one:
        yield one
    assert one.leftovers() == []
