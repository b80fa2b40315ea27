"""The fabrics of one node, as Python sees them: ffi/fabric/shm.h and ffi/fabric/verbs.h with types.

Nodes are given by id (1..n) here; C counts them from 0.
"""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from musidecar import formation
from musidecar._ffi import ffi, lib
from musidecar.config import Cluster
from musidecar.formation import Unfit
from musidecar.mesh import close_all

STAGING_BYTES_MIN = 256 << 10
WORDS = ("layout", "node", "mtu", "lid", "is_ethernet", "log_bytes", "background_bytes", "log_address",
         "background_address", "life", "log_key", "background_key")  # fmt: skip
PAIRS = ("out_number", "in_number", "out_psn", "in_psn")
GID_BYTES = 16


class EngineError(Exception):
    """The data plane cannot be set up; the text says why."""


class Fabric(formation.Fabric):
    """What the node and its engine need of a fabric, beyond handing it over."""

    @property
    @abstractmethod
    def fabric(self) -> Any:
        """The `struct fabric *`."""

    @abstractmethod
    def region(self, node: int) -> int:
        """Names the life of that peer which is attached; 0: none."""

    @abstractmethod
    def is_open(self, node: int) -> bool:
        """Does the engine use the link to that life?"""

    @property
    @abstractmethod
    def warning(self) -> str:
        """What its user should know of it; empty when nothing."""


def staging_bytes(config: Cluster) -> int:
    """Registered memory of a verbs fabric for each region of each peer, beside its own regions."""
    return max(STAGING_BYTES_MIN, 2 * config.limits.piece_bytes_max)


def make_fabric(config: Cluster, node_id: int, replica: Any) -> Fabric:
    """What `cluster.fabric` asks for. EngineError with the remedy when this host cannot have it."""
    return VerbsFabric(config, node_id, replica) if config.fabric == "verbs" else ShmFabric(config, node_id, replica)


def _check_kind(node: int, offer: dict[str, Any], kind: str, fds: Sequence[int]) -> None:
    theirs = offer.get("fabric")
    if theirs == kind:
        return
    close_all(fds)
    raise Unfit(f"node {node} is on the fabric {theirs!r}, this one on {kind!r}: give all the same cluster.fabric")


def _errno_text() -> str:
    return os.strerror(ffi.errno)


# ---- within one host -------------------------------------------------------------------------------------------------


class ShmFabric(Fabric):
    """This node's regions, and those of its peers mapped."""

    def __init__(self, config: Cluster, node_id: int, replica: Any) -> None:
        settings = {
            "self": node_id - 1,
            "nodes": len(config.nodes),
            "log_bytes": lib.replica_log_bytes(replica),
            "background_bytes": lib.replica_background_bytes(),
            "hazard_us": config.timing.hazard_us,
            "force_fence": 0,
            "hurries": 1,
        }
        self.shm = lib.shm_new(ffi.new("struct shm_config *", settings))
        if self.shm == ffi.NULL:
            raise EngineError(f"cannot make the log's memory ({settings['log_bytes']} bytes): {_errno_text()}")

    def offer(self, node: int) -> tuple[dict[str, Any], Sequence[int]]:
        fds = lib.shm_fds(self.shm)
        return {"fabric": "shm"}, (fds.log, fds.background, fds.doorbell)

    def attach(self, node: int, offer: dict[str, Any], fds: Sequence[int], pid: int) -> None:
        _check_kind(node, offer, "shm", fds)
        if len(fds) != 3:
            close_all(fds)
            raise OSError(errno.EPROTO, f"node {node} sent {len(fds)} descriptors")
        if lib.shm_attach(self.shm, node - 1, tuple(fds), pid) != 0:
            error, text = ffi.errno, f"node {node}'s log does not fit this node's"
            if error == errno.EINVAL:
                raise Unfit(f"{text}: give all nodes one version of musidecar, and one configuration file")
            raise OSError(error, f"{text}: {os.strerror(error)}")

    def fence(self, node: int) -> tuple[int | None, int]:
        mapping = ffi.new("uint64_t *")
        fd = lib.shm_fence_fd(self.shm, node - 1, mapping)
        return (None if fd < 0 else fd), mapping[0]

    def set_fence(self, node: int, fd: int | None, mapping: int) -> None:
        if lib.shm_set_fence(self.shm, node - 1, -1 if fd is None else fd, mapping) != 0:
            raise OSError(ffi.errno, f"no fence against node {node}: {_errno_text()}")

    def open_link(self, node: int) -> None:
        if lib.shm_open_link(self.shm, node - 1) != 0:
            raise OSError(ffi.errno, f"no link to node {node}: {_errno_text()}")

    def region(self, node: int) -> int:
        """Names the life of that peer which is attached; 0: none."""
        return int(lib.shm_region(self.shm, node - 1))

    def is_open(self, node: int) -> bool:
        """Does the link to that peer work?"""
        return bool(lib.shm_is_open(self.shm, node - 1))

    @property
    def fabric(self) -> Any:
        return lib.shm_fabric(self.shm)

    def is_broken(self, node: int) -> bool:
        return False  # a link between two living processes of one host does not break

    @property
    def is_renewable(self) -> bool:
        return False

    @property
    def warning(self) -> str:
        if lib.shm_fence_kind(self.shm) == lib.SHM_FENCE_USERFAULTFD:
            return ""
        return "a node stopped in mid-write can only be fenced by killing it here: see `musidecar doctor`"

    def close(self) -> None:
        if self.shm != ffi.NULL:
            lib.shm_free(self.shm)
            self.shm = ffi.NULL


