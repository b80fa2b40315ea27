"""Replicate a deterministic Python object of your own: docs/api.md.

with Replica("cluster.toml", node=1, machine=Counter()) as replica:
    replica.propose(b"5")
    replica.read(lambda machine: machine.value)
"""

from musidecar.api.awaited import AsyncReplica
from musidecar.api.blocking import Replica
from musidecar.api.host import Closed, Leadership
from musidecar.config import ConfigError
from musidecar.protocols.own.proposals import Unknown
from musidecar.protocols.own.replicated import Machine, MachineFailed, Rejected

__all__ = [
    "AsyncReplica",
    "Closed",
    "ConfigError",
    "Leadership",
    "Machine",
    "MachineFailed",
    "Rejected",
    "Replica",
    "Unknown",
]
