"""Links between nodes over real Unix sockets: who is let in, what happens to the rest, and how a cluster forms."""

from __future__ import annotations

import array
import contextlib
import logging
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from musidecar import formation, mesh
from musidecar.config import parse
from musidecar.formation import Formed, Running, Stopped, form, running
from musidecar.mesh import Connection, Member, Mesh, MeshError, Peer, Refused, Unreachable

SECRET = bytes(range(32))
WAIT_S = 20.0


def member(directory: Path, node: int, **changes: Any) -> Member:
    options: dict[str, Any] = {"cluster": "test", "nodes": (1, 2, 3), "directory": directory, "secret": SECRET}
    return Member(node=node, **{**options, **changes})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@contextlib.contextmanager
def listening(who: Member) -> Iterator[Mesh]:
    node = Mesh(who)
    node.listen()
    try:
        yield node
    finally:
        node.close()


@pytest.fixture
def two(home: Path) -> Iterator[Mesh]:
    with listening(member(home, 2)) as node:
        node.questions["status"] = lambda question: {"id": 2, "echo": question.get("echo")}
        yield node


def pair() -> tuple[Connection, Connection]:
    left, right = socket.socketpair()
    return Connection(left, Peer(2, "peer", "", 1, 1)), Connection(right, Peer(1, "peer", "", 1, 1))


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- frames ----------------------------------------------------------------------------------------------------------


def test_messages_bytes_and_descriptors_arrive_in_order() -> None:
    left, right = pair()
    with left, right:
        reader, writer = os.pipe()
        left.send({"a": 1})
        left.send({"b": 2}, [writer, reader])
        left.send_bytes(b"raw")
        left.send({"c": "ä"})
        assert right.recv(1) == {"a": 1}
        message, fds = right.recv_fds(1)
        assert message == {"b": 2} and len(fds) == 2
        assert right.recv_any(1) == b"raw" and right.recv(1) == {"c": "ä"}
        assert not any(os.get_inheritable(fd) for fd in fds)
        os.write(fds[0], b"x")
        assert os.read(reader, 1) == b"x"
        mesh.close_all([reader, writer, *fds])


def test_unwanted_descriptors_are_closed() -> None:
    left, right = pair()
    with left, right:
        before = open_fds()
        left.send({"a": 1}, [0])
        with pytest.raises(Unreachable, match="where none belong"):
            right.recv(1)
        left.send({"fds": 3})
        left.sock.sendmsg([b"F"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
        with pytest.raises(Unreachable, match="announced 3 descriptors and sent 1"):
            right.recv_fds(1)
        assert open_fds() == before


@pytest.mark.parametrize(
    "frame",
    [
        b"J\xff\xff\xff\xff",
        b"X\0\0\0\x02{}",
        b"J\0\0\0\x02[]",
        b"J\0\0\0\x02{",
        b"B\0\0\0\x01x",
        b"J\0\0\0\x0e" + b'{"fds": 99999}',
        b"J\0\0\0\x0c" + b'{"fds": "a"}',
        b"J" + struct.pack(">I", 100_000) + b"[" * 100_000,
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_what_is_no_message_breaks_the_connection(frame: bytes) -> None:
    left, right = pair()
    with left, right:
        left.sock.sendall(frame)
        left.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(Unreachable):
            right.recv(WAIT_S)


def test_half_a_frame_does_not_hold_for_ever() -> None:
    left, right = pair()
    with left, right:
        left.sock.sendall(b"J\0\0\0\x09{")
        with pytest.raises(Unreachable, match="in time"):
            right.recv(0.05)
        with pytest.raises(MeshError, match="too long"):
            left.send_bytes(b"x" * (mesh.FRAME_BYTES_MAX + 1))


def test_a_detached_socket_has_lost_no_byte() -> None:
    left, right = pair()
    with right:
        left.send({"a": 1})
        left.sock.sendall(b"raw stream")
        assert right.recv(1) == {"a": 1}
        with socket.socket(fileno=right.detach()) as stream:
            assert stream.getblocking() and stream.recv(100) == b"raw stream"
        left.close()


# ---- who is let in ---------------------------------------------------------------------------------------------------


def test_both_sides_know_each_other(home: Path, two: Mesh) -> None:
    arrived: Future[Connection] = Future()
    two.handlers["peer"] = arrived.set_result
    three = member(home, 3)
    with mesh.dial(three, 2, "peer") as near, arrived.result(WAIT_S) as far:
        assert near.peer == Peer(2, "peer", two.member.incarnation, os.getpid(), os.geteuid())
        assert far.peer == Peer(3, "peer", three.incarnation, os.getpid(), os.geteuid())
        far.send({"hello": 1})
        assert near.recv(1) == {"hello": 1}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"secret": b"x" * 32}, "does not hold this cluster's secret: give all nodes the same cluster.secret_file"),
        ({"cluster": "other"}, "another cluster"),
        ({"node": 4}, "not another member"),
        ({"node": 2}, "not another member"),
        ({"node": 0}, "not another member"),
        ({"incarnation": "short"}, "malformed"),
    ],
)
def test_strangers_are_refused_in_one_line(
    home: Path, two: Mesh, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], reason: str
) -> None:
    two.handlers["peer"] = lambda connection: pytest.fail("was let in")
    with caplog.at_level(logging.INFO, "musidecar"), pytest.raises(Refused, match=reason):
        mesh.dial(member(home, **{"node": 3, **changes}), 2, "peer")
    wait_until(lambda: bool(caplog.records))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert reason in caplog.text and f"pid {os.getpid()}" in caplog.text and SECRET.hex() not in caplog.text


