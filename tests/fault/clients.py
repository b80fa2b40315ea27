"""A crowd of clients at all nodes of a cluster, and the record of what each did and saw.

One process of its own (sockets, epoll), used for many clusters one after the other. Each client keeps a few requests
under way on keys it shares with the others: registers (SET, GET), counters (INCR, GET), lists (RPUSH, LRANGE), locks
with a time to live (SET NX PX, GET, DEL). A key lives for some operations and is then left alone, so that a key's
history stays short. At each node there is also a prober: it sends on at its pace whatever has not been answered, so
that requests wait in the socket of a node that stands still.

Nothing is ever sent again. A connection that closes or stays silent leaves its requests unknown.
"""

from __future__ import annotations

import errno
import multiprocessing
import random
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, cast

import hiredis

from musidecar.workload import encode
from tests.fault.history import DONE, REFUSED, UNKNOWN, WRITES, Operation, Value, by_key
from tests.fault.linearizability import check, lost_and_doubled

KINDS = "rrcclkk"  # of keys, as often as they are used
TTL_MS = (15, 150)
PROBE_DEPTH = 24
RETRY_NS = 2_000_000
FINAL_BATCH = 64
FINAL_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Plan:
    """What to do. nodes: (host, port) of each; each: clients at every node, half of them with `depth` requests under
    way; rate: operations a second of all together; key_ops: how many a key lives for; probe_s: the
    probers' pace; timeout_s: a silent connection is left after this; kinds: of keys, of KINDS."""

    nodes: tuple[tuple[str, int], ...]
    seed: int
    each: int = 3
    depth: int = 3
    rate: float = 6000.0
    key_ops: int = 60
    probe_s: float = 0.01
    timeout_s: float = 1.0
    kinds: str = KINDS


@dataclass
class Outcome:
    """What came of it. `violations`: explanations of the keys whose histories have no order; `kept`: these histories;
    lost, doubled: acknowledged writes missing, writes there too often (counters and lists); outages_ms: from each
    moment asked for to the first answer to something sent after it."""

    operations: int = 0
    acknowledged: int = 0  # writes
    unknown: int = 0
    refused: int = 0
    keys: int = 0
    lost: int = 0
    doubled: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    kept: list[Operation] = field(default_factory=list)
    outages_ms: list[float] = field(default_factory=list)
    check_s: float = 0.0


# ---- what is asked ---------------------------------------------------------------------------------------------------


