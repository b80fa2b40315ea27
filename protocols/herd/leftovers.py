"""HERD's shared memory (System V), which outlives its processes and keeps another HERD from beginning.

With the right to (root, CAP_SYS_ADMIN) a HERD is started in an IPC namespace of its own: the kernel then removes its
memory with the last of its processes, and several can run on one host.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from pathlib import Path

REGION_KEY = 24
INDEX_KEY, LOG_KEY, WORKERS_MAX = 3185, 4185, 128
_CLONE_NEWIPC = 0x08000000


def own_namespace() -> bool:
    """Give this process, and what it starts, an IPC namespace of its own. False when it may not."""
    return int(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWIPC)) == 0


def keys(listing: Path = Path("/proc/sysvipc/shm")) -> list[int]:
    """Those of segments that look like HERD's."""
    try:
        lines = listing.read_text().splitlines()[1:]
    except OSError:
        return []
    return [key for key in (int(line.split()[0]) for line in lines) if is_herds(key)]


def is_herds(key: int) -> bool:
    return key == REGION_KEY or any(first <= key < first + WORKERS_MAX for first in (INDEX_KEY, LOG_KEY))


def remedy(found: Iterable[int]) -> str:
    """What to type."""
    return "end that HERD, then: " + "; ".join(f"ipcrm -M {key}" for key in found)
