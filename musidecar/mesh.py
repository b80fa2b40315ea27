"""Authenticated links between the nodes of a cluster, and from the command line to a node.

Unix sockets in the cluster's private directory: `<directory>/mesh/<id>.sock`; where the configuration gives the nodes
mesh addresses, TCP. Who connects and who listens prove to each other that they hold the cluster's secret, before
anything else is said (HMAC-SHA256 over both sides' hello: version, cluster, role, node ids, incarnations, nonces).
What follows is neither encrypted nor signed, like RDMA itself: within one host the kernel carries it, between hosts a
network that must be trusted not to change it. Frames: kind (1 byte), length (4 bytes, big-endian), then JSON or raw
bytes. Descriptors follow a frame that announces them, on a byte of their own, so that plain reads never swallow any.

Roles of a connection: `peer` (control, kept), `link` (its socket goes to the engine), `ask` (one question, one answer),
`transfer` (an RDB). Every read and write has a deadline, every frame a bound, tighter before the other side has proved
itself.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import hmac
import json
import logging
import os
import secrets
import select
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from musidecar.closing import Closing
from musidecar.config import Cluster, split_address
from musidecar.secret import load as load_secret

VERSION = 1
ROLES = ("peer", "link", "ask", "transfer")
NONCE_BYTES = 32
INCARNATION_BYTES = 16
STRANGER_FRAME_BYTES_MAX = 2048  # of somebody who has not proved itself
FRAME_BYTES_MAX = 1 << 20
HANDSHAKE_S = 5.0
FRAME_S = 10.0  # for sending a frame, and for receiving one that has begun
STRANGERS_MAX = 32  # connections in their handshake at a time
FDS_MAX = 8
TCP_ALIVE_S, TCP_ALIVE_COUNT = 2, 3  # a TCP connection silent for so long, so often, is lost
REFUSAL_GAP_S = 0.2  # refusals are logged one line each, but no faster than this,
REFUSAL_AGAIN_S = 30.0  # and the same one again only after this
REFUSALS_KEPT = 100
NO_SECRET = "does not hold this cluster's secret: give all nodes the same cluster.secret_file"
KEEP_OUT = ": let only the hosts of this cluster reach nodes[].mesh"

_HEADER = struct.Struct(">cI")
_JSON, _RAW = b"J", b"B"

log = logging.getLogger("musidecar.mesh")


class MeshError(Exception):
    """Something is wrong with this node's own end of the mesh."""


class Unreachable(MeshError):
    """The other side is not there, does not answer in time, or is lost in mid-sentence."""


class Refused(Unreachable):
    """The other side is there, but one of the two does not accept the other; the text says why."""


# ---- who speaks ------------------------------------------------------------------------------------------------------


def new_incarnation(above: int = 0) -> str:
    """Names one life of one node's memory: a number that grows from life to life, then 64 random bits, in hexadecimal.

    The number is the time in nanoseconds; if that is not beyond `above`, the clock was set back, and it is a random one
    that is.
    """
    number = time.time_ns()
    if number <= above:
        number = above + 1 + secrets.randbits(32)
    return f"{number:016x}" + secrets.token_hex(INCARNATION_BYTES - 8)


def incarnation_number(incarnation: str) -> int:
    """The part of an incarnation that grows: what the log's CONFIG records name a life by."""
    return int(incarnation[:16], 16)


