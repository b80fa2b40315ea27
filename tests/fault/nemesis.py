"""What is done to a cluster while clients use it, from a number: kill -9 and SIGSTOP/SIGCONT of sidecars, backends and
whole nodes, connections cut from outside; one or two of these at once, never on more nodes than a minority.

The number decides what is done to whom and how long it lasts, not what the scheduler makes of it: a number that found
something finds it again more or less often, not always.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from musidecar.mesh import Unreachable, ask
from musidecar.testbed import wait_until
from tests.fault.nursery import Cradle

LASTING = ("kill", "kill-backend", "kill-node", "stop-kill")
PASSING = ("stop", "stop-backend", "stop-node", "cut-backend", "cut-feed", "cut-links")
_WEIGHTS = {"kill": 4, "kill-backend": 2, "kill-node": 2, "stop-kill": 2, "cut-links": 2, "stop": 5, "stop-backend": 2,
            "stop-node": 2, "cut-backend": 2, "cut-feed": 1}  # fmt: skip
_SYS_PIDFD_GETFD = 438  # the same on every architecture


@dataclass(frozen=True)
class Fault:
    """One thing done. victim: 0 the leader of that moment, 1 its first follower, and so on. hold_s: how long it lasts,
    where it passes."""

    kind: str
    victim: int
    hold_s: float = 0.0

    def __str__(self) -> str:
        whom = "the leader" if self.victim == 0 else f"follower {self.victim}"
        return f"{self.kind} of {whom}" + (f" for {self.hold_s * 1e3:.0f} ms" if self.hold_s else "")


@dataclass(frozen=True)
class Strike:
    """Faults that begin at the same moment, `after_s` from when the cluster was found well."""

    after_s: float
    faults: tuple[Fault, ...]
    mended: bool = True  # nodes that do not recover by themselves are started again before the next one

    @property
    def lasting(self) -> frozenset[int]:
        """Victims that do not recover from it."""
        return frozenset(fault.victim for fault in self.faults if fault.kind in LASTING)


def _hold_s(chance: random.Random) -> float:
    """Blips that nobody may notice, stops that are noticed, and long ones."""
    return chance.choice([chance.uniform(0.001, 0.02), chance.uniform(0.03, 0.3), chance.uniform(0.03, 0.3),
                          chance.uniform(0.4, 0.9)])  # fmt: skip


def _fault(chance: random.Random, kinds: Sequence[str], victim: int) -> Fault:
    kind = chance.choices(kinds, [_WEIGHTS[kind] for kind in kinds])[0]
    holds = kind.startswith("stop")
    return Fault(kind, victim, _hold_s(chance) if holds else 0.0)


def plan(seed: int, nodes: int) -> list[Strike]:
    """The strikes of one round: some pass, from some nodes are started again; in some rounds the last one's victims are
    left as they are."""
    chance = random.Random(f"nemesis {seed} {nodes}")
    minority = (nodes - 1) // 2
    count = chance.choices([1, 2, 3, 4], [3, 4, 3, 2])[0]
    kinds = [chance.choice((PASSING, LASTING)) for _ in range(count)]
    left = chance.random() < 0.4
    return [_strike(chance, each, nodes, minority, not (left and i == count - 1)) for i, each in enumerate(kinds)]


def _strike(chance: random.Random, kinds: Sequence[str], nodes: int, minority: int, mended: bool) -> Strike:
    first = 0 if chance.random() < 0.8 else chance.randrange(1, nodes)
    victims = [first, *chance.sample([v for v in range(nodes) if v != first], minority - 1)]
    faults = [_fault(chance, kinds, first)]
    if chance.random() < 0.35:  # two at once: of one node, or of two where a minority has two
        other = _fault(chance, kinds if kinds is PASSING else PASSING + LASTING, chance.choice(victims))
        if other.kind != faults[0].kind or other.victim != first:
            faults.append(other)
    return Strike(chance.uniform(0.03, 0.25), tuple(faults), mended)


# ---- cutting connections from outside --------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def _sockets(pid: int) -> Iterator[list[socket.socket]]:
    """All sockets of another process, as descriptors of this one. PermissionError where that is not allowed."""
    found: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        pidfd = os.pidfd_open(pid)
        stack.callback(os.close, pidfd)
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    fd = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, int(name), 0)
                    if fd >= 0:
                        found.append(stack.enter_context(socket.socket(fileno=fd)))
                    elif ctypes.get_errno() == 1:
                        raise PermissionError("pidfd_getfd is not permitted here: connections cannot be cut")
        yield found


def _cut(pid: int, chosen: Callable[[socket.socket], bool]) -> int:
    """Shuts connections of a process down in both directions, as if the other side had hung up; how many."""
    count = 0
    with _sockets(pid) as all_sockets:
        for sock in all_sockets:
            with contextlib.suppress(OSError):
                if chosen(sock):
                    sock.shutdown(socket.SHUT_RDWR)
                    count += 1
    return count


def _peer_pid(sock: socket.socket) -> int:
    return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def _is_mesh(sock: socket.socket, pids: set[int]) -> bool:
    try:
        return sock.family == socket.AF_UNIX and "/mesh/" in f"{sock.getsockname()}{sock.getpeername()}" and \
            _peer_pid(sock) in pids
    except OSError:  # not connected
        return False


def cut_links(bed: Cradle, node: int, others: Sequence[int]) -> int:
    """All mesh connections between a node and these others."""
    pids = {bed.pids[other] for other in others}
    return _cut(bed.pids[node], lambda sock: _is_mesh(sock, pids))


def count_links(bed: Cradle, node: int, others: Sequence[int]) -> int:
    """The mesh connections between a node and these others."""
    pids = {bed.pids[other] for other in others}
    with _sockets(bed.pids[node]) as all_sockets:
        return sum(_is_mesh(sock, pids) for sock in all_sockets)


def cut_backend(bed: Cradle, node: int, chance: random.Random) -> int:
    """One of the connections from a sidecar to its Redis."""
    with _sockets(bed.pids[node]) as all_sockets:
        own = []
        for sock in all_sockets:
            with contextlib.suppress(OSError):
                if sock.family == socket.AF_UNIX and "/redis-" in str(sock.getpeername()):
                    own.append(sock)
        if own:
            chance.choice(own).shutdown(socket.SHUT_RDWR)
        return min(len(own), 1)


def cut_feed(bed: Cradle, node: int) -> int:
    """The connection from a follower's Redis to its sidecar."""
    backend = bed.backend_pids.get(node, 0)

    def chosen(sock: socket.socket) -> bool:
        return sock.family == socket.AF_INET and bool(sock.getpeername())

    return _cut(backend, chosen) if backend else 0


