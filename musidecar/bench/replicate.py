"""`musidecar bench replicate`: what a commit costs, without a network or a backend.

Three processes, one replica each, over shm. The leader proposes a record and polls until it is committed, in C
(ffi/bench/replicate.c), and every one is timed. In turns with it, in the same processes, the least that replication
could cost: copies of the same record bytes between the same two fences into three mappings of the same size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musidecar._ffi import ffi, lib
from musidecar.bench.plot import grouped_bars
from musidecar.bench.table import Figure, console, figures, median, plain

NODES = 3
RING_BYTES = 16 << 20
PIECE_BYTES_MAX = 128 << 10
TICK_US = 200
HAZARD_US = 50
LEAD_TIMEOUT_US = 10_000_000
PACKET_BYTES = 1 << 16
WANTED_P50_US, WANTED_P99_US, WANTED_RATIO = 0.5, 2.0, 3.0

Order = dict[str, Any]
_PERCENTILES = ("p50", "p90", "p99", "p999", "max")


class ReplicateError(Exception):
    """The benchmark could not be run; says why."""


@dataclass(frozen=True)
class Round:
    """Durations of one round in microseconds, and how many there were."""

    count: int
    seconds: float
    full: int
    clock_us: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float


# -- a member process ------------------------------------------------------------------------------------------------


class _Member:
    """One replica in a process of its own; its methods are what it can be told to do."""

    def __init__(self, node: int, payload_bytes: int, processor: int) -> None:
        self.node = node
        settings = {"self": node, "nodes": NODES, "ring_bytes": RING_BYTES, "piece_bytes_max": PIECE_BYTES_MAX}
        settings |= {"payload_bytes": payload_bytes, "tick_us": TICK_US, "processor": processor}
        self.config = ffi.new("struct replicate_config *", settings)
        shm = {"self": node, "nodes": NODES, "hazard_us": HAZARD_US, "force_fence": 0}
        shm |= {"log_bytes": lib.replicate_log_bytes(self.config), "background_bytes": lib.replicate_background_bytes()}
        self.shm = lib.shm_new(ffi.new("struct shm_config *", shm))
        if not self.shm:
            raise ReplicateError(f"no shared memory: {os.strerror(ffi.errno)}")
        self.member: Any = None

    def fds(self, _: list[int]) -> tuple[Order, list[int]]:
        fds = lib.shm_fds(self.shm)
        return {"log_bytes": self.config_log_bytes()}, [fds.log, fds.background, fds.doorbell]

    def config_log_bytes(self) -> int:
        return int(lib.replicate_log_bytes(self.config))

    def attach(self, fds: list[int], peer: int, pid: int) -> tuple[Order, list[int]]:
        given = ffi.new("struct shm_descriptors *", dict(zip(("log", "background", "doorbell"), fds, strict=True)))
        self.check(lib.shm_attach(self.shm, peer, given[0], pid))
        return {}, []

    def fence(self, _: list[int], peer: int) -> tuple[Order, list[int]]:
        mapping = ffi.new("uint64_t *")
        fd = lib.shm_fence_fd(self.shm, peer, mapping)
        return {"mapping": mapping[0]}, [fd] if fd >= 0 else []

    def link(self, fds: list[int], peer: int, mapping: int) -> tuple[Order, list[int]]:
        self.check(lib.shm_set_fence(self.shm, peer, fds[0] if fds else -1, mapping))
        self.check(lib.shm_open_link(self.shm, peer))
        return {}, []

    def begin(self, fds: list[int]) -> tuple[Order, list[int]]:
        """`fds`: scratch memory of every node, control memory."""
        self.member = lib.replicate_new(self.config, self.shm, ffi.new("int[]", fds[:NODES]), fds[NODES])
        self.check(0 if self.member else -1)
        for fd in fds:
            os.close(fd)
        return {}, []

    def follow(self, _: list[int]) -> tuple[Order, list[int]]:
        return self.outcome(lib.replicate_follow(self.member))

    def lead(self, _: list[int]) -> tuple[Order, list[int]]:
        return {"leads": lib.replicate_lead(self.member, LEAD_TIMEOUT_US)}, []

    def measure(self, _: list[int], what: str, duration_us: int) -> tuple[Order, list[int]]:
        result = getattr(lib, f"replicate_{what}")(self.member, duration_us)
        durations = {name: getattr(result, f"{name}_ns") / 1000 for name in _PERCENTILES}
        counts = {"count": result.count, "seconds": result.seconds, "full": result.full}
        return {**counts, "clock_us": result.clock_ns / 1000, **durations}, []

    def stop(self, _: list[int]) -> tuple[Order, list[int]]:
        return self.outcome(lib.replicate_stop(self.member))

    def outcome(self, commit: int) -> tuple[Order, list[int]]:
        return {"commit": commit, "hash": lib.replicate_hash(self.member)}, []

    def check(self, result: int) -> None:
        if result < 0:
            raise ReplicateError(os.strerror(ffi.errno))

    def free(self) -> None:
        if self.member:
            lib.replicate_free(self.member)
        lib.shm_free(self.shm)


def _serve(control: socket.socket, node: int, payload_bytes: int, processor: int) -> None:
    """A member's life: does what it is told until the socket closes."""
    member = _Member(node, payload_bytes, processor)
    while True:
        try:
            packet, fds, _, _ = socket.recv_fds(control, PACKET_BYTES, 8)
        except ConnectionResetError:  # given up with an answer unread
            break
        if not packet:
            break
        order: Order = json.loads(packet)
        try:
            answer, given = getattr(member, order.pop("do"))(fds, **order)
        except ReplicateError as error:
            answer, given = {"error": str(error)}, []
        try:
            socket.send_fds(control, [json.dumps(answer).encode()], given)
        except BrokenPipeError:
            break
    member.free()