# ---- between hosts ---------------------------------------------------------------------------------------------------


class VerbsFabric(Fabric):
    """This node's RDMA device, its regions, and its queue pairs to the peers."""

    def __init__(self, config: Cluster, node_id: int, replica: Any) -> None:
        wanted = config.node_verbs(node_id)
        settings = {
            "self": node_id - 1,
            "nodes": len(config.nodes),
            "log_bytes": lib.replica_log_bytes(replica),
            "background_bytes": lib.replica_background_bytes(),
            "staging_bytes": staging_bytes(config),
            "device": (wanted.device or "").encode(),
            "port": wanted.port or 0,
            "gid_index": -1 if wanted.gid_index is None else wanted.gid_index,
            "mtu": wanted.mtu or 0,
            "timeout": wanted.timeout,
            "retry_count": wanted.retry_count,
            "huge_pages": wanted.huge_pages,
            "always_cycle": wanted.always_cycle,
        }
        self._why = ffi.new("char[]", lib.VERBS_WHY_BYTES)
        self.verbs = lib.verbs_new(ffi.new("struct verbs_config *", settings), self._why, lib.VERBS_WHY_BYTES)
        if self.verbs == ffi.NULL:
            raise EngineError(self._reason())

    def _reason(self) -> str:
        return bytes(ffi.string(self._why)).decode(errors="replace")

    def offer(self, node: int) -> tuple[dict[str, Any], Sequence[int]]:
        end = ffi.new("struct verbs_end *")
        if lib.verbs_describe(self.verbs, node - 1, end, self._why, lib.VERBS_WHY_BYTES) != 0:
            raise OSError(errno.EIO, self._reason())
        words = {name: int(getattr(end, name)) for name in WORDS}
        pairs = {name: list(getattr(end, name)) for name in PAIRS}
        return {"fabric": "verbs", "gid": bytes(end.gid).hex(), **words, **pairs}, ()

    def attach(self, node: int, offer: dict[str, Any], fds: Sequence[int], pid: int) -> None:
        _check_kind(node, offer, "verbs", fds)
        close_all(fds)
        try:
            end = _end(offer)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise OSError(errno.EPROTO, f"what node {node} says of its queue pairs is malformed") from None
        if lib.verbs_attach(self.verbs, node - 1, end, self._why, lib.VERBS_WHY_BYTES) != 0:
            raise Unfit(self._reason())

    def fence(self, node: int) -> tuple[int | None, int]:
        return None, 0  # the device is the fence

    def set_fence(self, node: int, fd: int | None, mapping: int) -> None:
        if fd is not None:
            close_all([fd])

    def open_link(self, node: int) -> None:
        if lib.verbs_open_link(self.verbs, node - 1) != 0:
            raise OSError(ffi.errno, f"no link to node {node}: {_errno_text()}")

    @property
    def fabric(self) -> Any:
        return lib.verbs_fabric(self.verbs)

    def region(self, node: int) -> int:
        return int(lib.verbs_life(self.verbs, node - 1))

    def is_open(self, node: int) -> bool:
        return bool(lib.verbs_is_open(self.verbs, node - 1))

    def is_broken(self, node: int) -> bool:
        return bool(lib.verbs_is_broken(self.verbs, node - 1))

    @property
    def is_renewable(self) -> bool:
        return True

    def place(self) -> dict[str, Any]:
        """What was found: device, port, GID index (-1: LIDs) and GID, MTU and inline limit in bytes, queue depth."""
        place = lib.verbs_place(self.verbs)
        names = ("port", "gid_index", "mtu", "inline_bytes", "queue_depth", "is_ethernet", "is_software")
        found = {name: getattr(place, name) for name in names}
        return {"device": ffi.string(place.device).decode(), "gid": bytes(place.gid).hex(), **found}

    @property
    def warning(self) -> str:
        return ""

    def close(self) -> None:
        if self.verbs != ffi.NULL:
            lib.verbs_free(self.verbs)
            self.verbs = ffi.NULL


def _end(offer: dict[str, Any]) -> Any:
    """A `struct verbs_end *` of what came over the mesh. ValueError and its like when it is none."""
    gid = bytes.fromhex(offer["gid"])
    if len(gid) != GID_BYTES:
        raise ValueError("not a GID")
    fields = {name: offer[name] for name in (*WORDS, *PAIRS)} | {"gid": gid, "is_ethernet": bool(offer["is_ethernet"])}
    return ffi.new("struct verbs_end *", fields)
