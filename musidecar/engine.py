"""The engine of one node, as Python sees it: ffi/engine/engine.h with types.

Nodes are given by id (1..n) here; C counts them from 0.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from musidecar._ffi import ffi, lib
from musidecar.config import Cluster, ConfigError, Node
from musidecar.fabrics import EngineError, Fabric, make_fabric
from musidecar.mesh import incarnation_number
from musidecar.protocols.backend import Address, Claim, Point

WHY_BYTES = 256
ROLES = {lib.REPLICA_FOLLOWER: "follower", lib.REPLICA_CANDIDATE: "follower", lib.REPLICA_LEADER: "leader"}
NOBODY = 0xFFFFFFFF  # REPLICA_NOBODY
BACKEND_STATES = ("down", "dirty", "syncing", "fed", "promoting", "leads")
STAGES = {"commit": lib.STAGE_COMMIT, "backend": lib.STAGE_BACKEND, "effect": lib.STAGE_EFFECT,
          "request": lib.STAGE_REQUEST}  # fmt: skip
COUNTERS = (
    "clients", "requests", "reads", "writes", "records", "effects", "effect_bytes", "batches", "probes", "forwarded",
    "local_reads", "rerun", "takeovers", "stepdowns", "closed_unknown", "turn_us_max", "free_bytes",
    "uncovered_commands", "uncovered_bytes", "handovers", "handover_pause_us", "refilled", "continued", "failed",
)  # fmt: skip


def replica_salt(secret: bytes, cluster: str) -> int:
    """64 bits by which records of this cluster are told from foreign or forged bytes."""
    return int.from_bytes(hmac.new(secret, b"musidecar log\0" + cluster.encode(), hashlib.sha256).digest()[:8])


def replica_config(config: Cluster, node_id: int, secret: bytes) -> Any:
    """A `struct replica_config *`. Without `set_members()` every node is a member, in its first life."""
    timing, limits = config.timing, config.limits
    return ffi.new(
        "struct replica_config *",
        {
            "self": node_id - 1,
            "nodes": len(config.nodes),
            "ring_bytes": limits.ring_bytes,
            "piece_bytes_max": limits.piece_bytes_max,
            "salt": replica_salt(secret, config.name),
            "suspect_us": timing.suspect_us,
            "fail_us": timing.fail_us,
            "late_us": timing.late_us,
            "request_us": timing.request_us,
            "pin_us": timing.pin_us,
            "pin_bytes": limits.pin_bytes_max,
            "seed": secrets.randbits(64),
        },
    )


def check_fabric(config: Cluster, node_id: int) -> None:
    """ConfigError, with the remedy, when this host cannot have the configured fabric: before anything is started."""
    if config.fabric == "shm":
        return
    try:
        make_fabric(config, node_id, replica_config(config, node_id, b"")).close()
    except EngineError as error:
        raise ConfigError([f"{config.path}: {error}"]) from None


def set_members(replica: Any, incarnation: str, members: Mapping[int, str]) -> None:
    """Names the own life, and those that were members when the cluster formed, by node."""
    replica.incarnation = incarnation_number(incarnation)
    for node, each in members.items():
        replica.members[node - 1] = incarnation_number(each)


# ---- the engine ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """What the engine tells: `kind` is a lib.ENGINE_ value, the rest as engine.h has it."""

    kind: int
    level: int
    a: int
    b: int
    text: str


class Engine:
    """One node's data plane. `run()` in a thread of its own; everything else from any other, until `free()`."""

    def __init__(self, settings: Mapping[str, Any], fabric: Fabric, commands: Any) -> None:
        why = ffi.new("char[]", WHY_BYTES)
        self._config = ffi.new("struct engine_config *", settings)
        self._keep = (fabric, commands, settings)  # they, and what is pointed to, outlive the engine
        self._e = lib.engine_new(self._config, fabric.fabric, commands, why, WHY_BYTES)
        if self._e == ffi.NULL:
            raise EngineError(f"the engine cannot be set up: {ffi.string(why).decode(errors='replace')}")
        self._event = ffi.new("struct engine_event *")

    def listen(self, listener: socket.socket) -> None:
        """Takes a listening socket for clients over."""
        self._check(lib.engine_listen(self._e, _hand_over(listener)), "clients' socket")

    def listen_feed(self, listener: socket.socket) -> None:
        """Takes the listening socket over to which the own backend connects for its feed."""
        self._check(lib.engine_listen_feed(self._e, _hand_over(listener)), "feed's socket")

    def add_link(self, node: int, fd: int) -> None:
        """Takes an authenticated stream to a peer's engine over."""
        os.set_blocking(fd, False)
        self._check(lib.engine_add_link(self._e, node - 1, fd), f"link to node {node}")

    def peer(self, node: int, pid: int, region: int) -> None:
        """Another life of a node has come, with these regions (`Fabric.region()`): the engine opens the link."""
        self._check(lib.engine_peer(self._e, node - 1, pid, region), f"link to the memory of node {node}")

    def _check(self, outcome: int, what: str) -> None:
        if outcome != 0:
            raise EngineError(f"the engine does not take the {what}")

    def run(self) -> int:
        """The loop: returns after `stop()` (0) or when the engine cannot go on (-1). The GIL is free meanwhile."""
        return int(lib.engine_run(self._e))

    def stop(self) -> None:
        lib.engine_stop(self._e)

    def free(self) -> None:
        """After run() has returned."""
        lib.engine_free(self._e)
        self._e = ffi.NULL

    @property
    def event_fd(self) -> int:
        """Readable when `events()` has some."""
        return int(lib.engine_event_fd(self._e))

    def events(self) -> Iterator[Event]:
        """Those that wait. One thread at a time."""
        try:
            os.eventfd_read(self.event_fd)
        except BlockingIOError:
            pass
        event = self._event
        while lib.engine_next_event(self._e, event):
            text = ffi.string(event.text).decode(errors="replace")
            yield Event(event.kind, event.level, event.a, event.b, text)

    def install_rdb(self, fd: int, length: int, offset: int, number: int) -> None:
        """Hands the RDB over that the engine asked for under `number`; takes the descriptor."""
        self._check(lib.engine_install_rdb(self._e, fd, length, offset, number), "RDB")

    def install_copy(self, done: int, given: int, exact: int, due_s: int, number: int) -> None:
        """The own backend was filled, as the engine asked for under `number`; the rest as engine.h has it."""
        self._check(lib.engine_install_copy(self._e, done, given, exact, due_s, number), "copy")

    def install_tail(self, piece: bytes, number: int) -> None:
        """Hands the piece of the stream over that the engine asked for under `number`."""
        self._check(lib.engine_install_tail(self._e, ffi.from_buffer(piece), len(piece), number), "changes")

    def rdb_failed(self, number: int) -> None:
        lib.engine_rdb_failed(self._e, number)

    def hand_over(self, node: int | None, prepare_ms: int, hold_ms: int, number: int) -> None:
        """Hand leadership over to `node` (None: to whom the engine chooses). An event ENGINE_HANDOVER with this number
        tells what came of it: after prepare_ms + hold_ms + takeover_timeout_ms at the latest."""
        peer = NOBODY if node is None else node - 1
        self._check(lib.engine_hand_over(self._e, peer, prepare_ms * 1000, hold_ms * 1000, number), "hand-over")

    def backend_ready(self) -> None:
        """The backend that was lost answers, and is prepared: the engine takes it up again."""
        self._check(lib.engine_backend_ready(self._e), "backend")

    def pause(self, paused: bool) -> None:
        """Automatic fail-over is to be paused, or resumed. `status()["paused"]` tells when that stands in the log."""
        self._check(lib.engine_pause(self._e, paused), "pause")

    def remove_member(self, node: int) -> None:
        """At the leader: `node` is to be a member no more. `status()["members"]` tells when that is so."""
        self._check(lib.engine_remove_member(self._e, node - 1), "removal")

    def points(self) -> Point:
        """Where the own backend stands in the log, of one that is filled by Python."""
        done, given, due_s = (ffi.new("uint64_t *") for _ in range(3))
        life = lib.engine_points(self._e, done, given, due_s)
        return Point(life, done[0], given[0], due_s[0])

    def backend_objection(self, term: int) -> str | None:
        """Why the own backend's data must not be given to a node in that term; None when it may.

        A leader deposed while it stood still is of an earlier term, whatever it takes itself for.
        """
        status = ffi.new("struct engine_status *")
        lib.engine_status(self._e, status)
        if status.term < term:
            return f"it is in term {status.term} still"
        if status.backend_state in (lib.BACKEND_FED, lib.BACKEND_LEADS):
            return None
        return f"its backend is {BACKEND_STATES[status.backend_state]}"

    def members(self) -> dict[int, int]:
        """Node -> the number of the incarnation of it that is a member."""
        status = ffi.new("struct engine_status *")
        lib.engine_status(self._e, status)
        return {i + 1: each for i, each in enumerate(status.members) if each}

    def latest(self) -> dict[int, int]:
        """Node -> the largest number of an incarnation of it that is or was a member."""
        status = ffi.new("struct engine_status *")
        lib.engine_status(self._e, status)
        return {i + 1: max(pair) for i, pair in enumerate(zip(status.members, status.former, strict=True)) if any(pair)}

    def leader_and_term(self) -> tuple[int | None, int]:
        """Id of the leader as far as known, and the term."""
        status = ffi.new("struct engine_status *")
        lib.engine_status(self._e, status)
        return (None if status.leader == NOBODY else status.leader + 1), status.term

    def status(self) -> dict[str, Any]:
        """The engine's part of a node's status: role, indexes, counters, stages (us), times of the last take-over."""
        status = ffi.new("struct engine_status *")
        lib.engine_status(self._e, status)
        role = ROLES[status.role]
        filled = not status.damage and status.backend_state not in (lib.BACKEND_DIRTY, lib.BACKEND_SYNCING)
        if role != "leader" and not (filled and status.is_member):
            role = "joining"
        times = {f"{name}_us": getattr(status, f"takeover_{name}_us") for name in _BACKEND_TIMES}
        times |= {name: getattr(status.takeover, name) for name in _CORE_TIMES}
        return {
            "role": role,
            "leader": None if status.leader == NOBODY else status.leader + 1,
            "serving": bool(status.serving),
            "term": status.term,
            "commit": status.commit,
            "applied": status.applied,
            "last": status.last,
            "log_position": status.log_position,
            "log_hash": f"{status.log_hash:016x}",
            "hash_index": status.hash_index,
            "eligible": bool(status.eligible),
            "damage": status.damage,
            "member": bool(status.is_member),
            "evicted": _ids(status.evicted),
            "members": {i + 1: f"{each:016x}" for i, each in enumerate(status.members) if each},
            "alive": _ids(status.alive),
            "confirmed": _ids(status.confirmed),
            "backend_state": BACKEND_STATES[status.backend_state],
            "backend_offset": status.backend_offset,
            "paused": bool(status.paused),
            "epoch": status.epoch,
            "effect_offset": status.effect_offset,
            "replid": ffi.string(status.replid).decode(),
            "told_replid": ffi.string(status.told_replid).decode(),
            "heir": None if status.heir == NOBODY else status.heir + 1,
            **{name: getattr(status, name) for name in COUNTERS},
            "takeover": times,
            "stages": {name: self._stage(number) for name, number in STAGES.items()},
        }

    def _stage(self, number: int) -> dict[str, float]:
        found = ffi.new("struct engine_percentiles *")
        lib.engine_stage(self._e, number, found)
        names = ("p50", "p90", "p99", "p999", "max")
        return {"count": found.count} | {f"{name}_us": getattr(found, f"{name}_ns") / 1000 for name in names}


