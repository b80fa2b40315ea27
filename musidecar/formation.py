"""How a cluster comes into being: every node meets every other one, and all of them agree on who they are.

A round has these steps; when anything breaks before the last one, everything of the round is dropped and the next
begins:
  1 every pair has a control connection (the higher id dials the lower); each node knows every other's incarnation
  2 all say whom they see, and what each has kept (council.py); all must see the same, and so come to the same verdict
    with whose data the cluster begins; while there is none it does not form
  3 the fabric's regions are handed over as descriptors, then the fences for them; the fabric's links open
  4 every pair has a data link (the higher id dials), for the engines
  5 all tell the lowest id that they are ready; it tells all that the cluster is formed
From then on a node's memory is part of the cluster, for as long as one node of it lives. A process that comes with the
same id and another incarnation has lost it: it finds that the cluster runs (`Running`), and joins it (node.py,
links.py).
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import random
import secrets
import select
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from musidecar.council import Begin, Council, Report, Undecided
from musidecar.mesh import (
    FRAME_S,
    Connection,
    Member,
    Mesh,
    MeshError,
    Refused,
    Unreachable,
    ask_as,
    close_all,
    incarnation_number,
    node_name,
)

STEP_S = 15.0  # a step that only needs processes to run takes no longer than this
DIAL_S = 2.0
RETRY_S = 0.1  # between attempts to reach a node that is not there yet,
REFUSED_RETRY_S = 1.0  # or that refuses
REMIND_S = 10.0  # "still waiting" is said this often
PAUSE_S = 0.2  # longest pause before the next round,
WAIT_S = 0.5  # and before the next one where it is for the operator to decide

log = logging.getLogger("musidecar.mesh")


class Running(MeshError):
    """The cluster runs already. `members`: id -> incarnation at its formation; `latest`: the largest number of an
    incarnation of this node that the others have heard of; `generation`: of the formation."""

    def __init__(self, members: dict[int, str], latest: int, generation: int = 1) -> None:
        super().__init__("the cluster runs already")
        self.members, self.latest, self.generation = members, latest, generation


class Unfit(MeshError):
    """Two nodes are set up so differently that they cannot share memory; the text names the remedy."""


class Stopped(MeshError):
    """The caller wants no cluster any more."""


class _Broken(Exception):
    """This round leads nowhere: begin another."""


class _Waits(Exception):
    """It is not known with whose data the cluster begins."""


class Fabric(Protocol):
    """The part of a fabric that is handed over between nodes (ffi/fabric/shm.h, verbs.h). Nodes are given by id."""

    def offer(self, node: int) -> tuple[dict[str, Any], Sequence[int]]:
        """What a peer needs to reach this node's regions: words, and descriptors, which stay the fabric's. OSError."""

    def attach(self, node: int, offer: dict[str, Any], fds: Sequence[int], pid: int) -> None:
        """Take what a peer offers. Takes the descriptors, also when it fails. OSError; Unfit when it will never do."""

    def fence(self, node: int) -> tuple[int | None, int]:
        """What the owner of that peer's log needs to bar this process from it: descriptor (None: none), address."""

    def set_fence(self, node: int, fd: int | None, mapping: int) -> None:
        """What a peer sent of the same. Takes the descriptor. OSError."""

    def open_link(self, node: int) -> None:
        """The link to that peer works from here on. OSError."""

    def is_broken(self, node: int) -> bool:
        """Has the link to that peer failed, so that it must be handed over again though both live on?"""

    @property
    def is_renewable(self) -> bool:
        """May that happen at all?"""

    def close(self) -> None:
        """Give everything back."""


@dataclass
class Formed:
    """A cluster that has formed, as this node sees it. Nodes are given by id."""

    fabric: Any
    incarnations: dict[int, str]  # self included
    pids: dict[int, int]  # of the peers, as the kernel tells them
    links: dict[int, int]  # sockets to the peers' engines, blocking; the caller's
    controls: dict[int, Connection] = field(repr=False)
    verdict: Begin = field(default_factory=lambda: Begin(1, 1))


