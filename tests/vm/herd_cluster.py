"""A cluster of HERDs, one node on each host of a Network; as with Redis (hosts_cluster.py), but for registers only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from musidecar.compare import compare_caches
from musidecar.protocols.herd.connection import Connection, Status
from musidecar.protocols.server import Address
from tests.fault.nursery import Nursery
from tests.vm import herd_double
from tests.vm.hosts import Network
from tests.vm.hosts_cluster import COMPARE_S, WELL_AGAIN_S, HostsBed

# Six workers that never sleep, on the two processors of an emulated guest and at idle priority, wait long for a turn.
ANSWER_MS = 60_000 if herd_double.REAL else 8_000
START_MS = 140_000


class HerdBed(HostsBed):
    """With `main` as HERD's program everywhere. All HERDs have the first device, each its own queue pairs."""

    kinds = "r"
    well_again_s = 5 * WELL_AGAIN_S if herd_double.REAL else WELL_AGAIN_S

    def __init__(self, nursery: Nursery, network: Network, main: Path, **timing: int) -> None:
        super().__init__(nursery, network, **timing)
        self.main = main

    def backend_of(self, host: int) -> str:
        return (
            f'kind = "herd", socket = "herd-{host}.sock", spawn = true, herd_main = "{self.main}",'
            f" workers = {herd_double.WORKERS}, answer_ms = {ANSWER_MS}, start_ms = {START_MS}, keys_max = 100000"
        )

    def gate(self, host: int) -> Address:
        return Address(path=f"{self.dir}/herd-{host}.sock")

    def counted(self, host: int) -> Status:
        """By its gate."""
        with Connection(self.gate(host), COMPARE_S) as connection:
            return connection.status()

    def differences(self, hosts: Sequence[int]) -> list[str]:
        return compare_caches("herd", {str(host): self.gate(host).path for host in hosts}, COMPARE_S).differences