class _Remote:
    """A member process, seen from the one that measures."""

    def __init__(self, node: int, payload_bytes: int, processor: int) -> None:
        self.node = node
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = [str(number) for number in (theirs.fileno(), node, payload_bytes, processor)]
            command = [sys.executable, "-m", "musidecar.bench.replicate", "--member", *words]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    def tell(self, verb: str, fds: Sequence[int] = (), **order: Any) -> None:
        socket.send_fds(self.control, [json.dumps({"do": verb, **order}).encode()], list(fds))

    def hear(self) -> tuple[Order, list[int]]:
        packet, fds, _, _ = socket.recv_fds(self.control, PACKET_BYTES, 8)
        if not packet:
            raise ReplicateError(f"member {self.node} ended: status {self.process.wait()}")
        answer: Order = json.loads(packet)
        if "error" in answer:
            raise ReplicateError(f"member {self.node}: {answer['error']}")
        return answer, fds

    def ask(self, verb: str, fds: Sequence[int] = (), **order: Any) -> tuple[Order, list[int]]:
        self.tell(verb, fds, **order)
        return self.hear()

    def end(self) -> None:
        self.control.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# -- the measurement ---------------------------------------------------------------------------------------------------


def _hand_over(members: Sequence[_Remote]) -> None:
    """Links every member with every other, as shm.h says."""
    with contextlib.ExitStack() as owned:

        def mine(fds: list[int]) -> list[int]:
            for fd in fds:
                owned.callback(os.close, fd)
            return fds

        asked = [member.ask("fds") for member in members]
        regions = [mine(fds) for _, fds in asked]
        pairs = [(a, b) for a in members for b in members if a is not b]
        for here, there in pairs:
            here.ask("attach", regions[there.node], peer=there.node, pid=there.process.pid)
        fences = {(w.node, o.node): w.ask("fence", peer=o.node) for w, o in pairs}
        for owner, writer in pairs:
            answer, fds = fences[writer.node, owner.node]
            owner.ask("link", mine(fds), peer=writer.node, mapping=answer["mapping"])
        log_bytes = asked[0][0]["log_bytes"]
        scratch = mine([os.memfd_create(f"musidecar-scratch-{i}", os.MFD_CLOEXEC) for i in range(NODES)])
        control = mine([os.memfd_create("musidecar-control", os.MFD_CLOEXEC)])
        for fd in scratch:
            os.posix_fallocate(fd, 0, log_bytes)
        os.posix_fallocate(control[0], 0, 4096)
        for member in members:
            member.ask("begin", scratch + control)


@contextlib.contextmanager
def _cluster(payload_bytes: int, pin: bool) -> Iterator[list[_Remote]]:
    processors = sorted(os.sched_getaffinity(0))
    pinned = [processors[0], *(processors[1 + i % (len(processors) - 1)] for i in range(NODES - 1))] if pin else []
    members: list[_Remote] = []
    try:
        for node in range(NODES):
            members.append(_Remote(node, payload_bytes, pinned[node] if pinned else 0xFFFFFFFF))
        _hand_over(members)
        yield members
    finally:
        for member in members:
            member.end()


def measure(rounds: int, payload_bytes: int, seconds: float, pin: bool = False) -> dict[str, list[Round]]:
    """Runs `rounds` pairs of rounds of `seconds` each, the order within a pair alternating. Keys: commits, copies.

    Raises ReplicateError when the cluster does not come up, loses its leader, or its logs differ at the end.
    """
    results: dict[str, list[Round]] = {"commits": [], "copies": []}
    with _cluster(payload_bytes, pin) as (leader, *followers):
        for follower in followers:
            follower.tell("follow")
        if not leader.ask("lead")[0]["leads"]:
            raise ReplicateError("no leader with both followers confirmed")
        for what in results:
            leader.ask("measure", what=what, duration_us=100_000)  # warm
        for i in range(rounds):
            for what in ("commits", "copies") if i % 2 == 0 else ("copies", "commits"):
                answer, _ = leader.ask("measure", what=what, duration_us=int(seconds * 1e6))
                if not answer["count"]:
                    raise ReplicateError("the leader lost its leadership during the measurement")
                results[what].append(Round(**answer))
        ends = [leader.ask("stop")[0], *(follower.hear()[0] for follower in followers)]
        if any(end != ends[0] for end in ends):
            raise ReplicateError(f"the logs differ: {ends}")
    return results


