"""The connections between the nodes of a running cluster, kept up: made again when they break, and made anew with a
node that has started again.

Between two nodes there are a control connection, which says that the other side is there and, at an orderly end, that
it stops, and a data link, whose socket the engine has. The higher id dials both. Whoever finds one of them broken (the
control connection ends, the engine tells of the link) drops it; the higher id dials until it stands again, less and
less often. A lower id that starts asks to be dialled: until the two are connected, they are no majority.

On each control connection the two meet: both say how far they have got with each other's memory. A life of a node that
the other one does not know yet (another incarnation) hands its regions over and gets the other's, as in formation.py:
descriptors, then fences, then "prepared". Who has heard "prepared" opens the fabric's link. A meeting may break off
anywhere; the next one goes on from what both still have.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from musidecar.formation import STEP_S, Fabric, Unfit, offer_of
from musidecar.mesh import FRAME_S, Connection, Mesh, MeshError, Refused, Unreachable, ask_as, close_all, node_name

RETRY_S_MIN, RETRY_S_MAX = 0.02, 0.5  # between attempts to reach a node
RENEW_S_MAX = 8.0  # ... and to make a fabric's link anew that fails again and again
DIAL_S = 2.0
STOP_S = 2.0

log = logging.getLogger("musidecar.mesh")


class Known(enum.IntEnum):
    """How far this node has got with a life of another one."""

    NOT = 0
    PREPARED = 1  # its regions are mapped here, and its fence for ours is set
    OPEN = 2


@dataclass
class _Peer:
    node: int
    meeting: threading.Lock = field(default_factory=threading.Lock)  # one meeting at a time
    incarnation: str = ""
    known: Known = Known.NOT
    control: Connection | None = None
    linked: bool = False
    asks: bool = False  # it has started, and wants to be dialled now
    complaint: str = ""


@dataclass(frozen=True)
class Callbacks:
    """What the connections are for. Called from the threads of the connections.

    opened(node, pid): the fabric's link to a new life of this node can be opened (OSError: it cannot); link(node, fd):
    a socket to its engine; gone(node, goodbye) and back(node): its control connection.
    """

    opened: Callable[[int, int], None]
    link: Callable[[int, int], None]
    gone: Callable[[int, bool], None]
    back: Callable[[int], None]


class Links:
    """Keeps the connections to all other nodes, from when the engine takes them until `close()`."""

    def __init__(self, mesh: Mesh, fabric: Fabric, callbacks: Callbacks) -> None:
        self._mesh, self._fabric, self._call = mesh, fabric, callbacks
        self._me = mesh.member.node
        self._peers = {node: _Peer(node) for node in mesh.member.nodes if node != self._me}
        self._changed = threading.Condition()  # guards the peers' fields
        self._stopping = False
        self._threads: list[threading.Thread] = []

    def adopt(self, controls: dict[int, Connection]) -> None:
        """What a formation has made: control connections; the data links the engine has already. Before `start()`."""
        for node, connection in controls.items():
            peer = self._peers[node]
            peer.incarnation, peer.known, peer.linked = connection.peer.incarnation, Known.OPEN, True
            peer.control = connection
            self._spawn(self._read, peer, connection)

    def start(self) -> None:
        """From here on broken connections are made again, and other nodes' accepted."""
        self._mesh.handlers |= {"peer": self._met, "link": self._linked}
        self._mesh.questions["dial"] = self._asked_to_dial
        if self._fabric.is_renewable:
            self._spawn(self._renew)
        for peer in self._peers.values():
            if peer.node < self._me:
                self._spawn(self._keep, peer)
            elif peer.control is None:
                self._spawn(self._ask_to_be_dialled, peer)

    def _spawn(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, name="mesh link", daemon=True)
        self._threads = [each for each in self._threads if each.is_alive() or each.ident is None]
        self._threads.append(thread)
        thread.start()

    def link_lost(self, node: int) -> None:
        """The engine has lost the data link to this node."""
        with self._changed:
            self._peers[node].linked = False
            self._changed.notify_all()

    def incarnations(self) -> dict[int, str]:
        """The life of each other node that was met last."""
        with self._changed:
            return {peer.node: peer.incarnation for peer in self._peers.values() if peer.incarnation}

    def close(self) -> None:
        """Say goodbye to all and hang up."""
        with self._changed:
            self._stopping = True
            controls = [peer.control for peer in self._peers.values() if peer.control is not None]
            self._changed.notify_all()
        for connection in controls:
            with contextlib.suppress(MeshError):
                connection.send({"step": "bye"})
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + STOP_S
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))

    def _renew(self) -> None:
        """A fabric's link may fail while both nodes live and their mesh stands: then they meet again, and make it anew.

        Nothing but the fabric's own posts tells of that, so it is looked at twice a second; a network that stays away
        is tried less and less often.
        """
        again: dict[int, tuple[float, float]] = {}  # node -> not before, pause
        with self._changed:
            while not self._changed.wait_for(lambda: self._stopping, RETRY_S_MAX):
                now = time.monotonic()
                for peer in self._peers.values():
                    at, pause_s = again.get(peer.node, (0.0, RETRY_S_MAX))
                    if now > at + 2 * RENEW_S_MAX:
                        pause_s = RETRY_S_MAX
                    broken = peer.known is Known.OPEN and self._fabric.is_broken(peer.node)
                    if not broken or peer.control is None or now < at:
                        continue
                    again[peer.node] = now + pause_s, min(2 * pause_s, RENEW_S_MAX)
                    log.warning("the fabric's link to %s has failed: making it anew", node_name(peer.node))
                    with contextlib.suppress(OSError):
                        peer.control.sock.shutdown(socket.SHUT_RDWR)

    # ---- dialling ----

    def _keep(self, peer: _Peer) -> None:
        """The higher id's thread for one lower one."""
        pause_s = RETRY_S_MIN
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or peer.control is None or not peer.linked)
                if self._stopping:
                    return
                meet = peer.control is None
            try:
                if meet:
                    self._dial_control(peer)
                else:
                    self._dial_link(peer)
                pause_s = RETRY_S_MIN
                continue
            except (MeshError, OSError) as error:
                if isinstance(error, Refused | Unfit):
                    self._complain(peer, error)
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or peer.asks, pause_s)
                pause_s = RETRY_S_MIN if peer.asks else min(2 * pause_s, RETRY_S_MAX)
                peer.asks = False

    def _complain(self, peer: _Peer, error: MeshError) -> None:
        """Once, not with every attempt."""
        if peer.complaint != str(error):
            peer.complaint = str(error)
            log.warning("mesh: %s", error)

    def _dial_control(self, peer: _Peer) -> None:
        connection = self._mesh.dial(peer.node, "peer", DIAL_S)
        try:
            self._meet(peer, connection)
        except BaseException:
            connection.close()
            raise
        self._spawn(self._read, peer, connection)

    def _dial_link(self, peer: _Peer) -> None:
        connection = self._mesh.dial(peer.node, "link", DIAL_S)
        try:
            if not connection.recv(DIAL_S).get("linked"):
                raise Unreachable(f"{node_name(peer.node)} does not take a data link now")
            self._give_link(peer, connection)
        except BaseException:
            connection.close()
            raise

    # ---- being dialled ----

    def _ask_to_be_dialled(self, peer: _Peer) -> None:
        """Whoever is not there dials when it starts."""
        with contextlib.suppress(MeshError):
            ask_as(self._mesh.member, peer.node, "dial", DIAL_S, node=self._me)

    def _asked_to_dial(self, question: dict[str, Any]) -> dict[str, Any]:
        node = question.get("node")
        with self._changed:
            if isinstance(node, int) and node in self._peers:
                self._peers[node].asks = True
                self._changed.notify_all()
        return {}

    def _peer_of(self, connection: Connection) -> _Peer:
        peer = self._peers[connection.peer.node]
        if peer.node < self._me:
            raise Unreachable(f"{node_name(peer.node)} dialled, which is for this node to do")
        return peer

    def _met(self, connection: Connection) -> None:
        """A control connection has come; stays in its thread as long as it lasts."""
        with contextlib.closing(connection):
            peer = self._peer_of(connection)
            try:
                self._meet(peer, connection)
            except Unfit as error:
                self._complain(peer, error)
                return
            self._read(peer, connection)

    def _linked(self, connection: Connection) -> None:
        try:
            peer = self._peer_of(connection)
            with self._changed:
                ready = peer.known is Known.OPEN and peer.incarnation == connection.peer.incarnation
            connection.send({"linked": ready})
            if not ready:
                connection.close()
                return
            self._give_link(peer, connection)
        except BaseException:
            connection.close()
            raise

    def _give_link(self, peer: _Peer, connection: Connection) -> None:
        with self._changed:
            if self._stopping or peer.known is not Known.OPEN or peer.incarnation != connection.peer.incarnation:
                raise Unreachable(f"{node_name(peer.node)} has started again meanwhile")
            peer.linked = True
            self._call.link(peer.node, connection.detach())

    # ---- meeting ----

    def _meet(self, peer: _Peer, connection: Connection) -> None:
        """From a new control connection to where both know each other's memory. Unreachable when it breaks off."""
        with peer.meeting:
            theirs = connection.peer.incarnation
            known = peer.known if peer.incarnation == theirs and not self._fabric.is_broken(peer.node) else Known.NOT
            connection.send({"step": "meet", "known": int(known)})
            message = _step(connection, "meet")
            try:
                if known is Known.NOT or not message.get("known"):
                    if known is Known.OPEN and not self._fabric.is_renewable:
                        raise Unreachable(f"{node_name(peer.node)} has forgotten this node")
                    self._exchange(peer, connection)
                    known = Known.PREPARED
                if known is Known.PREPARED:
                    self._call.opened(peer.node, connection.peer.pid)
            except OSError as error:
                raise Unreachable(f"no link to the memory of {node_name(peer.node)} yet: {error}") from None
            with self._changed:
                if self._stopping:
                    raise Unreachable("this node stops")
                former, peer.control = peer.control, connection
                if known is Known.PREPARED:
                    peer.linked = False
                peer.known, peer.complaint = Known.OPEN, ""
                self._changed.notify_all()
            if former is not None:
                with contextlib.suppress(OSError):
                    former.sock.shutdown(socket.SHUT_RDWR)
            self._call.back(peer.node)

    def _exchange(self, peer: _Peer, connection: Connection) -> None:
        """Regions, fences, "prepared": each side sends, then listens."""
        with self._changed:
            peer.incarnation, peer.known = connection.peer.incarnation, Known.NOT
        fabric = self._fabric
        offer, own_fds = fabric.offer(peer.node)
        connection.send({"step": "regions", "offer": offer}, own_fds)
        message, fds = _step_fds(connection, "regions")
        fabric.attach(peer.node, offer_of(message), fds, connection.peer.pid)
        fd, mapping = fabric.fence(peer.node)
        connection.send({"step": "fence", "mapping": f"{mapping:x}"}, [] if fd is None else [fd])
        message, fds = _step_fds(connection, "fence")
        try:
            address = int(str(message.get("mapping")), 16)
        except ValueError:
            close_all(fds)
            raise Unreachable(f"{node_name(peer.node)} sent no address") from None
        fabric.set_fence(peer.node, fds[0] if fds else None, address)
        close_all(fds[1:])
        with self._changed:
            peer.known = Known.PREPARED
        connection.send({"step": "prepared"})
        _step(connection, "prepared")

    # ---- listening ----

    def _read(self, peer: _Peer, connection: Connection) -> None:
        """Until the control connection ends."""
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        goodbye = False
        try:
            while True:
                poll.poll()
                goodbye |= connection.recv(FRAME_S).get("step") == "bye"
        except MeshError:
            pass
        with self._changed:
            ended = peer.control is connection
            if ended:
                peer.control = None
                self._changed.notify_all()
        connection.close()
        if ended and not self._stopping:
            self._call.gone(peer.node, goodbye)


def _step(connection: Connection, step: str) -> dict[str, Any]:
    message, fds = _step_fds(connection, step)
    if fds:
        close_all(fds)
        raise Unreachable(f"{node_name(connection.peer.node)} sent descriptors where none belong")
    return message


def _step_fds(connection: Connection, step: str) -> tuple[dict[str, Any], list[int]]:
    message, fds = connection.recv_fds(STEP_S)
    if message.get("step") != step:
        close_all(fds)
        raise Unreachable(f"{node_name(connection.peer.node)} is at another step")
    return message, fds