@dataclass(frozen=True)
class Member:
    """One who holds the cluster's secret: a node, or the command line (node 0)."""

    cluster: str
    node: int
    nodes: tuple[int, ...]
    directory: Path
    secret: bytes = field(repr=False)
    incarnation: str = field(default_factory=new_incarnation)
    addresses: Mapping[int, str] = field(default_factory=dict)  # host:port of the nodes that meet over TCP
    joining: frozenset[int] = frozenset()  # those of `nodes` that take no part in forming a cluster

    @classmethod
    def of(cls, config: Cluster, node: int) -> Self:
        """From a configuration. ConfigError when its secret file cannot be used."""
        ids = tuple(each.id for each in config.nodes)
        addresses = {each.id: each.mesh for each in config.nodes if each.mesh is not None}
        joining = frozenset(ids) - frozenset(config.founders)
        secret = load_secret(config.secret_file)
        return cls(config.name, node, ids, config.directory, secret, addresses=addresses, joining=joining)

    def socket_path(self, node: int) -> Path:
        return self.directory / "mesh" / f"{node}.sock"


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, proved; `pid` and `uid` as the kernel tells them: 0 and -1 over TCP."""

    node: int
    role: str
    incarnation: str
    pid: int
    uid: int


def _credentials(sock: socket.socket) -> tuple[int, int]:
    if sock.family != socket.AF_UNIX:
        return 0, -1
    pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def _is_stranger(uid: int) -> bool:
    return uid not in (-1, os.geteuid(), 0)


def _who(sock: socket.socket) -> str:
    """The other end, for people."""
    if sock.family == socket.AF_UNIX:
        return f"pid {_credentials(sock)[0]}"
    try:
        host, port = sock.getpeername()[:2]
    except OSError:
        return "somebody who has gone"
    return f"{host} port {port}"


def _set_up_tcp(sock: socket.socket) -> None:
    """No waiting for more bytes; a host that vanishes is noticed, whether something is to be sent or not."""
    for level, option, value in (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, TCP_ALIVE_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, TCP_ALIVE_S),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, TCP_ALIVE_COUNT),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, (TCP_ALIVE_COUNT + 1) * TCP_ALIVE_S * 1000),
    ):
        sock.setsockopt(level, option, value)


# ---- frames ----------------------------------------------------------------------------------------------------------


class Connection(Closing):
    """Frames over a stream socket. One thread at a time. Unreachable when it breaks or a deadline passes."""

    def __init__(self, sock: socket.socket, peer: Peer, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self.sock = sock
        self.peer = peer
        self.frame_bytes_max = frame_bytes_max

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """One JSON frame; then, if there are any, descriptors (copies of them arrive)."""
        if fds:
            message = {**message, "fds": len(fds)}
        self._send_frame(_JSON, json.dumps(message, separators=(",", ":")).encode())
        if fds:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
            try:
                self.sock.sendmsg([b"F"], [rights])
            except OSError as error:
                raise self._lost(error) from None

    def send_bytes(self, chunk: bytes) -> None:
        """One raw frame."""
        self._send_frame(_RAW, chunk)

    def _send_frame(self, kind: bytes, body: bytes) -> None:
        if len(body) > self.frame_bytes_max:
            raise MeshError(f"a frame of {len(body)} bytes is too long: {self.frame_bytes_max} are allowed")
        try:
            self.sock.settimeout(FRAME_S)
            self.sock.sendall(_HEADER.pack(kind, len(body)) + body)
        except OSError as error:
            raise self._lost(error) from None

    def recv(self, timeout_s: float) -> dict[str, Any]:
        """The next JSON frame, whole within `timeout_s`; it must carry no descriptors."""
        message, fds = self.recv_fds(timeout_s)
        if fds:
            close_all(fds)
            raise Unreachable(f"{self._name()} sent descriptors where none belong")
        return message

    def recv_fds(self, timeout_s: float) -> tuple[dict[str, Any], list[int]]:
        """The next JSON frame and the descriptors that came with it (the caller's from now on, close-on-exec)."""
        message = self.recv_any(timeout_s)
        if isinstance(message, bytes):
            raise Unreachable(f"{self._name()} sent raw bytes where a message belongs")
        count = message.pop("fds", 0)
        if not isinstance(count, int) or not 0 <= count <= FDS_MAX:
            raise Unreachable(f"{self._name()} announced {_quoted(count, 20)} descriptors")
        return message, self._take_fds(count) if count else []

    def recv_any(self, timeout_s: float) -> dict[str, Any] | bytes:
        """The next frame, JSON as a dict, raw as bytes, whole within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        kind, length = _HEADER.unpack(self._exact(_HEADER.size, deadline))
        if kind not in (_JSON, _RAW) or length > self.frame_bytes_max:
            raise Unreachable(f"{self._name()} sent what is no frame of a mesh")
        body = self._exact(length, deadline)
        if kind == _RAW:
            return body
        try:
            message = json.loads(body)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise Unreachable(f"{self._name()} sent a message that is no JSON object")
        return message

    def _exact(self, count: int, deadline: float) -> bytes:
        buffer = bytearray(count)
        view, done = memoryview(buffer), 0
        while done < count:
            try:
                self.sock.settimeout(max(0.001, deadline - time.monotonic()))
                got = self.sock.recv_into(view[done:])
            except OSError as error:
                raise self._lost(error) from None
            if not got:
                raise Unreachable(f"{self._name()} closed the connection")
            done += got
        return bytes(buffer)

    def _take_fds(self, count: int) -> list[int]:
        fds = array.array("i")
        room = socket.CMSG_SPACE(FDS_MAX * fds.itemsize)
        try:
            self.sock.settimeout(FRAME_S)
            marker, ancillary, flags, _ = self.sock.recvmsg(1, room, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise self._lost(error) from None
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        if marker != b"F" or len(fds) != count or flags & socket.MSG_CTRUNC:
            close_all(fds)
            raise Unreachable(f"{self._name()} announced {count} descriptors and sent {len(fds)}")
        return list(fds)

    def _name(self) -> str:
        return node_name(self.peer.node)

    def _lost(self, error: OSError) -> Unreachable:
        if isinstance(error, TimeoutError):
            return Unreachable(f"{self._name()} did not answer in time")
        return Unreachable(f"connection to {self._name()} lost: {error.strerror or error}")

    def detach(self) -> int:
        """The socket's descriptor, blocking, no byte read ahead; the connection is over for Python."""
        self.sock.settimeout(None)
        return self.sock.detach()

    def close(self) -> None:
        self.sock.close()


def node_name(node: int) -> str:
    """A node for people; 0 is the command line, -1 nobody who has said so."""
    return f"node {node}" if node > 0 else "the command line" if node == 0 else "a stranger"


def close_all(fds: Sequence[int] | array.array[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


# ---- the handshake ---------------------------------------------------------------------------------------------------


def _proof(secret: bytes, side: str, hello: dict[str, Any], answer: dict[str, Any]) -> str:
    said = json.dumps([side, hello, answer], sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(secret, b"musidecar mesh\0" + said, hashlib.sha256).hexdigest()


def _same(proof: object, expected: str) -> bool:
    return isinstance(proof, str) and proof.isascii() and hmac.compare_digest(proof, expected)


def _quoted(value: object, length: int) -> str:
    """What the other side said, for one line of a log or of a message: no more of it than `length` characters."""
    text = value if isinstance(value, str) else repr(value) if isinstance(value, int | float | None) else "nonsense"
    text = text[:length]
    return text if text.isprintable() else ascii(text)


def _hex(value: object, count: int) -> bool:
    return isinstance(value, str) and len(value) == 2 * count and set(value) <= set("0123456789abcdef")


def _greet(member: Member, sock: socket.socket, to: int, role: str, deadline: float) -> Peer:
    """The dialling side. Refused when the other one is somebody else or does not want this one."""
    pid, uid = _credentials(sock)
    if _is_stranger(uid):
        raise Refused(f"what listens for node {to} runs as another user")
    connection = Connection(sock, Peer(to, role, "", pid, uid), STRANGER_FRAME_BYTES_MAX)
    hello = {
        "musidecar": VERSION,
        "cluster": member.cluster,
        "role": role,
        "node": member.node,
        "to": to,
        "incarnation": member.incarnation,
        "nonce": secrets.token_hex(NONCE_BYTES),
    }
    connection.send(hello)
    answer = connection.recv(deadline - time.monotonic())
    if "refused" in answer:
        raise Refused(f"node {to} refuses: {_quoted(answer['refused'], 200)}")
    proof = answer.pop("proof", None)
    if not _same(proof, _proof(member.secret, "listener", hello, answer)):
        connection.send({"refused": "secret"})
        raise Refused(f"what listens for node {to} {NO_SECRET}")
    if answer.get("node") != to or answer.get("musidecar") != VERSION:
        raise Refused(f"what listens for node {to} is node {_quoted(answer.get('node'), 20)}")
    if not _hex(answer.get("incarnation"), INCARNATION_BYTES):
        raise Refused(f"the answer of node {to} is malformed")
    connection.send({"proof": _proof(member.secret, "dialler", hello, answer)})
    verdict = connection.recv(deadline - time.monotonic())
    if not verdict.get("welcome"):
        raise Refused(f"node {to} refuses: {_quoted(verdict.get('refused'), 200)}")
    return Peer(to, role, str(answer["incarnation"]), pid, uid)


def _objection(member: Member, hello: dict[str, Any]) -> str | None:
    """Why a hello cannot be accepted, whoever sent it; None when it can."""
    if hello.get("musidecar") != VERSION:
        return f"it speaks version {_quoted(hello.get('musidecar'), 20)} of the mesh, here is {VERSION}"
    if hello.get("cluster") != member.cluster:
        return "it belongs to another cluster"
    if hello.get("to") != member.node:
        return f"it looks for node {_quoted(hello.get('to'), 20)}, here is {member.node}"
    role, node = hello.get("role"), hello.get("node")
    if role not in ROLES or isinstance(node, bool) or not isinstance(node, int):
        return "its role or id is none"
    if not (role == "ask" and node == 0) and (node not in member.nodes or node == member.node):
        return f"node {_quoted(node, 20)} is not another member of this cluster"
    if not _hex(hello.get("incarnation"), INCARNATION_BYTES) or not _hex(hello.get("nonce"), NONCE_BYTES):
        return "its hello is malformed"
    return None


def _welcome(member: Member, sock: socket.socket, deadline: float) -> Peer:
    """The listening side. Refused, after telling the other side, when it is not acceptable."""
    pid, uid = _credentials(sock)
    connection = Connection(sock, Peer(-1, "", "", pid, uid), STRANGER_FRAME_BYTES_MAX)
    if _is_stranger(uid):
        raise Refused("it runs as another user")
    hello = connection.recv(deadline - time.monotonic())
    objection = _objection(member, hello)
    if objection is not None:
        connection.send({"refused": objection})
        raise Refused(objection)
    answer: dict[str, Any] = {
        "musidecar": VERSION,
        "node": member.node,
        "incarnation": member.incarnation,
        "nonce": secrets.token_hex(NONCE_BYTES),
    }
    connection.send({**answer, "proof": _proof(member.secret, "listener", hello, answer)})
    reply = connection.recv(deadline - time.monotonic())
    if not _same(reply.get("proof"), _proof(member.secret, "dialler", hello, answer)):
        if "refused" not in reply:
            connection.send({"refused": f"it {NO_SECRET}"})
        raise Refused(f"it calls itself {node_name(hello['node'])} and {NO_SECRET}")
    connection.send({"welcome": True})
    return Peer(hello["node"], hello["role"], hello["incarnation"], pid, uid)


def dial(member: Member, to: int, role: str, timeout_s: float = HANDSHAKE_S) -> Connection:
    """Connect to a node as `member`, both proved. Unreachable (Refused) when that does not work within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    try:
        sock = _connect(member, to, timeout_s)
    except OSError as error:
        raise Unreachable(f"node {to} is not there: {error.strerror or error}") from None
    try:
        return Connection(sock, _greet(member, sock, to, role, deadline))
    except OSError as error:
        sock.close()
        raise Unreachable(f"node {to} is not there: {error.strerror or error}") from None
    except BaseException:
        sock.close()
        raise


def _connect(member: Member, to: int, timeout_s: float) -> socket.socket:
    if to in member.addresses:
        sock = socket.create_connection(split_address(member.addresses[to]), timeout_s)
        _set_up_tcp(sock)
        return sock
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(str(member.socket_path(to)))
    except BaseException:
        sock.close()
        raise
    return sock


def ask(config: Cluster, node_id: int, question: str, timeout_s: float = 2.0, **details: Any) -> dict[str, Any]:
    """Ask a running node something, as the command line does: `status`. Its answer.

    Unreachable when the node does not run, does not answer within `timeout_s`, or refuses. ConfigError for the secret.
    """
    return ask_as(Member.of(config, 0), node_id, question, timeout_s, **details)


def ask_as(member: Member, node_id: int, question: str, timeout_s: float, **details: Any) -> dict[str, Any]:
    """`ask()` with an identity already at hand."""
    deadline = time.monotonic() + timeout_s
    with dial(member, node_id, "ask", timeout_s) as connection:
        connection.send({**details, "question": question})
        reply = connection.recv(max(0.001, deadline - time.monotonic()))
    if not isinstance(reply.get("answer"), dict):
        raise Refused(f"node {node_id} does not answer {question!r}: {_quoted(reply.get('error'), 200)}")
    answer: dict[str, Any] = reply["answer"]
    return answer


# ---- listening -------------------------------------------------------------------------------------------------------


def private_directory(path: Path) -> None:
    """Make `path` if it is missing (0700). MeshError unless it is this user's and nobody else can enter."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise MeshError(f"cannot make {path}: {error.strerror}") from None
    if found.st_uid not in (os.geteuid(), 0) or stat.S_IMODE(found.st_mode) & 0o077:
        raise MeshError(f"{path} must belong to this user and be closed to others: chmod 700 {path}")


def _listen_tcp(address: str) -> socket.socket:
    host, port = split_address(address)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=64)
    except OSError as error:
        text = f"cannot listen for the other nodes on {address}: {error.strerror or error}"
        raise MeshError(f"{text}: nodes[].mesh must be an address of this host, and free") from None


Handler = Callable[[Connection], None]
Question = Callable[[dict[str, Any]], dict[str, Any]]


class Mesh:
    """This node's end: listens, proves, and gives each connection to the handler of its role, in a thread of its own.

    A handler owns its connection. `questions`: what `ask` connections may ask; an answer is a JSON object.
    """

    def __init__(self, member: Member) -> None:
        self.member = member
        self.handlers: dict[str, Handler] = {"ask": self._answer}
        self.questions: dict[str, Question] = {}
        self._strangers = threading.BoundedSemaphore(STRANGERS_MAX)
        self._listener: socket.socket | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._accept, name="mesh", daemon=True)
        self._refusals = threading.Lock()
        self._refusal_next = 0.0
        self._refusals_said: dict[str, float] = {}
        self._refusals_unsaid = 0

    def listen(self) -> None:
        """Bind this node's socket and begin. The caller holds the node's lock: what is left there is nobody's.

        MeshError when the directory is not private or the socket cannot be bound.
        """
        private_directory(self.member.directory)
        address = self.member.addresses.get(self.member.node)
        self._listener = self._listen_unix() if address is None else _listen_tcp(address)
        self._listener.setblocking(False)
        self._thread.start()

    def _listen_unix(self) -> socket.socket:
        path = self.member.socket_path(self.member.node)
        private_directory(path.parent)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(64)
        except OSError as error:
            listener.close()
            raise MeshError(f"cannot listen on {path}: {error.strerror or error}") from None
        return listener

    def dial(self, to: int, role: str, timeout_s: float = HANDSHAKE_S) -> Connection:
        return dial(self.member, to, role, timeout_s)

    def close(self) -> None:
        """Stop listening. Connections that handlers hold stay theirs."""
        if self._listener is None:
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._listener.close()
        self._listener = None
        os.close(self._wake)
        self.member.socket_path(self.member.node).unlink(missing_ok=True)

    def _accept(self) -> None:
        assert self._listener is not None
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            if any(fd == self._wake for fd, _ in poll.poll()):
                return
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    log.warning("mesh: cannot accept a connection: %s", error.strerror)
                    time.sleep(REFUSAL_GAP_S)  # out of descriptors: no event tells when there are some again
                continue
            if sock.family != socket.AF_UNIX:
                with contextlib.suppress(OSError):  # it has gone already: the handshake will tell
                    _set_up_tcp(sock)
            if not self._strangers.acquire(blocking=False):
                sock.close()
                self._log_refusal(f"more than {STRANGERS_MAX} at a time are in their handshake")
                continue
            threading.Thread(target=self._serve, args=(sock,), name="mesh connection", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            peer = _welcome(self.member, sock, time.monotonic() + HANDSHAKE_S)
        except (MeshError, OSError) as error:
            who = _who(sock)
            sock.close()
            is_noise = sock.family != socket.AF_UNIX and not isinstance(error, Refused)
            self._log_refusal(f"{who}: {error}{KEEP_OUT if is_noise else ''}")
            return
        finally:
            self._strangers.release()
        connection = Connection(sock, peer)
        handler = self.handlers.get(peer.role)
        if handler is None:
            connection.close()
            return
        try:
            handler(connection)
        except MeshError as error:
            connection.close()
            log.warning("mesh: %s of %s broke off: %s", peer.role, node_name(peer.node), error)

    def _answer(self, connection: Connection) -> None:
        with connection:
            question = connection.recv(HANDSHAKE_S)
            answer = self.questions.get(str(question.get("question")))
            if answer is None:
                connection.send({"error": "unknown question"})
                return
            try:
                connection.send({"answer": answer(question)})
            except MeshError:
                raise
            except Exception as error:
                log.exception("mesh: answering %s failed", question.get("question"))
                connection.send({"error": f"failed: {error}"})

    def _log_refusal(self, text: str) -> None:
        now = time.monotonic()
        with self._refusals:
            if now < self._refusal_next or now < self._refusals_said.get(text, 0.0):
                self._refusals_unsaid += 1
                return
            if len(self._refusals_said) >= REFUSALS_KEPT:
                self._refusals_said.clear()
            self._refusal_next, self._refusals_said[text] = now + REFUSAL_GAP_S, now + REFUSAL_AGAIN_S
            unsaid, self._refusals_unsaid = self._refusals_unsaid, 0
        more = f" (and {unsaid} more)" if unsaid else ""
        log.warning("mesh: refused a connection: %s%s", text, more)