def _summary(results: dict[str, list[Round]]) -> tuple[list[Figure], list[list[Any]]]:
    """Figures beside their bars, and rows of the comparison; medians of the rounds, microseconds."""
    at = {
        (what, name): median(getattr(r, name) for r in rounds)
        for what, rounds in results.items()
        for name in _PERCENTILES
    }
    pairs = list(zip(results["commits"], results["copies"], strict=True))
    ratio = {name: median(getattr(a, name) / getattr(b, name) for a, b in pairs) for name in _PERCENTILES}
    met = [
        Figure("commit, p50", at["commits", "p50"], "us", at_most=WANTED_P50_US),
        Figure("commit, p99", at["commits", "p99"], "us", at_most=WANTED_P99_US),
        Figure("commit / raw copies, p50", ratio["p50"], "x", at_most=WANTED_RATIO),
    ]
    names = {"commits": "propose + commit", "copies": "raw copies"}
    rows = [
        [names[what], *(at[what, name] for name in _PERCENTILES), _rate(rounds)] for what, rounds in results.items()
    ]
    rows.append(["ratio", *(ratio[name] for name in _PERCENTILES), ""])
    return met, rows


def _rate(rounds: Sequence[Round]) -> str:
    return f"{median(r.count / r.seconds for r in rounds) / 1e6:.2f} M/s"


def _picture(path: Path, payload_bytes: int, results: dict[str, list[Round]]) -> str:
    names = _PERCENTILES[:-1]
    values = {what: [[getattr(r, name) for r in rounds] for name in names] for what, rounds in results.items()}
    return grouped_bars(
        path,
        f"Committing a record of {payload_bytes} bytes on three replicas, beside copying it three times",
        "microseconds (median of rounds; whiskers: lowest and highest round)",
        ["p50", "p90", "p99", "p99.9"],
        {what: [median(column) for column in columns] for what, columns in values.items()},
        {what: [(min(column), max(column)) for column in columns] for what, columns in values.items()},
    )


def run(
    rounds: int = 7, payload_bytes: int = 64, seconds: float = 1.0, png: Path | None = None, pin: bool = False
) -> int:
    """Measures, prints the tables, draws `png` if given. 0: every figure is met; 1: one is missed, or it could not be
    measured (says why on stderr)."""
    out = console()
    if not 1 <= payload_bytes <= PIECE_BYTES_MAX or rounds < 1 or seconds <= 0:
        print(f"bench replicate: a payload of 1..{PIECE_BYTES_MAX} bytes, at least one round", file=sys.stderr)
        return 2
    if pin and len(os.sched_getaffinity(0)) < 2:
        print("bench replicate: one processor alone: nothing to pin to", file=sys.stderr)
        return 2
    try:
        results = measure(rounds, payload_bytes, seconds, pin)
    except ReplicateError as error:
        print(f"bench replicate: {error}", file=sys.stderr)
        return 1
    met, rows = _summary(results)
    commits = results["commits"]
    title = (
        f"{payload_bytes}-byte records, {NODES} replicas in {NODES} processes, microseconds, median of {rounds} rounds"
    )
    out.print(plain(title, ["", "p50", "p90", "p99", "p99.9", "max", "rate"], rows))
    out.print(figures("wanted", met))
    out.print(
        f"{sum(r.count for r in commits):,} commits; waited {sum(r.full for r in commits)} times for room in the ring "
        f"(not timed); timing itself costs {median(r.clock_us for r in commits) * 1000:.0f} ns of each"
    )
    if png is not None:
        out.print(_picture(png, payload_bytes, results))
    return 0 if all(figure.met for figure in met) else 1


def main() -> None:
    """`python -m musidecar.bench.replicate`."""
    parser = argparse.ArgumentParser(description="How long committing a record takes, beside raw copies.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--payload-bytes", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each round and contestant")
    parser.add_argument("--png", type=Path)
    parser.add_argument("--pin", action="store_true", help="the leader to a processor, the followers to the others")
    parser.add_argument("--member", nargs=4, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.member:
        fd, node, payload_bytes, processor = options.member
        _serve(socket.socket(fileno=fd), node, payload_bytes, processor)
        return
    sys.exit(run(options.rounds, options.payload_bytes, options.seconds, options.png, options.pin))


if __name__ == "__main__":
    main()