def test_another_version_is_refused(two: Mesh) -> None:
    hello = {"musidecar": 99, "cluster": "test", "role": "ask", "node": 0, "to": 2}
    with raw(two) as sock:
        stranger = Connection(sock, Peer(2, "", "", 0, 0))
        stranger.send(hello)
        assert "speaks version 99 of the mesh" in stranger.recv(WAIT_S)["refused"]


@contextlib.contextmanager
def raw(node: Mesh) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT_S)
        sock.connect(str(node.member.socket_path(node.member.node)))
        yield sock


def test_a_replayed_or_reflected_proof_is_worth_nothing(two: Mesh) -> None:
    def hello(node: int) -> dict[str, Any]:
        return {"musidecar": mesh.VERSION, "cluster": "test", "role": "peer", "node": node, "to": 2,
                "incarnation": secrets.token_hex(16), "nonce": secrets.token_hex(32)}  # fmt: skip

    two.handlers["peer"] = lambda connection: pytest.fail("was let in")
    with raw(two) as sock:
        stranger = Connection(sock, Peer(2, "", "", 0, 0))
        stranger.send(hello(3))
        listener_proof = stranger.recv(WAIT_S)["proof"]
        stranger.send({"proof": listener_proof})
        assert "secret" in stranger.recv(WAIT_S)["refused"]
    for proof in (None, 1, "", "0" * 64, "ä"):
        with raw(two) as sock:
            stranger = Connection(sock, Peer(2, "", "", 0, 0))
            stranger.send(hello(3))
            assert "proof" in stranger.recv(WAIT_S)
            stranger.send({"proof": proof})
            assert "secret" in stranger.recv(WAIT_S)["refused"]


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"J\0\0\x08\x01", os.urandom(5000), b"J\0\0\0\x02{}"])
def test_garbage_before_the_handshake_ends_the_connection(two: Mesh, sent: bytes) -> None:
    with raw(two) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall(sent)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while sock.recv(1000):
                pass


def test_silent_strangers_neither_stay_nor_keep_members_out(
    home: Path, two: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh, "HANDSHAKE_S", 0.3)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(raw(two)) for _ in range(mesh.STRANGERS_MAX + 10)]
        for sock in socks:
            assert sock.recv(1) == b"", "closed, whether there was room for it or not"
        assert mesh.ask_as(member(home, 0), 2, "status", WAIT_S)["id"] == 2


def test_a_listener_without_the_secret_is_found_out(home: Path) -> None:
    with listening(member(home, 2, secret=b"y" * 32)):
        with pytest.raises(Refused, match=r"does not hold this cluster's secret"):
            mesh.dial(member(home, 3), 2, "peer")


def test_a_public_directory_is_not_used(home: Path) -> None:
    (home / "mesh").mkdir(mode=0o755)
    with pytest.raises(MeshError, match="chmod 700"):
        Mesh(member(home, 2)).listen()