class _Keys:
    """The keys in use, and what comes next on one of them."""

    def __init__(self, seed: int, clients: int, key_ops: int, kinds: str) -> None:
        self.random = random.Random(seed)
        self.kinds = kinds
        self.key_ops = key_ops
        self.serial = 0
        self.unique = 0
        self.used: dict[str, int] = {}
        self.active = {kind: [self._new(kind) for _ in range(max(2, clients // 3))] for kind in set(kinds)}

    def _new(self, kind: str) -> str:
        self.serial += 1
        key = f"{kind}{self.serial}"
        self.used[key] = 0
        return key

    def next(self, reads: float) -> Operation:
        """An operation on a key that is in use; a read with this probability."""
        pick = self.random
        kind = pick.choice(self.kinds)
        keys = self.active[kind]
        i = pick.randrange(len(keys))
        key = keys[i]
        self.used[key] += 1
        if self.used[key] >= self.key_ops:
            keys[i] = self._new(kind)
        self.unique += 1
        value = str(self.unique)
        if pick.random() < reads:
            return Operation(key, "LRANGE" if kind == "l" else "GET", "", 0)
        if kind == "k":
            if pick.random() < 0.4:
                return Operation(key, "UNLOCK", "", 0)
            return Operation(key, "LOCK", value, 0, px_ms=pick.randint(*TTL_MS))
        return Operation(key, {"r": "SET", "c": "INCR", "l": "RPUSH"}[kind], "" if kind == "c" else value, 0)


def words(op: Operation) -> tuple[bytes, ...]:
    """The operation as Redis takes it."""
    key, argument = op.key.encode(), op.argument.encode()
    match op.name:
        case "LOCK":
            return b"SET", key, argument, b"NX", b"PX", b"%d" % op.px_ms
        case "UNLOCK":
            return b"DEL", key
        case "SET" | "RPUSH":
            return op.name.encode(), key, argument
        case "LRANGE":
            return b"LRANGE", key, b"0", b"-1"
    return op.name.encode(), key


def understood(op: Operation, reply: Any) -> Value:
    """A reply in the terms of the history."""
    if isinstance(reply, list):
        return tuple(item.decode() for item in reply)
    if isinstance(reply, bytes):
        return int(reply) if op.key[0] == "c" else reply.decode()
    return cast("int | None", reply)


# ---- the loop --------------------------------------------------------------------------------------------------------


class _Client:
    """One client's connection, wherever it is."""

    def __init__(self, number: int, node: int, depth: int, probes: bool) -> None:
        self.number, self.node, self.depth, self.probes = number, node, depth, probes
        self.sock: socket.socket | None = None
        self.connected = False
        self.not_before_ns = 0
        self.sent = 0
        self.pending: deque[Operation] = deque()
        self.reader = hiredis.Reader()
        self.outbox = b""


class _Loop:
    def __init__(self, plan: Plan, counts: Any, pipe: Connection) -> None:
        self.plan, self.counts, self.pipe = plan, counts, pipe
        self.clients: list[_Client] = []
        for node in range(len(plan.nodes)):
            for i in range(plan.each):
                self.clients.append(_Client(len(self.clients), node, plan.depth if i % 2 else 1, False))
            self.clients.append(_Client(len(self.clients), node, PROBE_DEPTH, True))
        self.keys = _Keys(plan.seed, len(self.clients), plan.key_ops, plan.kinds)
        self.history: list[Operation] = []
        self.errors: Counter[str] = Counter()
        self.epoll = select.epoll()
        self.by_fd: dict[int, _Client] = {}
        self.began_ns = time.monotonic_ns()
        self.rate_ns = plan.rate / 1e9 / (plan.each * len(plan.nodes))  # of one client

    def run(self) -> None:
        """Until something comes over the pipe; then waits a while for what is under way."""
        self.epoll.register(self.pipe.fileno(), select.EPOLLIN)
        running, until_ns, sweep_ns = True, 0, 0
        timeout_ns = int(self.plan.timeout_s * 1e9)
        while running or (any(c.pending for c in self.clients) and time.monotonic_ns() < until_ns):
            now = time.monotonic_ns()
            if now >= sweep_ns:
                sweep_ns = now + 1_000_000
                self._sweep(now, timeout_ns, running)
            for fd, events in self.epoll.poll(0.001, 64):
                if fd == self.pipe.fileno():
                    self.epoll.unregister(fd)
                    running, until_ns = False, time.monotonic_ns() + timeout_ns
                elif (client := self.by_fd.get(fd)) is not None:
                    self._serve(client, events, running)
        for client in self.clients:
            self._drop(client)
        self.epoll.close()

    def _sweep(self, now: int, timeout_ns: int, running: bool) -> None:
        for client in self.clients:
            if client.sock is None:
                if running and now >= client.not_before_ns:
                    self._open(client)
            elif client.pending and client.pending[0].called_ns < now - timeout_ns:
                self._drop(client, away=True)
            elif running and client.connected:
                self._fill(client, now)

    def _open(self, client: _Client) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sock, client.connected, client.outbox = sock, False, b""
        client.reader = hiredis.Reader()
        self.by_fd[sock.fileno()] = client
        self.epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        if sock.connect_ex(self.plan.nodes[client.node]) not in (0, errno.EINPROGRESS):
            self._drop(client, away=True)

    def _drop(self, client: _Client, away: bool = False) -> None:
        """Closes; what was under way stays unknown. `away`: on to the next node."""
        if client.sock is None:
            return
        self.epoll.unregister(client.sock.fileno())
        del self.by_fd[client.sock.fileno()]
        client.sock.close()
        client.sock = None
        client.pending.clear()
        client.not_before_ns = time.monotonic_ns() + RETRY_NS
        if away:
            client.node = (client.node + 1) % len(self.plan.nodes)

    def _serve(self, client: _Client, events: int, running: bool) -> None:
        assert client.sock is not None
        if not client.connected:
            failed = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failed or events & (select.EPOLLERR | select.EPOLLHUP):
                self._drop(client, away=not client.probes)
                return
            client.connected = True
            self.epoll.modify(client.sock.fileno(), select.EPOLLIN)
        elif events & (select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP):
            try:
                data = client.sock.recv(65536)
            except BlockingIOError:
                data = None
            except OSError:
                data = b""
            if data == b"":
                self._drop(client)
                return
            if data:
                self._answers(client, data)
        if running:
            self._fill(client, time.monotonic_ns())
        elif client.outbox:
            self._flush(client)

    def _answers(self, client: _Client, data: bytes) -> None:
        client.reader.feed(data)
        now = time.monotonic_ns()
        while (reply := client.reader.gets()) is not False:
            op = client.pending.popleft()
            op.back_ns = now
            if isinstance(reply, hiredis.ReplyError):
                op.outcome = REFUSED
                self.errors[str(reply)] += 1
                client.not_before_ns = now + RETRY_NS
                continue
            op.outcome, op.result = DONE, understood(op, reply)
            if op.name in WRITES:
                self.counts[op.node] += 1

    def _fill(self, client: _Client, now: int) -> None:
        if now < client.not_before_ns:
            return
        room = client.depth - len(client.pending)
        if client.probes:
            room = min(room, 1)
            client.not_before_ns = now + int(self.plan.probe_s * 1e9)
        else:
            due = int((now - self.began_ns) * self.rate_ns) - client.sent
            client.sent += max(due - client.depth, 0)  # what could not be sent in time is not made up for
            room = min(room, max(due, 0))
        for _ in range(room):
            op = self.keys.next(0.8 if client.probes else 0.4)
            op.node, op.client = client.node, client.number
            client.outbox += encode(words(op))
            client.pending.append(op)
            self.history.append(op)
            client.sent += 1
            op.called_ns = time.monotonic_ns()
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        assert client.sock is not None
        if not client.outbox:
            return
        try:
            client.outbox = client.outbox[client.sock.send(client.outbox) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        self.epoll.modify(client.sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if client.outbox else 0))


# ---- afterwards ------------------------------------------------------------------------------------------------------


def read_all(address: tuple[str, int], node: int, keys: Sequence[str], timeout_s: float) -> list[Operation]:
    """Reads every key through one node: operations of a client of their own. Raises OSError when it does not answer."""
    found: list[Operation] = []
    with socket.create_connection(address, timeout_s) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = hiredis.Reader()
        for at in range(0, len(keys), FINAL_BATCH):
            batch = [Operation(key, "LRANGE" if key[0] == "l" else "GET", "", 0, node=node, client=-1)
                     for key in keys[at : at + FINAL_BATCH]]  # fmt: skip
            called = time.monotonic_ns()
            sock.sendall(b"".join(encode(words(op)) for op in batch))
            for op in batch:
                op.called_ns = called
                while (reply := reader.gets()) is False:
                    data = sock.recv(65536)
                    if not data:
                        raise ConnectionError("it closed the connection")
                    reader.feed(data)
                op.back_ns = time.monotonic_ns()
                op.outcome = REFUSED if isinstance(reply, hiredis.ReplyError) else DONE
                op.result = None if op.outcome == REFUSED else understood(op, reply)
            found += batch
    return found


def judge(history: Sequence[Operation], moments_ns: Sequence[int]) -> Outcome:
    """Checks a whole history."""
    began = time.monotonic()
    keyed = by_key(history)
    found = Outcome(operations=len(history), keys=len(keyed))
    for op in history:
        found.acknowledged += op.outcome == DONE and op.name in WRITES
        found.unknown += op.outcome == UNKNOWN
        found.refused += op.outcome == REFUSED
    for operations in keyed.values():
        lost, doubled = lost_and_doubled(operations)
        found.lost += lost
        found.doubled += doubled
    for verdict in check(history):
        found.violations.append(verdict.explain())
        found.kept += keyed[verdict.key]
    for moment in moments_ns:
        backs = [op.back_ns for op in history if op.outcome == DONE and op.called_ns >= moment]
        found.outages_ms.append((min(backs) - moment) / 1e6 if backs else float("inf"))
    found.check_s = time.monotonic() - began
    return found


@dataclass
class _End:
    """What `Crowd.finish()` asks for."""

    survivors: tuple[int, ...]
    moments_ns: tuple[int, ...]


def _finish(loop: _Loop, end: _End) -> Outcome:
    troubles = []
    keys = list(loop.keys.used)
    for node in end.survivors:
        try:
            loop.history += read_all(loop.plan.nodes[node], node, keys, FINAL_TIMEOUT_S)
        except OSError as error:
            troubles.append(f"node {node + 1} does not answer the last reads: {error or type(error).__name__}")
    outcome = judge(loop.history, end.moments_ns)
    outcome.errors = loop.errors
    outcome.troubles = troubles
    return outcome


def _main(counts: Any, pipe: Connection) -> None:
    while True:
        try:
            plan = pipe.recv()
        except EOFError:
            return
        for i in range(len(counts)):
            counts[i] = 0
        loop = _Loop(plan, counts, pipe)
        loop.run()
        pipe.send("stopped")
        pipe.recv()  # "stop", which ended the loop
        pipe.send(_finish(loop, pipe.recv()))


class Crowd:
    """The process of the clients, from outside. A context manager."""

    def __init__(self, nodes_max: int = 5) -> None:
        context = multiprocessing.get_context("spawn")
        self._counts = context.RawArray("Q", nodes_max)
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_main, args=(self._counts, other), daemon=True)
        self._process.start()
        other.close()
        self._nodes = 0
        self._stage = "idle"  # running, stopped, judging

    def start(self, plan: Plan) -> None:
        """Begins. What was left half done before is brought to its end first."""
        if self._stage == "running":
            self.stop()
        if self._stage == "stopped":
            self.finish(())
        if self._stage == "judging":
            self.outcome()
        self._stage = "running"
        for i in range(len(self._counts)):
            self._counts[i] = 0
        self._nodes = len(plan.nodes)
        self._pipe.send(plan)

    def counts(self) -> list[int]:
        """Writes acknowledged so far, by node."""
        return list(self._counts)[: self._nodes]

    def stop(self) -> None:
        """No more is sent; returns when what was under way is answered or given up."""
        self._pipe.send("stop")
        self._receive(30)
        self._stage = "stopped"

    def finish(self, survivors: Sequence[int], moments_ns: Sequence[int] = ()) -> None:
        """Once stopped: reads all through these nodes (counted from 0), then judges. `outcome()` has the result."""
        self._pipe.send(_End(tuple(survivors), tuple(moments_ns)))
        self._stage = "judging"

    def outcome(self) -> Outcome:
        """Waits for it."""
        found = cast(Outcome, self._receive(120))
        self._stage = "idle"
        return found

    def _receive(self, timeout_s: float) -> Any:
        if not self._pipe.poll(timeout_s):
            raise TimeoutError("the clients' process does not answer")
        return self._pipe.recv()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
