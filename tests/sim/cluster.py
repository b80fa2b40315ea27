"""A simulated cluster of real replicas (the C core, through cffi), driven step by step; time is simulated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from musidecar._ffi import ffi, lib

TICK_US = 500
ALL_PARTS = 0xFFFFFFFF
NOBODY = 0xFFFFFFFF


@dataclass(frozen=True)
class Record:
    """One record as a node was handed it."""

    index: int
    kind: int
    flags: int
    ballot: int
    origin: tuple[int, int, int]
    payload: bytes

    @property
    def contents(self) -> tuple[int, int, int, tuple[int, int, int], bytes]:
        """What all nodes must agree on, and what the ballot adds: records are copied as they are."""
        return self.index, self.kind, self.ballot, self.origin, self.payload


class Node:
    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster, self.number = cluster, number
        self.fabric = lib.sim_fabric(cluster.sim, number)
        self.incarnation = 1
        self.begin()

    def begin(self) -> None:
        """A life without memory."""
        sim, number = self.cluster.sim, self.number
        own = {"self": number, "incarnation": self.incarnation, "members": self.cluster.members}
        config = ffi.new("struct replica_config *", self.cluster.config | own)
        self.replica: Any = lib.replica_new(
            config, self.fabric, lib.sim_log(sim, number), lib.sim_background(sim, number)
        )
        assert self.replica != ffi.NULL
        self.delivered: list[Record] = []
        self.first = 1  # index of delivered[0]
        self.judged = 0  # index up to which a test has looked at them
        self.running = True
        self.dead = False
        self.applies = True
        self.isolated = False
        self.ticked_us = -1

    # -- what it says

    @property
    def role(self) -> int:
        return int(lib.replica_role(self.replica))

    @property
    def leads(self) -> bool:
        return bool(self.role == lib.REPLICA_LEADER)

    @property
    def commit(self) -> int:
        return int(lib.replica_commit(self.replica))

    @property
    def last(self) -> int:
        return int(lib.replica_last(self.replica))

    @property
    def term(self) -> int:
        return int(lib.replica_term(self.replica))

    @property
    def hash(self) -> int:
        return int(lib.replica_hash(self.replica))

    @property
    def damage(self) -> int:
        return int(lib.replica_damage(self.replica))

    @property
    def confirmed(self) -> set[int]:
        return bits(lib.replica_confirmed(self.replica))

    @property
    def payloads(self) -> list[bytes]:
        return [r.payload for r in self.delivered if r.kind not in (lib.RECORD_NOOP, lib.RECORD_CONFIG)]

    @property
    def members(self) -> dict[int, int]:
        """Incarnations by slot, as far as this node knows them to be decided."""
        return {i: int(lib.replica_incarnation(self.replica, i)) for i in bits(lib.replica_members(self.replica))}

    @property
    def is_member(self) -> bool:
        return bool(lib.replica_is_member(self.replica))

    @property
    def head(self) -> Any:
        return ffi.cast("struct replica_log_head *", lib.sim_log(self.cluster.sim, self.number))

    @property
    def background(self) -> Any:
        return ffi.cast("struct replica_background *", lib.sim_background(self.cluster.sim, self.number))

    @property
    def log(self) -> Any:
        return ffi.buffer(lib.sim_log(self.cluster.sim, self.number), self.cluster.log_bytes)

    def applied_point(self) -> tuple[int, int, int]:
        out = ffi.new("uint64_t[3]")
        lib.replica_applied_point(self.replica, out, out + 1, out + 2)
        return int(out[0]), int(out[1]), int(out[2])

    def applied_members(self) -> Any:
        """What a snapshot of the applied state carries: `struct replica_membership *`."""
        return ffi.new("struct replica_membership *", lib.replica_applied_members(self.replica))

    # -- what it is made to do

    def propose(self, payload: bytes, kind: int = 1, origin: tuple[int, int, int] = (0, 0, 0), flags: int = 0) -> int:
        made = ffi.new("struct record_origin *", {"node": origin[0], "stream": origin[1], "sequence": origin[2]})
        return int(lib.replica_propose(self.replica, kind, flags, made[0], payload, len(payload)))

    def propose_member(self, slot: int, incarnation: int) -> int:
        """Adds this incarnation; 0 removes the one that is there."""
        return int(lib.replica_propose_member(self.replica, slot, incarnation))

    def tick(self) -> None:
        self.ticked_us = self.cluster.now_us
        lib.replica_tick(self.replica, self.cluster.now_us, TICK_US)

    def poll(self) -> bool:
        moved = bool(lib.replica_poll(self.replica, self.cluster.now_us))
        self.take()
        return moved

    def take(self) -> None:
        while True:
            header = lib.replica_next(self.replica)
            if header == ffi.NULL:
                break
            payload = bytes(ffi.buffer(lib.record_payload(header), header.length))
            origin = (header.origin_node, header.origin_stream, header.origin_sequence)
            record = Record(header.index, header.kind, header.flags, header.ballot, origin, payload)
            assert record.index == self.first + len(self.delivered)
            self.delivered.append(record)
        if self.applies:
            self.apply()

    def apply(self) -> None:
        """Says that everything handed out is copied out."""
        if self.delivered:
            lib.replica_applied(self.replica, self.delivered[-1].index)

    def install(self, source: Node) -> None:
        index, position, running_hash = source.applied_point()
        members = source.applied_members()
        lib.replica_install(self.replica, index, position, running_hash, members, self.cluster.now_us)
        self.delivered, self.first, self.judged = [], index + 1, 0


def bits(mask: int) -> set[int]:
    return {i for i in range(8) if mask >> i & 1}


class Cluster:
    """`n` nodes, all linked, all eligible and members of the formation unless `eligible` and `members` say who."""

    def __init__(
        self,
        n: int = 3,
        *,
        ring_bytes: int = 1 << 14,
        piece_bytes: int = 2048,
        delay_us: tuple[int, int] = (0, 0),
        part_bytes: int = 0,
        seed: int = 1,
        eligible: Iterable[int] | None = None,
        members: Iterable[int] | None = None,
    ) -> None:
        self.members = [] if members is None else [int(i in members) for i in range(n)]
        self.config: dict[str, int] = {
            "nodes": n,
            "ring_bytes": ring_bytes,
            "piece_bytes_max": piece_bytes,
            "salt": 0xC0FFEE,
            "suspect_us": 2000,
            "fail_us": 4000,
            "late_us": 3000,
            "request_us": 1000,
            "seed": seed,
        }
        config = ffi.new("struct replica_config *", self.config | {"self": 0})
        self.log_bytes = int(lib.replica_log_bytes(config))
        sim_config = {
            "nodes": n,
            "log_bytes": self.log_bytes,
            "background_bytes": int(lib.replica_background_bytes()),
            "seed": seed,
            "delay_min_us": delay_us[0],
            "delay_max_us": delay_us[1],
            "part_bytes": part_bytes,
        }
        self.now_us = 1000
        self.sim: Any = lib.sim_new(ffi.new("struct sim_config *", sim_config))
        self.nodes = [Node(self, i) for i in range(n)]
        chosen = range(n) if eligible is None else eligible
        for node in self.nodes:
            lib.replica_set_eligible(node.replica, node.number in chosen)
            for peer in range(n):
                if peer != node.number:
                    lib.replica_peer_up(node.replica, peer, self.now_us)

    def close(self) -> None:
        for node in self.nodes:
            lib.replica_free(node.replica)
        lib.sim_free(self.sim)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number]

    # -- time

    @property
    def alive(self) -> list[Node]:
        return [node for node in self.nodes if node.running and not node.dead]

    def advance(self, us: int) -> None:
        """Time passes for the fabric alone."""
        self.now_us += us
        lib.sim_advance(self.sim, self.now_us)

    @property
    def reachable(self) -> list[Node]:
        return [node for node in self.alive if not node.isolated]

    def step(self, us: int = 50) -> None:
        self.advance(us)
        for node in self.alive:
            if self.now_us - node.ticked_us >= TICK_US or node.ticked_us < 0:
                node.tick()
            node.poll()

    def run(self, us: int) -> None:
        until = self.now_us + us
        while self.now_us < until:
            self.step()

    def run_until(self, what: Callable[[], object], within_us: int = 400_000) -> None:
        until = self.now_us + within_us
        while not what():
            assert self.now_us < until, self.describe()
            self.step()

    def describe(self) -> str:
        return "; ".join(
            f"node {n.number}{' dead' if n.dead else ''} role {n.role} term {n.term} commit {n.commit} last {n.last}"
            f" damage {n.damage} confirmed {sorted(n.confirmed)}"
            for n in self.nodes
        )

    # -- harm

    def kill(self, number: int, told: bool = True) -> None:
        self.nodes[number].dead = True
        lib.sim_crash(self.sim, number)
        if told:
            self.tell_down(number)

    def restart(self, number: int, incarnation: int) -> None:
        """Kills it unless it is dead; it comes back without memory, as this incarnation, linked to all that run."""
        node = self.nodes[number]
        lib.replica_free(node.replica)
        lib.sim_wipe(self.sim, number)
        node.incarnation = incarnation
        node.begin()
        lib.replica_set_eligible(node.replica, True)
        for other in self.nodes:
            if other.number != number and not other.dead and not other.isolated:
                self.heal(number, other.number)

    def tell_down(self, number: int) -> None:
        for node in self.alive:
            if node.number != number:
                lib.replica_peer_down(node.replica, number, self.now_us)

    def stop(self, number: int) -> None:
        """As SIGSTOP does: its stores stand still, half done or not."""
        self.nodes[number].running = False
        lib.sim_freeze(self.sim, number, True)

    def go_on(self, number: int) -> None:
        self.nodes[number].running = True
        lib.sim_freeze(self.sim, number, False)

    def hold(self, source: int, target: int, parts: int = 0) -> None:
        """Only `parts` more parts of what `source` posts to the log of `target` land, until release()."""
        lib.sim_hold(self.sim, source, target, parts)

    def release(self, source: int, target: int) -> None:
        lib.sim_hold(self.sim, source, target, ALL_PARTS)

    def cut(self, a: int, b: int) -> None:
        lib.sim_cut(self.sim, a, b)
        lib.sim_cut(self.sim, b, a)

    def heal(self, a: int, b: int) -> None:
        for source, target in ((a, b), (b, a)):
            lib.sim_heal(self.sim, source, target)
            lib.replica_peer_up(self.nodes[source].replica, target, self.now_us)

    def isolate(self, number: int) -> None:
        self.nodes[number].isolated = True
        for other in self.nodes:
            if other.number != number:
                self.cut(number, other.number)

    def rejoin(self, number: int) -> None:
        self.nodes[number].isolated = False
        for other in self.nodes:
            if other.number != number:
                self.heal(number, other.number)

    # -- usual steps

    def leader(self) -> Node:
        """Runs until one leads and all that are alive agree on it."""

        def agreed() -> bool:
            leading = [n for n in self.reachable if n.leads]
            return len(leading) == 1 and all(lib.replica_leader(n.replica) == leading[0].number for n in self.reachable)

        self.run_until(agreed)
        return next(n for n in self.reachable if n.leads)

    def all_confirmed(self) -> Node:
        """Runs until one leads and everybody alive is its confirmed follower."""
        leader = self.leader()
        everybody = {n.number for n in self.reachable}
        self.run_until(lambda: leader.leads and leader.confirmed == everybody)
        return leader

    def commit(self, node: Node, payload: bytes, **more: Any) -> int:
        """Proposes, once there is room, and runs until the leader sees it committed."""
        index = node.propose(payload, **more)
        while index == lib.REPLICA_FULL:
            self.step()
            index = node.propose(payload, **more)
        assert index > 0, index
        self.run_until(lambda: node.commit >= index)
        return index

    def change(self, leader: Node, slot: int, incarnation: int) -> int:
        """Changes the membership, once it can be; runs until the leader sees it decided."""
        index = leader.propose_member(slot, incarnation)
        until = self.now_us + 400_000
        while index in (lib.REPLICA_NOT_NOW, lib.REPLICA_FULL):
            assert self.now_us < until, self.describe()
            self.step()
            index = leader.propose_member(slot, incarnation)
        assert index > 0, index
        self.run_until(lambda: leader.commit >= index)
        return index

    def converge(self) -> None:
        """Runs until everybody alive has been handed the same; then checks that it is the same."""
        self.run_until(lambda: len({n.commit for n in self.alive}) == 1 and len({n.hash for n in self.alive}) == 1)
        self.check()

    def check(self) -> None:
        """Agreement: at each index everybody was handed the same record."""
        seen: dict[int, Any] = {}
        for node in self.nodes:
            for record in node.delivered:
                assert seen.setdefault(record.index, record.contents) == record.contents