def test_a_socket_left_by_the_dead_is_taken_over(home: Path) -> None:
    with listening(member(home, 2)) as first:
        path = first.member.socket_path(2)
        assert path.stat().st_mode & 0o777 == 0o600
        os.link(path, home / "left")
    os.rename(home / "left", path)
    with listening(member(home, 2)) as node:
        node.questions["status"] = lambda _: {}
        assert mesh.ask_as(member(home, 0), 2, "status", WAIT_S) == {}
    assert not path.exists()


# ---- asking ----------------------------------------------------------------------------------------------------------


def test_ask_by_configuration(home: Path, two: Mesh) -> None:
    (home / "secret").write_text(SECRET.hex())
    (home / "secret").chmod(0o600)
    nodes = [{"id": i, "client": f"127.0.0.1:{7000 + i}", "backend": {"socket": f"{i}.sock"}} for i in (1, 2, 3)]
    whole = {"name": "test", "secret_file": "secret", "directory": "."}
    config = parse({"cluster": whole, "nodes": nodes}, home / "cluster.toml")
    assert mesh.ask(config, 2, "status", WAIT_S, echo="x") == {"id": 2, "echo": "x"}
    with pytest.raises(Refused, match="unknown question"):
        mesh.ask(config, 2, "nonsense", WAIT_S)
    with pytest.raises(Unreachable, match="node 3 is not there"):
        mesh.ask(config, 3, "status", WAIT_S)


