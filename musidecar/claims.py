"""What a backend still holds of the cluster's data when a node begins another life: a Redis that outlived its sidecar,
or one that has loaded what was saved when it was stopped in order.

It is a claim: that the data is what the cluster's log says up to an offset of a history. Whether the log vouches for it
is for the engine to see (ffi/engine/claim.c). What the log cannot know is seen to here: that all of it is of the same
formation of the cluster, and that nobody else has done anything to that Redis since a feed, or leadership, was its
only source.
"""

from __future__ import annotations

from dataclasses import dataclass

from musidecar.kept import Record
from musidecar.protocols.backend import Backend, Claim


@dataclass(frozen=True)
class Former:
    """What is known of a node's former life before its backend is prepared for another. outlived: the Redis was
    prepared by that life, and has run since. restored: it has loaded what that life saved at its end."""

    record: Record | None
    outlived: bool
    restored: bool

    def trusted(self, generation: int, formation: str) -> bool:
        """Is what the Redis holds of this formation of the cluster?"""
        record = self.record
        if record is None or (record.generation, record.formation) != (generation, formation):
            return False
        return (self.outlived and record.filled) or (self.restored and record.clean)


def may_restore(record: Record | None, generation: int) -> bool:
    """Is what a backend of the node's own has saved of use in a cluster that runs?"""
    return record is not None and record.clean and record.data is not None and record.generation == generation


def look(former: Former, backend: Backend, generation: int, formation: str) -> Claim | None:
    """What the backend claims; None when that is nothing to go by. BackendError when it cannot be asked."""
    if not former.trusted(generation, formation):
        return None
    data = former.record.data if former.record is not None else None
    if former.outlived or not former.restored:
        return backend.claim(None)
    return backend.claim(data) if data is not None else None