# ---- striking --------------------------------------------------------------------------------------------------------


class Nemesis:
    """Strikes one cluster.

    `damaged`: nodes that will not recover until `mend()`; `killed`: those whose sidecar was killed; `unlinked`: those
    at either end of a mesh link that the last strike cut.
    """

    def __init__(self, bed: Cradle, seed: int) -> None:
        self.bed = bed
        self.chance = random.Random(f"strikes {seed}")
        self.damaged: set[int] = set()
        self.killed: set[int] = set()
        self.unlinked: set[int] = set()
        self.events: list[tuple[int, str]] = []  # CLOCK_MONOTONIC ns, what

    def note(self, text: str) -> int:
        """Something worth remembering; returns the moment."""
        moment = time.monotonic_ns()
        self.events.append((moment, text))
        return moment

    def strike(self, strike: Strike, order: Sequence[int]) -> tuple[int, set[int]]:
        """Does it, to nodes in this order (the leader first), and ends what passes. Returns the moment it began and the
        victims that should recover."""
        victims = {fault: order[fault.victim] for fault in strike.faults}
        lasting = {order[victim] for victim in strike.lasting}
        self.damaged |= lasting
        self.unlinked = set()
        began = self.note("strike: " + " and ".join(f"{f} (node {n})" for f, n in victims.items()))
        ends: list[tuple[float, Callable[[], None]]] = []
        for fault, node in victims.items():
            end = self._begin(fault, node)
            if end is not None:
                ends.append((fault.hold_s, end))
        for hold_s, end in sorted(ends, key=lambda one: one[0]):
            time.sleep(max(0.0, began / 1e9 + hold_s - time.monotonic()))
            end()
        self.note("strike over")
        return began, (set(victims.values()) | self.unlinked) - self.damaged

    def _signal(self, number: signal.Signals, *pids: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _begin(self, fault: Fault, node: int) -> Callable[[], None] | None:
        """Begins; returns what ends it."""
        sidecar = self.bed.pids[node]
        backend = self.bed.backend_pids.get(node, 0)
        targets = {"": [sidecar], "backend": [backend], "node": [sidecar, backend]}
        verb, _, what = fault.kind.partition("-")
        if verb == "cut":
            self._begin_cut(what, node)
            return None
        pids = targets["" if what == "kill" else what]
        self.chance.shuffle(pids)
        if verb == "kill":
            self._signal(signal.SIGKILL, *pids)
            if what != "backend":
                self.killed.add(node)
            return None
        self._signal(signal.SIGSTOP, *pids)
        if what == "kill":
            self.killed.add(node)
            return lambda: self._signal(signal.SIGKILL, sidecar)
        return lambda: self._signal(signal.SIGCONT, *pids)

    def _begin_cut(self, what: str, node: int) -> None:
        if not self.bed.alive(node):
            return
        others = [other for other in self.bed.pids if other != node]
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            if what == "links":
                ends = self.chance.sample(others, self.chance.randint(1, len(others)))
                self.unlinked |= {node, *ends}
                count = cut_links(self.bed, node, ends)
            elif what == "backend":
                count = cut_backend(self.bed, node, self.chance)
            else:
                count = cut_feed(self.bed, node)
            self.note(f"{count} connections cut")

    # ---- and after ----

    def mend(self) -> set[int]:
        """Starts the nodes again that do not recover by themselves, as a supervisor would; returns them."""
        mended = set(self.damaged)
        for node in mended:
            self._signal(signal.SIGKILL, self.bed.pids[node])
        for node in mended:
            wait_until(f"node {node} is gone", lambda node=node: not self.bed.alive(node), 10)  # type: ignore[misc]
            self.bed.revive(node)
            self.note(f"node {node} is started again")
        self.damaged -= mended
        self.killed -= mended
        return mended

    def await_recovered(self, nodes: set[int], timeout_s: float) -> list[str]:
        """Until these nodes serve again with backends that are in step; who does not, in words."""
        deadline = time.monotonic() + timeout_s
        left = sorted(nodes)
        while left:
            backend_pid = self._is_well(left[0])
            if backend_pid:
                self.bed.backend_pids[left[0]] = backend_pid
                self.note(f"node {left.pop(0)} is well again")
                continue
            if time.monotonic() > deadline:
                return [f"node {node} did not recover in {timeout_s:g} s" for node in left]
            time.sleep(0.005)
        return []

    def _is_well(self, node: int) -> int:
        """If it serves its clients, its backend is in step and it counts: its backend's pid."""
        try:
            status = ask(self.bed.config, node, "status", 1.0)
        except Unreachable:
            return 0
        well = status.get("serving") and status.get("backend_state") in ("fed", "leads") and status.get("member")
        return int(status["backend_pid"] or 0) if well else 0

