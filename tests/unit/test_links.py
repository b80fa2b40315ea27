"""Connections of a running cluster over real Unix sockets: what breaks is made again, and a new life is taken in."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from musidecar import mesh
from musidecar.formation import Formed, Unfit, form
from musidecar.links import Callbacks, Links
from musidecar.mesh import Mesh, Unreachable
from tests.unit.test_mesh import Regions, member, wait_until


class Node:
    """One node's connections, and what it was told about them."""

    def __init__(self, home: Path, node: int, nodes: tuple[int, ...] = (1, 2, 3)) -> None:
        self.mesh = Mesh(member(home, node, nodes=nodes))
        self.mesh.listen()
        self.fabric = Regions(node)
        self.fds: dict[int, int] = {}
        self.told: list[tuple[str, int, Any]] = []
        self.controls: dict[int, mesh.Connection] = {}
        callbacks = Callbacks(
            opened=lambda peer, pid: self.told.append(("opened", peer, pid)),
            link=self._link,
            gone=lambda peer, goodbye: self.told.append(("gone", peer, goodbye)),
            back=lambda peer: self.told.append(("back", peer, None)),
        )
        self.links = Links(self.mesh, self.fabric, callbacks)

    def _link(self, peer: int, fd: int) -> None:
        self.told.append(("link", peer, None))
        former, self.fds[peer] = self.fds.get(peer), fd
        if former is not None:
            os.close(former)

    def take(self, formed: Formed) -> None:
        """Goes on from a formation."""
        self.fds, self.controls = dict(formed.links), dict(formed.controls)
        self.links.adopt(formed.controls)
        self.links.start()

    def count(self, what: str, peer: int) -> int:
        return sum(told[:2] == (what, peer) for told in self.told)

    def lose_link(self, peer: int) -> None:
        """As the engine does."""
        os.close(self.fds.pop(peer))
        self.links.link_lost(peer)

    def end(self) -> None:
        self.mesh.close()
        self.links.close()
        mesh.close_all(list(self.fds.values()))
        self.fds.clear()
        self.fabric.close()


def connected(a: Node, b: Node) -> bool:
    """Does what one sends arrive at the other?"""
    here, there = a.mesh.member.node, b.mesh.member.node
    try:
        with socket.socket(fileno=os.dup(a.fds[there])) as left, socket.socket(fileno=os.dup(b.fds[here])) as right:
            right.setblocking(False)
            left.sendall(b"x")
            return right.recv(10) == b"x"
    except (OSError, KeyError):
        return False


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def nodes(home: Path) -> Iterator[dict[int, Node]]:
    """Three that have formed a cluster."""
    found = {node: Node(home, node) for node in (1, 2, 3)}
    with ThreadPoolExecutor(3) as pool:
        formed = {n: pool.submit(form, node.mesh, lambda node=node: node.fabric) for n, node in found.items()}  # type: ignore[misc]
        for n, node in found.items():
            node.take(formed[n].result(20))
    yield found
    for node in found.values():
        with contextlib.suppress(OSError):
            node.end()


def cut(node: Node, peer: int) -> None:
    """The control connection, as if from outside."""
    control = node.links._peers[peer].control
    assert control is not None
    control.sock.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("here, there", [(1, 2), (2, 1), (3, 2)])
def test_a_control_connection_is_made_again(nodes: dict[int, Node], here: int, there: int) -> None:
    for times in (1, 2):
        cut(nodes[here], there)
        for a, b in ((here, there), (there, here)):
            wait_until(lambda a=a, b=b, n=times: nodes[a].count("back", b) == n)  # type: ignore[misc]
    assert not any(told[0] in ("opened", "link") for node in nodes.values() for told in node.told)
    assert connected(nodes[here], nodes[there]), "the data link was left alone"