class Arrivals:
    """Connections of other nodes, from the mesh's threads to whoever forms the cluster; closed when that is over."""

    def __init__(self, mesh: Mesh) -> None:
        self.members: dict[int, str] | None = None  # once formed
        self.generation = 1
        self.remind_at = 0.0  # of who is missing
        self._mesh = mesh
        self._lock = threading.Lock()
        self._waiting: collections.deque[Connection] = collections.deque()
        self._open = True
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        mesh.handlers |= {"peer": self._arrive, "link": self._arrive}
        mesh.questions["formation"] = lambda _: {"members": self._members(), "generation": self.generation}

    def _members(self) -> dict[str, str] | None:
        return None if self.members is None else {str(node): each for node, each in self.members.items()}

    def _arrive(self, connection: Connection) -> None:
        with self._lock:
            if self._open:
                self._waiting.append(connection)
                os.eventfd_write(self.event, 1)
                return
        connection.close()

    def take(self) -> list[Connection]:
        """Those that came since the last call."""
        with self._lock:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.event)
            taken = list(self._waiting)
            self._waiting.clear()
            return taken

    def shut(self, members: dict[int, str] | None) -> None:
        """Take nobody any more. `members`: id -> incarnation, when that is because the cluster has formed."""
        with self._lock:
            if self._open:
                os.close(self.event)
            self._open, self.members = False, members
            while self._waiting:
                self._waiting.popleft().close()


def form(
    mesh: Mesh,
    make_fabric: Callable[[], Fabric],
    stopping: Callable[[], bool] = lambda: False,
    council: Council | None = None,
) -> Formed:
    """Wait for all nodes that form a cluster (or those that the operator has chosen) and form it with them.

    make_fabric: called once a round, when all are there. council: has a say with whose data; None: the first node's.
    Waits without limit; `stopping` is looked at ten times a second (Stopped). Running when the cluster has formed
    before. The mesh listens already.
    """
    arrivals = Arrivals(mesh)
    council = council or Council(Report(), mesh.member.nodes[0])
    try:
        if mesh.member.node in mesh.member.joining:
            _wait_for_others(mesh.member, stopping)
        while True:
            attempt = _Round(mesh, arrivals, stopping, council)
            try:
                formed = attempt.run(make_fabric)
                council.undecided = ""
                arrivals.generation = formed.verdict.generation
                arrivals.shut(formed.incarnations)
                attempt.announce()
                return formed
            except _Waits as waits:
                if council.undecided != str(waits):
                    council.undecided = str(waits)
                    log.error("the cluster does not begin by itself: %s: `musidecar recover` tells more", waits)
                time.sleep(random.uniform(WAIT_S / 2, WAIT_S))  # so that the others hear all reports, too
                attempt.drop()
            except (_Broken, Unreachable, OSError) as error:
                attempt.drop()
                log.info("mesh: the cluster did not form (%s): once more", error)
                time.sleep(random.uniform(PAUSE_S / 4, PAUSE_S))
            except BaseException:
                attempt.drop()
                raise
    except BaseException:
        arrivals.shut(None)
        raise


def _running_at(member: Member, node: int) -> Running | None:
    """What this node says of a formed cluster that it is part of; None when it is of none. Unreachable."""
    answer = ask_as(member, node, "formation", DIAL_S)
    told = answer.get("members")
    if not isinstance(told, dict):
        return None
    members = {int(id_): str(incarnation) for id_, incarnation in told.items()}
    latest = answer.get("latest", {}).get(str(member.node), 0)
    if member.node in members:
        latest = max(latest, incarnation_number(members[member.node]))
    generation = answer.get("generation")
    return Running(members, latest, generation if isinstance(generation, int) else 1)