_BACKEND_TIMES = ("fed", "promoted", "attached", "served")
_CORE_TIMES = ("suspected_us", "requested_us", "permitted_us", "prepared_us", "opened_us")


def _ids(mask: int) -> list[int]:
    return [bit + 1 for bit in range(mask.bit_length()) if mask >> bit & 1]


def _hand_over(listener: socket.socket) -> int:
    listener.setblocking(False)
    return listener.detach()


def engine_settings(
    config: Cluster,
    node: Node,
    replica: Any,
    backend: Address,
    of_backend: Mapping[str, Any],
    *,
    token: str,
    feed_port: int,
    pids: Mapping[int, int],
    seed: bool,
    claim: Claim | None,
) -> dict[str, Any]:
    """The fields of `struct engine_config`; of_backend: those of Backend.engine_fields(). ConfigError when the
    backend's host has no IPv4 address."""
    timing, limits = config.timing, config.limits
    return {
        "replica": replica[0],
        "tick_busy_us": timing.tick_busy_us,
        "spin_us": timing.spin_us,
        "tick_idle_us": timing.tick_idle_us,
        "backend_timeout_us": timing.backend_timeout_ms * 1000,
        "takeover_timeout_us": timing.takeover_timeout_ms * 1000,
        "feed_delay_us": timing.feed_delay_us,
        "feed_bytes_max": limits.feed_bytes_max,
        "stale_us": timing.stale_ms * 1000 if config.reads_locally(node) else 0,
        "replica_timeout_us": timing.replica_timeout_ms * 1000,
        "wait_timeout_us": timing.wait_timeout_ms * 1000,
        "clients_max": limits.clients_max,
        "client_input_bytes_max": limits.client_input_bytes_max,
        "client_output_bytes_max": limits.client_output_bytes_max,
        "backend_path": os.fsencode(backend.path),
        "backend_host": _ipv4(backend.host),
        "backend_port": backend.port,
        "backend_user": backend.user.encode(),
        "backend_password": backend.password.encode(),
        "feed_token": token.encode(),
        "feed_port": feed_port,
        "seed": seed,
        "claim_replid": claim.replid.encode() if claim else b"",
        "claim_before": claim.before.encode() if claim else b"",
        "claim_offset": claim.offset if claim else 0,
        "pids": [pids.get(i + 1, 0) for i in range(lib.FABRIC_NODES_MAX)],
        **of_backend,
    }


def _ipv4(host: str) -> bytes:
    if not host:
        return b""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError([f"backend address: {host} has no IPv4 address: {error.strerror}"]) from None
    return str(found[0][4][0]).encode()