@pytest.mark.parametrize("first", [1, 3])
def test_a_data_link_is_made_again(nodes: dict[int, Node], first: int) -> None:
    """Whoever notices first: the one that dials, or the other."""
    second = 4 - first
    nodes[first].lose_link(second)
    nodes[second].lose_link(first)
    wait_until(lambda: connected(nodes[1], nodes[3]) and connected(nodes[3], nodes[1]))
    assert connected(nodes[1], nodes[2])
    assert not any(told[0] in ("back", "gone", "opened") for node in nodes.values() for told in node.told)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_new_life_gets_and_gives_memory(home: Path, nodes: dict[int, Node], lost: int) -> None:
    nodes[lost].end()
    others = [node for node in nodes if node != lost]
    for other in others:
        wait_until(lambda other=other: nodes[other].count("gone", lost) == 1)  # type: ignore[misc]
        nodes[other].lose_link(lost)
    again = nodes[lost] = Node(home, lost)
    before = {other: len(nodes[other].fabric.events) for other in others}
    again.links.start()
    for other in others:
        wait_until(lambda other=other: connected(again, nodes[other]) and connected(nodes[other], again))  # type: ignore[misc]
        for a, b in ((again, nodes[other]), (nodes[other], again)):
            me, peer = a.mesh.member.node, b.mesh.member.node
            assert a.count("opened", peer) == 1
            names = [f"{kind} of {peer}" for kind in ("log", "background", "doorbell")]
            fence = (None, 0) if me == 3 else (f"fence of {peer} for {me}", (peer << 32) + me)
            events = a.fabric.events[before.get(me, 0) :]
            assert [(what, detail) for what, node, detail in events if node == peer] == [
                ("attach", (names, os.getpid())), ("fence", fence)]  # fmt: skip
        assert nodes[other].links.incarnations()[lost] == again.mesh.member.incarnation


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who found nobody there tries again in a minute."""
    monkeypatch.setattr("musidecar.links.RETRY_S_MIN", 60.0)
    monkeypatch.setattr("musidecar.links.RETRY_S_MAX", 60.0)


def test_who_starts_is_not_waited_for(
    seldom: None, home: Path, nodes: dict[int, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the higher ids, which are to dial, have found nobody there."""
    real, failed = Mesh.dial, []

    def dial(self: Mesh, to: int, *rest: Any) -> mesh.Connection:
        try:
            return real(self, to, *rest)
        except Unreachable:
            failed.append(self.member.node)
            raise

    monkeypatch.setattr(Mesh, "dial", dial)
    nodes[1].end()
    for other in (2, 3):
        wait_until(lambda other=other: nodes[other].count("gone", 1) == 1)  # type: ignore[misc]
        nodes[other].lose_link(1)
    wait_until(lambda: set(failed) == {2, 3})
    again = nodes[1] = Node(home, 1)
    again.links.start()
    for other in (2, 3):
        wait_until(lambda other=other: connected(again, nodes[other]) and connected(nodes[other], again))  # type: ignore[misc]


def test_an_orderly_end_is_told_as_one(nodes: dict[int, Node]) -> None:
    nodes[2].end()
    for node in (1, 3):
        wait_until(lambda node=node: ("gone", 2, True) in nodes[node].told)  # type: ignore[misc]


@pytest.mark.parametrize("step", ["meet", "regions", "fence", "prepared"])
@pytest.mark.parametrize("lost", [1, 3])
def test_a_meeting_that_breaks_off_is_held_again(
    home: Path, nodes: dict[int, Node], lost: int, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new life breaks off right after it has sent this; whatever the other one has by then, both end up connected."""
    nodes[lost].end()
    wait_until(lambda: nodes[2].count("gone", lost) == 1)
    nodes[2].lose_link(lost)
    real, broken = mesh.Connection.send, []

    def send(self: mesh.Connection, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        real(self, message, fds)
        if message.get("step") == step and self is not None and self.peer.node == 2 and len(broken) < 3:
            broken.append(step)
            self.sock.shutdown(socket.SHUT_RDWR)
            raise Unreachable("broken off")

    monkeypatch.setattr(mesh.Connection, "send", send)
    again = nodes[lost] = Node(home, lost)
    again.links.start()
    wait_until(lambda: connected(again, nodes[2]) and connected(nodes[2], again))
    assert len(broken) == (1 if step == "prepared" else 3), "once both are prepared, that is not done again"
    assert again.count("opened", 2) == nodes[2].count("opened", lost) == 1


def test_a_second_life_that_comes_before_the_first_is_done(home: Path, nodes: dict[int, Node]) -> None:
    """Again and again node 2 starts anew; each time both others take it."""
    for _ in range(3):
        nodes[2].end()
        nodes[2] = Node(home, 2)
        nodes[2].links.start()
        for other in (1, 3):
            incarnation = nodes[2].mesh.member.incarnation
            wait_until(lambda other=other, it=incarnation: nodes[other].links.incarnations().get(2) == it)  # type: ignore[misc]
    for other in (1, 3):
        wait_until(lambda other=other: connected(nodes[2], nodes[other]) and connected(nodes[other], nodes[2]))  # type: ignore[misc]


def test_a_new_life_that_does_not_fit_is_told_so_at_both_ends_and_once(
    home: Path, nodes: dict[int, Node], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes[3].end()
    tries = {1: 0, 2: 0, 3: 0}
    real = Regions.attach

    def attach(self: Regions, node: int, offer: dict[str, Any], fds: Sequence[int], pid: int) -> None:
        mesh.close_all(list(fds))
        tries[self.me] += 1
        raise Unfit(f"{self.me} and {node} differ: set this")

    monkeypatch.setattr(Regions, "attach", attach)
    again = nodes[3] = Node(home, 3)
    again.links.start()
    wait_until(lambda: min(tries.values()) > 3)
    for own, other in ((3, 1), (3, 2), (1, 3), (2, 3)):
        assert caplog.text.count(f"{own} and {other} differ: set this") == 1, caplog.text
    monkeypatch.setattr(Regions, "attach", real)
    wait_until(lambda: connected(again, nodes[1]) and connected(nodes[2], again))