def running(member: Member) -> Running | None:
    """What the other nodes that can be reached say of a formed cluster; None when there is none."""
    found: Running | None = None
    for node in member.nodes:
        with contextlib.suppress(Unreachable):
            told = _running_at(member, node) if node != member.node else None
            if told is not None and (found is None or told.latest > found.latest):
                found = told
    return found


def _wait_for_others(member: Member, stopping: Callable[[], bool]) -> None:
    """Of a node that takes no part in forming the cluster: Running once it has formed, or Stopped."""
    log.info("mesh: waiting for a cluster to join")
    while not stopping():
        if (found := running(member)) is not None:
            raise found
        time.sleep(RETRY_S)
    raise Stopped("stopped before the cluster had formed")


def offer_of(message: dict[str, Any]) -> dict[str, Any]:
    """What a node offers in its step "regions"."""
    offer = message.get("offer")
    return offer if isinstance(offer, dict) else {}


class _Round:
    def __init__(self, mesh: Mesh, arrivals: Arrivals, stopping: Callable[[], bool], council: Council) -> None:
        self.mesh, self.arrivals, self.stopping, self.council = mesh, arrivals, stopping, council
        self.me = mesh.member.node
        self.report = council.report
        choice = self.report.choice
        self.others = [node for node in mesh.member.nodes if node != self.me]
        founders = set(mesh.member.nodes) - mesh.member.joining if choice is None else choice.nodes
        self.peers = [node for node in self.others if node in founders]
        self.reports = {self.me: self.report}
        self.controls: dict[int, Connection] = {}
        self.seen: dict[int, dict[str, str]] = {}  # what each peer says it sees
        self.links: dict[int, Connection] = {}
        self.tokens: dict[int, str] = {}  # by which a peer knows a link of this round
        self.token = secrets.token_hex(8)
        self.fabric: Fabric | None = None
        self.retry_at = dict.fromkeys(self.others, 0.0)
        self.complaints: dict[int, str] = {}
        self.epoll = select.epoll()
        self.epoll.register(arrivals.event, select.EPOLLIN)

    def run(self, make_fabric: Callable[[], Fabric]) -> Formed:
        self._meet()
        verdict = self.council.decide(self.reports)
        if isinstance(verdict, Undecided):
            raise _Waits(verdict.why)
        self.fabric = fabric = make_fabric()
        self._hand_over(fabric)
        self._link()
        self._ready()
        return Formed(
            fabric,
            self._incarnations(),
            {node: each.peer.pid for node, each in self.controls.items()},
            {node: each.detach() for node, each in self.links.items()},
            self.controls,
            verdict,
        )

    def announce(self) -> None:
        """The lowest id's last word. Who does not hear it any more is dead, and the fabric will notice."""
        self.epoll.close()
        if self.me < min(self.peers, default=0):
            for connection in self.controls.values():
                with contextlib.suppress(MeshError):
                    connection.send({"step": "formed"})

    def drop(self) -> None:
        self.epoll.close()
        for connection in [*self.controls.values(), *self.links.values()]:
            connection.close()
        if self.fabric is not None:
            self.fabric.close()

    def _incarnations(self) -> dict[int, str]:
        found = {node: each.peer.incarnation for node, each in self.controls.items()}
        return dict(sorted({**found, self.me: self.mesh.member.incarnation}.items()))

    def _check_stopping(self) -> None:
        if self.stopping():
            raise Stopped("stopped before the cluster had formed")
        if self.council.report is not self.report:
            raise _Broken("the operator has chosen")

    # ---- steps 1 and 2: meeting ----

    def _meet(self) -> None:
        mine: dict[str, str] | None = None  # once all are there and it has been said
        while mine is None or len(self.seen) < len(self.peers):
            self._check_stopping()
            if mine is None:
                self._reach_out()
                self._remind()
                if len(self.controls) == len(self.peers):
                    mine = {str(node): each for node, each in self._incarnations().items()}
                    self._tell_all({"step": "members", "members": mine, "report": self.report.message()})
            for fd, events in self.epoll.poll(RETRY_S):
                if fd == self.arrivals.event:
                    self._take_arrivals(meeting=mine is None)
                else:
                    self._hear_members(fd, events, met=mine is not None)
        if any(each != mine for each in self.seen.values()):
            raise _Broken("a node has started again meanwhile")

    def _reach_out(self) -> None:
        for node in self.others:
            if node in self.controls or time.monotonic() < self.retry_at[node]:
                continue
            try:
                if (found := _running_at(self.mesh.member, node)) is not None:
                    raise found
                if node < self.me and node in self.peers:
                    self._keep(self.mesh.dial(node, "peer", DIAL_S))
            except Unreachable as error:
                text = str(error) if isinstance(error, Refused) else ""
                if text and self.complaints.get(node) != text:
                    log.warning("mesh: %s", text)
                self.complaints[node] = text
            pause = REFUSED_RETRY_S if self.complaints.get(node) else RETRY_S
            self.retry_at[node] = time.monotonic() + pause

    def _remind(self) -> None:
        missing = [node for node in self.peers if node not in self.controls]
        now = time.monotonic()
        if missing and now >= self.arrivals.remind_at and not self.council.undecided:
            again = "still " if self.arrivals.remind_at else ""
            self.arrivals.remind_at = now + REMIND_S
            log.info("mesh: %swaiting for %s", again, ", ".join(map(node_name, missing)))

    def _take_arrivals(self, meeting: bool) -> None:
        for connection in self.arrivals.take():
            node, role = connection.peer.node, connection.peer.role
            if node < self.me or node not in self.peers:  # it is for this node to dial, or not to be in this
                connection.close()
            elif role == "peer":
                if not meeting:
                    connection.close()
                    raise _Broken(f"node {node} has started again meanwhile")
                self._keep(connection)
            else:
                self._take_link(connection)

    def _take_link(self, connection: Connection) -> None:
        node = connection.peer.node
        control = self.controls.get(node)
        try:
            ours = connection.recv(FRAME_S).get("round") == self.token
        except Unreachable:
            ours = False
        if ours and control is not None and control.peer.incarnation == connection.peer.incarnation:
            self.links[node] = connection
        else:
            connection.close()

    def _keep(self, connection: Connection) -> None:
        node = connection.peer.node
        if node in self.controls:
            self._forget(node)
        self.controls[node] = connection
        self.epoll.register(connection, select.EPOLLIN | select.EPOLLRDHUP)

    def _forget(self, node: int) -> None:
        self.seen.pop(node, None)
        self.reports.pop(node, None)
        connection = self.controls.pop(node)
        self.epoll.unregister(connection)
        connection.close()

    def _hear_members(self, fd: int, events: int, met: bool) -> None:
        node = next((node for node, each in self.controls.items() if each.fileno() == fd), None)
        if node is None:  # replaced in this very turn
            return
        connection = self.controls[node]
        try:
            if not events & select.EPOLLIN or node in self.seen:
                raise Unreachable(f"node {node} is gone")
            message = connection.recv(FRAME_S)
            if message.get("step") != "members" or not isinstance(message.get("members"), dict):
                raise Unreachable(f"node {node} is at another step")
            try:
                self.reports[node] = Report.of(message.get("report"))
            except ValueError as error:
                raise Unreachable(f"node {node}: {error}") from None
            self.seen[node] = message["members"]
            self.epoll.modify(connection, select.EPOLLRDHUP)  # its next word is for later, its end is not
        except Unreachable as error:
            if met:
                raise _Broken(str(error)) from None
            self._forget(node)

    # ---- steps 3 to 5: handing over ----

    def _hand_over(self, fabric: Fabric) -> None:
        for node, connection in self.controls.items():
            offer, own_fds = fabric.offer(node)
            connection.send({"step": "regions", "round": self.token, "offer": offer}, own_fds)
        regions = self._gather("regions", self.peers)
        self.tokens = {node: str(message.get("round")) for node, (message, _) in regions.items()}
        try:
            for node in self.peers:
                message, fds = regions.pop(node)
                fabric.attach(node, offer_of(message), fds, self.controls[node].peer.pid)
        finally:
            close_all([fd for _, fds in regions.values() for fd in fds])
        for node in self.peers:
            fd, mapping = fabric.fence(node)
            self.controls[node].send({"step": "fence", "mapping": f"{mapping:x}"}, [] if fd is None else [fd])
        for node, (message, fds) in self._gather("fence", self.peers).items():
            try:
                mapping = int(str(message.get("mapping")), 16)
            except ValueError:
                raise _Broken(f"node {node} sent no address") from None
            fabric.set_fence(node, fds[0] if fds else None, mapping)
        for node in self.peers:
            fabric.open_link(node)

    def _link(self) -> None:
        for node in self.peers:
            if node < self.me:
                link = self.links[node] = self.mesh.dial(node, "link", STEP_S)
                link.send({"round": self.tokens[node]})
        deadline = time.monotonic() + STEP_S
        while len(self.links) < len(self.peers):
            self._check_stopping()
            if time.monotonic() > deadline:
                raise _Broken("a data link did not come")
            for fd, events in self.epoll.poll(RETRY_S):
                if fd == self.arrivals.event:
                    self._take_arrivals(meeting=False)
                elif events & (select.EPOLLRDHUP | select.EPOLLHUP):
                    raise _Broken("a node is gone")

    def _ready(self) -> None:
        lowest = min(self.peers, default=0)
        if not self.peers:
            return
        if self.me < lowest:
            self._gather("ready", self.peers)
        else:
            self.controls[lowest].send({"step": "ready"})
            self._gather("formed", [lowest], 2 * STEP_S)

    def _tell_all(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        for connection in self.controls.values():
            connection.send(message, fds)

    def _gather(
        self, step: str, nodes: Iterable[int], timeout_s: float = STEP_S
    ) -> dict[int, tuple[dict[str, Any], list[int]]]:
        """One message of this step from each of `nodes`, in any order. _Broken when one of them is gone or too slow."""
        waiting = {self.controls[node].fileno(): node for node in nodes}
        heard: dict[int, tuple[dict[str, Any], list[int]]] = {}
        deadline = time.monotonic() + timeout_s
        try:
            for node in waiting.values():
                self.epoll.modify(self.controls[node], select.EPOLLIN | select.EPOLLRDHUP)
            while len(heard) < len(waiting):
                self._check_stopping()
                if time.monotonic() > deadline:
                    missing = [node for node in waiting.values() if node not in heard]
                    raise _Broken(f"{', '.join(map(node_name, missing))} did not come to step {step!r}")
                for fd, events in self.epoll.poll(RETRY_S):
                    if fd == self.arrivals.event:
                        self._take_arrivals(meeting=False)
                    elif fd in waiting:
                        self._hear_step(step, waiting[fd], events, heard)
                    else:  # not waited for: its end is for the fabric to notice
                        self.epoll.unregister(fd)
        except BaseException:
            close_all([fd for _, fds in heard.values() for fd in fds])
            raise
        return heard

    def _hear_step(self, step: str, node: int, events: int, heard: dict[int, tuple[dict[str, Any], list[int]]]) -> None:
        if node in heard or not events & select.EPOLLIN:
            raise _Broken(f"node {node} is gone")
        message, fds = self.controls[node].recv_fds(FRAME_S)
        heard[node] = message, fds
        if message.get("step") != step:
            raise _Broken(f"node {node} is at another step")
        self.epoll.modify(self.controls[node], select.EPOLLRDHUP)