def test_a_failing_answer_is_an_error_and_the_node_lives(home: Path, two: Mesh) -> None:
    two.questions["bad"] = lambda _: {"x": 1 // 0}
    with pytest.raises(Refused, match="failed"):
        mesh.ask_as(member(home, 0), 2, "bad", WAIT_S)
    assert mesh.ask_as(member(home, 0), 2, "status", WAIT_S)["id"] == 2


def test_a_node_that_does_not_answer_is_unreachable_in_time(home: Path, two: Mesh) -> None:
    done = threading.Event()
    two.questions["slow"] = lambda _: {"waited": done.wait(WAIT_S)}
    began = time.monotonic()
    with pytest.raises(Unreachable, match="in time"):
        mesh.ask_as(member(home, 0), 2, "slow", 0.1)
    assert time.monotonic() - began < WAIT_S / 2
    done.set()


# ---- over TCP --------------------------------------------------------------------------------------------------------


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_nodes_on_several_hosts_meet_over_tcp(home: Path) -> None:
    addresses = {1: free_address(), 2: free_address()}
    met: Future[Connection] = Future()
    with listening(member(home, 2, addresses=addresses)) as node:
        node.handlers["link"] = met.set_result
        assert not node.member.socket_path(2).exists()
        with mesh.dial(member(home, 1, addresses=addresses), 2, "link") as ours, met.result(WAIT_S) as theirs:
            assert (theirs.peer.node, theirs.peer.pid) == (1, 0)
            ours.send({"a": 1})
            assert theirs.recv(WAIT_S) == {"a": 1}
            for end in (ours.sock, theirs.sock):
                assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_a_stranger_on_the_mesh_port_is_refused_and_named(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    addresses = {2: free_address()}
    with listening(member(home, 2, addresses=addresses)) as node:
        with socket.create_connection(("127.0.0.1", int(addresses[2].rpartition(":")[2])), WAIT_S) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(100) == b""
        wait_until(lambda: "127.0.0.1 port" in caplog.text and "what is no frame" in caplog.text)
        assert "let only the hosts of this cluster reach nodes[].mesh" in caplog.text
        with pytest.raises(Refused, match="does not hold this cluster's secret"):
            mesh.dial(member(home, 1, addresses=addresses, secret=b"another" * 5), 2, "peer")
        assert mesh.dial(member(home, 1, addresses=addresses), 2, "ask").close() is None
        assert node.member.node == 2


def test_a_mesh_address_of_another_host_names_the_remedy(home: Path) -> None:
    with pytest.raises(MeshError, match=r"192\.0\.2\.1:7100.*nodes\[\]\.mesh must be an address of this host"):
        Mesh(member(home, 2, addresses={2: "192.0.2.1:7100"})).listen()


# ---- forming a cluster -----------------------------------------------------------------------------------------------


class Regions:
    """Descriptors with a name in them: stands where the shm fabric is, to see what is handed to whom."""

    made = 0

    def __init__(self, me: int) -> None:
        self.me = me
        Regions.made += 1
        self.own = [os.memfd_create(f"{kind} of {me}") for kind in ("log", "background", "doorbell")]
        self.fences: dict[int, int] = {}
        self.events: list[tuple[str, int, Any]] = []
        self.closed = False

    def offer(self, node: int) -> tuple[dict[str, Any], Sequence[int]]:
        return {"for": node}, self.own

    def attach(self, node: int, offer: dict[str, Any], fds: Sequence[int], pid: int) -> None:
        assert offer == {"for": self.me}
        names = [os.readlink(f"/proc/self/fd/{fd}").split(":")[1].split(" (")[0] for fd in fds]
        mesh.close_all(list(fds))
        self.events.append(("attach", node, (names, pid)))

    def fence(self, node: int) -> tuple[int | None, int]:
        if node == 3:
            return None, 0
        self.fences[node] = os.memfd_create(f"fence of {self.me} for {node}")
        return self.fences[node], (self.me << 32) + node

    def set_fence(self, node: int, fd: int | None, mapping: int) -> None:
        name = None
        if fd is not None:
            name = os.readlink(f"/proc/self/fd/{fd}").split(":")[1].split(" (")[0]
            os.close(fd)
        self.events.append(("fence", node, (name, mapping)))

    @property
    def is_renewable(self) -> bool:
        return False

    def is_broken(self, node: int) -> bool:
        return False

    def open_link(self, node: int) -> None:
        self.events.append(("open", node, None))

    def close(self) -> None:
        if not self.closed:
            mesh.close_all([*self.own, *self.fences.values()])
        self.closed = True


class Node:
    """One node in formation, in a thread."""

    def __init__(self, who: Member, pool: ThreadPoolExecutor) -> None:
        self.mesh = Mesh(who)
        self.mesh.listen()
        self.stop = threading.Event()
        self.result: Future[Formed] = pool.submit(form, self.mesh, lambda: Regions(who.node), stopping=self.stop.is_set)

    def formed(self) -> Formed:
        return self.result.result(WAIT_S)

    def end(self) -> None:
        """As when its process dies: everything it has open is closed."""
        self.stop.set()
        self.mesh.close()
        with contextlib.suppress(MeshError):
            formed = self.formed()
            formed.fabric.close()
            mesh.close_all(list(formed.links.values()))
            formed.links.clear()
            for connection in formed.controls.values():
                connection.close()


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []
    with ThreadPoolExecutor(16) as pool:

        def start(node: int, **changes: Any) -> Node:
            nodes.append(Node(member(home, node, **changes), pool))
            return nodes[-1]

        try:
            yield start
        finally:
            for node in nodes:
                node.end()


def check_formed(nodes: list[Node]) -> None:
    formed = {node.mesh.member.node: node.formed() for node in nodes}
    incarnations = {node.mesh.member.node: node.mesh.member.incarnation for node in nodes}
    for me, each in formed.items():
        peers = [node for node in formed if node != me]
        assert each.incarnations == incarnations
        assert each.pids == dict.fromkeys(peers, os.getpid())
        events = each.fabric.events
        for node in peers:
            names = [f"/memfd:{kind} of {node}".split(":")[1] for kind in ("log", "background", "doorbell")]
            fence = (None, 0) if me == 3 else (f"fence of {node} for {me}", (node << 32) + me)
            mine = [(what, detail) for what, peer, detail in events if peer == node]
            assert mine == [("attach", (names, os.getpid())), ("fence", fence), ("open", None)]
            with socket.socket(fileno=os.dup(each.links[node])) as link:
                link.sendall(b"from %d" % me)
    for each in formed.values():
        for node, fd in each.links.items():
            with socket.socket(fileno=os.dup(fd)) as link:
                assert link.recv(100) == b"from %d" % node


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
def test_a_cluster_forms_in_any_order(start: Callable[..., Node], order: tuple[int, ...]) -> None:
    check_formed([start(node) for node in order])


def test_five_nodes_form(start: Callable[..., Node]) -> None:
    check_formed([start(node, nodes=(1, 2, 3, 4, 5)) for node in (4, 1, 5, 3, 2)])


def test_it_says_whom_it_waits_for_and_can_be_stopped(
    start: Callable[..., Node], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formation, "REMIND_S", 0.3)
    with caplog.at_level(logging.INFO, "musidecar"):
        two = start(2)
        wait_until(lambda: "still waiting" in caplog.text)
        assert caplog.messages.count("mesh: waiting for node 1, node 3") == 1
        assert "mesh: still waiting for node 1, node 3" in caplog.messages
        two.stop.set()
        with pytest.raises(Stopped):
            two.formed()


def test_nobody_forms_a_cluster_without_one_node(start: Callable[..., Node]) -> None:
    one, three = start(1), start(3)
    wait_until(lambda: threading.active_count() > 2)
    with pytest.raises(TimeoutError):
        one.result.result(0.5)
    assert not three.result.done()
    check_formed([one, start(2), three])


def test_a_node_that_starts_again_before_all_are_there_is_no_harm(start: Callable[..., Node]) -> None:
    for again in (1, 3):
        nodes = {node: start(node) for node in (1, 3)}
        with pytest.raises(TimeoutError):
            nodes[again].result.result(0.3)
        nodes[again].end()
        nodes[again] = start(again)
        with pytest.raises(TimeoutError):
            nodes[again].result.result(0.3)
        nodes[2] = start(2)
        check_formed(list(nodes.values()))
        for node in nodes.values():
            node.end()


def test_a_node_lost_in_mid_formation_begins_another_round(
    start: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node 2 vanishes right after it got the regions; the others drop theirs, and form with its next life."""
    vanished = threading.Event()
    real = Regions.attach

    def attach(self: Regions, node: int, offer: dict[str, Any], fds: Sequence[int], pid: int) -> None:
        real(self, node, offer, fds, pid)
        if self.me == 2 and not vanished.is_set():
            vanished.set()
            raise Stopped("gone")

    monkeypatch.setattr(Regions, "attach", attach)
    made = Regions.made
    nodes = [start(1), start(3)]
    two = start(2)
    with pytest.raises(Stopped):
        two.formed()
    two.end()
    check_formed([*nodes, start(2)])
    assert Regions.made >= made + 6, "nobody used the regions of the broken round again"


def test_trap_22_a_node_that_comes_back_without_its_memory_forms_nothing(start: Callable[..., Node]) -> None:
    """It learns that the cluster runs, who was there at first, and above which number its own must be."""
    for lost in (1, 2, 3):
        nodes = {node: start(node) for node in (1, 2, 3)}
        check_formed(list(nodes.values()))
        first = nodes[lost].formed().incarnations
        nodes[lost].end()
        again = start(lost)
        with pytest.raises(Running) as found:
            again.formed()
        for told in (found.value, running(again.mesh.member)):
            assert told is not None and told.members == first
            assert told.latest == mesh.incarnation_number(first[lost])
        assert mesh.incarnation_number(again.mesh.member.incarnation) > found.value.latest
        for node in (again, *nodes.values()):
            node.end()


def test_incarnations_grow_also_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = mesh.new_incarnation(), mesh.new_incarnation()
    assert mesh.incarnation_number(two) > mesh.incarnation_number(one) and len(one) == len(two) == 32
    above = mesh.incarnation_number(two) + 10**15
    more = {mesh.incarnation_number(mesh.new_incarnation(above)) for _ in range(10)}
    assert min(more) > above and len(more) == 10, "and no two lives are the same"


def test_wrong_secret_keeps_a_node_out_of_the_cluster(
    start: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "musidecar"):
        nodes = [start(1), start(2)]
        wrong = start(3, secret=b"z" * 32)
        wait_until(lambda: "does not hold this cluster's secret" in caplog.text)
        assert not any(node.result.done() for node in (*nodes, wrong))
        wrong.end()
        check_formed([*nodes, start(3)])


def test_no_descriptor_is_left_behind(home: Path) -> None:
    before = open_fds()
    with ThreadPoolExecutor(3) as pool:
        nodes = [Node(member(home, node), pool) for node in (1, 2, 3)]
        check_formed(nodes)
        for node in nodes:
            node.end()
    wait_until(lambda: open_fds() == before)
