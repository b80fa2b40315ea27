"""A recorded write load: every write is unique and every acknowledgement is kept, so that afterwards it can
be told whether anything acknowledged is missing and whether anything was applied twice.

Each writer owns its keys and sends, in turn, three kinds of writes, numbered by one sequence:

* ``SET w<writer>:<k> <writer>:<seq>:xxx`` - the last acknowledged value, or a later one of unknown outcome,
  must stand;
* ``INCR c<writer>`` - each reply and the end value must lie between acknowledged and acknowledged + unknown;
* ``RPUSH l<writer>:<chunk> <seq>`` - the list must hold each acknowledged number exactly once, in order,
  each number of unknown outcome at most once, and no refused one.

A connection that closes or stays silent leaves its outstanding writes *unknown*: they may be there or not.
An error reply says "not done": such a write must not be there. Nothing is ever sent again, so no writer can
cause a double itself. The load runs in one process of its own (plain sockets, epoll), so that its clock is
not the measured program's.
"""

from __future__ import annotations

import errno
import multiprocessing
import select
import socket
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, cast

import redis

from musidecar.protocols.herd import reading as herd
from musidecar.protocols.memcached import reading as memcached

Reads = redis.Redis | memcached.Reader | herd.Behind
UNKNOWN, REFUSED = 0, -1
KINDS = 3
LIST_CHUNK, VALUE_CHUNK = 5000, 100
VALUE_BYTES, HERD_BYTES = 64, 32
_RETRY_NS = 1_000_000
_TROUBLES_KEPT = 20


@dataclass(frozen=True)
class Plan:
    """What to load. `nodes`: (host, port) of each; `writers`: for each writer the node it starts at;
    `depth`: requests a writer keeps under way; `rate`: writes a second of all writers together, shared evenly
    (0 = as fast as it goes); `timeout_s`: a silent connection is left after this; `keys`: SET keys of each writer."""

    nodes: tuple[tuple[str, int], ...]
    writers: tuple[int, ...]
    depth: int = 1
    rate: float = 0.0
    timeout_s: float = 1.0
    keys: int = 50
    backend: str = "redis"

    @property
    def kinds(self) -> int:
        """Of writes: values, counters, lists. HERD has values alone."""
        return 1 if self.backend == "herd" else KINDS

    @property
    def value_bytes(self) -> int:
        return HERD_BYTES if self.backend == "herd" else VALUE_BYTES

    @property
    def chunk(self) -> int:
        """Entries of a list before another is begun. One of memcached's is a value, written anew for each."""
        return LIST_CHUNK if self.backend == "redis" else VALUE_CHUNK


@dataclass
class Writer:
    """What one writer did: element `seq` of each array is one write. `acked_ns` is CLOCK_MONOTONIC, or
    UNKNOWN or REFUSED; `node` is where it was sent; `reply` the integer answered to INCR and RPUSH."""

    sent_ns: array[int] = field(default_factory=lambda: array("q"))
    acked_ns: array[int] = field(default_factory=lambda: array("q"))
    node: array[int] = field(default_factory=lambda: array("b"))
    reply: array[int] = field(default_factory=lambda: array("q"))


@dataclass
class History:
    """Everything a load did; what `verify` judges."""

    plan: Plan
    writers: list[Writer]
    errors: Counter[str] = field(default_factory=Counter)
    broken: int = 0  # connections that broke or fell silent

    @property
    def acknowledged(self) -> int:
        """Writes that were answered with success."""
        return sum(1 for w in self.writers for t in w.acked_ns if t > 0)

    @property
    def unknown(self) -> int:
        """Writes whose connection ended before an answer came."""
        return sum(1 for w in self.writers for t in w.acked_ns if t == UNKNOWN)

    @property
    def refused(self) -> int:
        """Writes answered with an error."""
        return sum(1 for w in self.writers for t in w.acked_ns if t == REFUSED)

    def first_ack_ns(self, sent_after_ns: int, acked_after_ns: int, not_node: int) -> int | None:
        """When the first write that was sent and acknowledged after these moments was acknowledged by a node
        other than `not_node`."""
        best: int | None = None
        for w in self.writers:
            for seq in range(len(w.acked_ns) - 1, -1, -1):
                t = w.acked_ns[seq]
                if w.sent_ns[seq] < sent_after_ns and 0 < t < acked_after_ns:
                    break
                if (
                    t >= acked_after_ns
                    and t > 0
                    and w.sent_ns[seq] >= sent_after_ns
                    and w.node[seq] != not_node
                ):
                    best = t if best is None else min(best, t)
        return best

    def latencies_us(self, node: int) -> list[float]:
        """Send to acknowledgement of every write acknowledged by `node`, sorted."""
        return sorted(
            (t - s) / 1e3
            for w in self.writers
            for s, t, n in zip(w.sent_ns, w.acked_ns, w.node, strict=True)
            if t > 0 and n == node
        )


@dataclass
class Verdict:
    """What one reader of the data found. `lost`: acknowledged but missing; `doubled`: applied more than
    once; `ghosts`: refused with an error but there; `misordered`: acknowledged writes in another order than
    they were sent in; `late`: of unknown outcome and applied behind the same writer's later writes (allowed,
    and worth knowing)."""

    lost: int = 0
    doubled: int = 0
    ghosts: int = 0
    misordered: int = 0
    late: int = 0
    checked: int = 0
    troubles: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing lost, doubled, misordered, and nothing there that was refused."""
        return not (self.lost or self.doubled or self.ghosts or self.misordered)

    def note(self, text: str) -> None:
        """Keeps the first few findings in words."""
        if len(self.troubles) < _TROUBLES_KEPT:
            self.troubles.append(text)


def value_of(writer: int, seq: int, plan: Plan) -> tuple[bytes, bytes]:
    """Key and value of write `seq`, which is one of a value."""
    value = b"%d:%d:" % (writer, seq)
    return b"w%d:%d" % (writer, seq // plan.kinds % plan.keys), value.ljust(plan.value_bytes, b"x")


def request(writer: int, seq: int, plan: Plan) -> tuple[bytes, ...]:
    """The arguments of write `seq` of a writer: a function of the number alone, so that the history can stay
    small."""
    turn, kind = divmod(seq, plan.kinds)
    if kind == 0:
        return b"SET", *value_of(writer, seq, plan)
    if kind == 1:
        return b"INCR", b"c%d" % writer
    return b"RPUSH", b"l%d:%d" % (writer, turn // LIST_CHUNK), b"%d" % seq


def encode(arguments: Iterable[bytes]) -> bytes:
    """A request as a RESP array of bulk strings."""
    parts = [b"$%d\r\n%b\r\n" % (len(a), a) for a in arguments]
    return b"*%d\r\n" % len(parts) + b"".join(parts)


_NOT_DONE = (b"-", b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR", b"NOT_")


def memcached_request(writer: int, seq: int, plan: Plan) -> bytes:
    """The same write as request() names, of a memcached: a list is a value that grows."""
    turn, kind = divmod(seq, plan.kinds)
    if kind == 0:
        key, value = value_of(writer, seq, plan)
        return b"set %b 0 0 %d\r\n%b\r\n" % (key, len(value), value)
    if kind == 1:
        return b"incr c%d 1\r\n" % writer
    word, entry = b"append" if turn % plan.chunk else b"set", b" %d" % seq
    return b"%b l%d:%d 0 0 %d\r\n%b\r\n" % (word, writer, turn // plan.chunk, len(entry), entry)


def _make_counters(plan: Plan) -> None:
    """memcached counts only what is there."""
    with socket.create_connection(plan.nodes[0], 10) as sock, sock.makefile("rb") as answers:
        for writer in range(len(plan.writers)):
            sock.sendall(b"set c%d 0 0 1\r\n0\r\n" % writer)
            if (line := answers.readline()) != b"STORED\r\n":
                raise RuntimeError(f"a counter cannot be made: {line!r}")


class _Link:
    """One writer's connection, wherever it is at the moment."""

    def __init__(self, writer: int, node: int) -> None:
        self.writer, self.node = writer, node
        self.sock: socket.socket | None = None
        self.connected = False
        self.retry_ns = 0
        self.pending: deque[int] = deque()  # sequence numbers unanswered
        self.inbox = b""
        self.outbox = b""


class _Driver:
    """The loop in the load's own process."""

    def __init__(self, plan: Plan, counts: Any, stop: Connection) -> None:
        self.plan, self.counts, self.stop = plan, counts, stop
        self.epoll = select.epoll()
        self.links = [_Link(w, node) for w, node in enumerate(plan.writers)]
        self.history = History(plan, [Writer() for _ in plan.writers])
        self.by_fd: dict[int, _Link] = {}
        self.began_ns = time.monotonic_ns()

    def run(self) -> History:
        """Loads until the other side of `stop` says so, then waits a moment for the answers under way."""
        self.epoll.register(self.stop.fileno(), select.EPOLLIN)
        running, next_sweep_ns = True, 0
        drained_ns = 0
        while running or (any(link.pending for link in self.links) and time.monotonic_ns() < drained_ns):
            now = time.monotonic_ns()
            if now >= next_sweep_ns:
                self._sweep(now, running)
                next_sweep_ns = now + 1_000_000
            for fd, events in self.epoll.poll(0.001, 64):
                if fd == self.stop.fileno():
                    self.stop.recv()
                    self.epoll.unregister(fd)
                    running = False
                    drained_ns = time.monotonic_ns() + int(self.plan.timeout_s * 1e9)
                    continue
                link = self.by_fd.get(fd)
                if link is not None:
                    self._serve(link, events, running)
        for link in self.links:
            if link.sock is not None:
                self._drop(link, moved=False)
        return self.history

    def _sweep(self, now: int, running: bool) -> None:
        """Opens what is closed, leaves what has been silent for too long, sends what the rate allows."""
        limit = now - int(self.plan.timeout_s * 1e9)
        for link in self.links:
            if link.sock is None:
                if running and now >= link.retry_ns:
                    self._open(link)
            elif link.pending and self.history.writers[link.writer].sent_ns[link.pending[0]] < limit:
                self._drop(link, moved=True)
            elif running and link.connected:
                self._fill(link)

    def _open(self, link: _Link) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sock, link.connected = sock, False
        link.inbox = link.outbox = b""
        result = sock.connect_ex(self.plan.nodes[link.node])
        if result not in (0, errno.EINPROGRESS):
            sock.close()
            link.sock = None
            self._move(link)
            return
        self.by_fd[sock.fileno()] = link
        self.epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _move(self, link: _Link) -> None:
        link.node = (link.node + 1) % len(self.plan.nodes)
        link.retry_ns = time.monotonic_ns() + _RETRY_NS

    def _drop(self, link: _Link, moved: bool, away: bool = True) -> None:
        """Closes; then on to the next node, or (not `away`) back to the same, as clients do that were cut off."""
        assert link.sock is not None
        self.epoll.unregister(link.sock.fileno())
        del self.by_fd[link.sock.fileno()]
        link.sock.close()
        link.sock = None
        if link.connected:
            self.history.broken += moved
        link.pending.clear()  # they stay UNKNOWN
        if moved and away:
            self._move(link)

    def _serve(self, link: _Link, events: int, running: bool) -> None:
        assert link.sock is not None
        if not link.connected:
            if link.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or events & (
                select.EPOLLERR | select.EPOLLHUP
            ):
                self._drop(link, moved=True)
                return
            link.connected = True
            self.epoll.modify(link.sock.fileno(), select.EPOLLIN)
        elif events & (select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP):
            try:
                data = link.sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._drop(link, moved=True, away=False)
                return
            self._answers(link, data)
        if running:
            self._fill(link)
        elif link.outbox:
            self._flush(link)

    def _answers(self, link: _Link, data: bytes) -> None:
        lines = (link.inbox + data).split(b"\r\n")
        link.inbox = lines.pop()
        now = time.monotonic_ns()
        writer = self.history.writers[link.writer]
        for line in lines:
            seq = link.pending.popleft()
            if line.startswith(_NOT_DONE):
                writer.acked_ns[seq] = REFUSED
                self.history.errors[line.decode(errors="replace")] += 1
                link.retry_ns = now + _RETRY_NS
                continue
            writer.acked_ns[seq] = now
            if (number := line.removeprefix(b":")).isdigit():
                writer.reply[seq] = int(number)
            self.counts[link.node] += 1

    def _fill(self, link: _Link) -> None:
        now = time.monotonic_ns()
        if now < link.retry_ns:  # refused a moment ago
            return
        room = self.plan.depth - len(link.pending)
        if self.plan.rate:
            share = self.plan.rate / len(self.links)  # else those that are answered sooner would take it all
            due = int((now - self.began_ns) / 1e9 * share) - len(self.history.writers[link.writer].sent_ns)
            room = min(room, max(due, 0))
        writer = self.history.writers[link.writer]
        for _ in range(room):
            seq = len(writer.sent_ns)
            link.outbox += self._request(link.writer, seq)
            writer.sent_ns.append(time.monotonic_ns())
            writer.acked_ns.append(UNKNOWN)
            writer.node.append(link.node)
            writer.reply.append(0)
            link.pending.append(seq)
        self._flush(link)

    def _request(self, writer: int, seq: int) -> bytes:
        if self.plan.backend in ("memcached", "herd"):
            return memcached_request(writer, seq, self.plan)
        return encode(request(writer, seq, self.plan))

    def _flush(self, link: _Link) -> None:
        assert link.sock is not None
        if not link.outbox:
            return
        try:
            link.outbox = link.outbox[link.sock.send(link.outbox) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(link, moved=True)
            return
        self.epoll.modify(link.sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if link.outbox else 0))


def _main(plan: Plan, counts: Any, pipe: Connection) -> None:
    history = _Driver(plan, counts, pipe).run()
    pipe.send(history)
    pipe.close()


class Load:
    """A running load. Use as a context manager; `finish()` ends it and returns its history."""

    def __init__(self, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self.plan = plan
        if plan.backend == "memcached":
            _make_counters(plan)
        self._counts = context.RawArray("Q", len(plan.nodes))
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_main, args=(plan, self._counts, other), daemon=True)
        self._process.start()
        other.close()

    def counts(self) -> list[int]:
        """Acknowledged writes by node, so far."""
        return list(self._counts)

    def wait_for(self, writes: int, timeout_s: float = 30.0) -> None:
        """Waits until each node that writers started at has acknowledged `writes`. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        used = set(self.plan.writers)
        while any(self._counts[node] < writes for node in used):
            if time.monotonic() > deadline or not self._process.is_alive():
                raise TimeoutError(
                    f"the load got {self.counts()} acknowledgements by node in {timeout_s:g} s"
                )
            time.sleep(0.005)

    def finish(self, timeout_s: float = 60.0) -> History:
        """Stops sending, waits for what is under way, returns the history. Raises TimeoutError."""
        self._pipe.send("stop")
        if not self._pipe.poll(timeout_s):
            self.close()
            raise TimeoutError("the load did not hand over its history")
        history = cast(History, self._pipe.recv())
        self.close()
        return history

    def close(self) -> None:
        """Ends the load's process, whatever it is doing."""
        if self._process.is_alive():
            self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._pipe.close()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._pipe.closed:
            self.close()


def verify(history: History, reader: Reads) -> Verdict:
    """Reads all of a history's keys through `reader` (a node's client port, or a backend) and judges them."""
    verdict = Verdict()
    for number, writer in enumerate(history.writers):
        _verify_values(history, number, writer, reader, verdict)
        if history.plan.kinds > 1:
            _verify_counter(number, writer, reader, verdict)
            _verify_lists(history, number, writer, reader, verdict)
        verdict.checked += len(writer.acked_ns)
    return verdict


def _verify_values(
    history: History, number: int, writer: Writer, reader: Reads, verdict: Verdict
) -> None:
    keys, kinds = history.plan.keys, history.plan.kinds
    values = cast("list[bytes | None]", reader.mget([b"w%d:%d" % (number, k) for k in range(keys)]))
    for k, value in enumerate(values):
        seqs = range(k * kinds, len(writer.acked_ns), keys * kinds)
        last = max((s for s in seqs if writer.acked_ns[s] > 0), default=None)
        found = _seq_of(value, number, history.plan.value_bytes)
        if found is None:
            if value is not None or last is not None:
                verdict.lost += 1
                verdict.note(f"w{number}:{k} is {value!r}, acknowledged was write {last}")
        elif found not in seqs:
            verdict.lost += 1
            verdict.note(f"w{number}:{k} holds write {found}, which was never sent to it")
        elif writer.acked_ns[found] == REFUSED:
            verdict.ghosts += 1
            verdict.note(f"w{number}:{k} holds write {found}, which was refused")
        elif last is not None and found < last:
            if writer.acked_ns[found] == UNKNOWN:
                verdict.late += 1
            else:
                verdict.lost += 1
                verdict.note(f"w{number}:{k} holds write {found}, acknowledged was the later {last}")


def _seq_of(value: bytes | None, number: int, value_bytes: int) -> int | None:
    parts = (value or b"").split(b":")
    if (
        len(parts) != 3
        or parts[0] != b"%d" % number
        or len(value or b"") < value_bytes
        or not parts[1].isdigit()
    ):
        return None
    return int(parts[1])


def _verify_counter(number: int, writer: Writer, reader: Reads, verdict: Verdict) -> None:
    least = most = 0
    for seq in range(1, len(writer.acked_ns), KINDS):
        outcome = writer.acked_ns[seq]
        if outcome == REFUSED:
            continue
        most += 1
        if outcome == UNKNOWN:
            continue
        least += 1
        if writer.reply[seq] < least:
            verdict.lost += 1
            verdict.note(
                f"INCR c{number} (write {seq}) answered {writer.reply[seq]} after {least} acknowledged"
            )
        if writer.reply[seq] > most:
            verdict.doubled += 1
            verdict.note(f"INCR c{number} (write {seq}) answered {writer.reply[seq]} after {most} sent")
    value = int(cast("bytes | None", reader.get(b"c%d" % number)) or 0)
    if value < least:
        verdict.lost += least - value
        verdict.note(f"c{number} is {value}, {least} were acknowledged")
    if value > most:
        verdict.doubled += value - most
        verdict.note(f"c{number} is {value}, only {most} were sent")


def _verify_lists(history: History, number: int, writer: Writer, reader: Reads, verdict: Verdict) -> None:
    total = len(writer.acked_ns)
    pushes = range(2, total, KINDS)
    found: list[int] = []
    size = history.plan.chunk
    for chunk in range((len(pushes) + size - 1) // size):
        found += [int(item) for item in cast(Sequence[bytes], reader.lrange(f"l{number}:{chunk}", 0, -1))]
    times = Counter(found)
    for seq, count in times.items():
        if seq not in pushes:
            verdict.lost += 1
            verdict.note(f"list of writer {number} holds {seq}, which was never pushed")
        elif writer.acked_ns[seq] == REFUSED:
            verdict.ghosts += 1
            verdict.note(f"list of writer {number} holds {seq}, which was refused")
        if count > 1:
            verdict.doubled += count - 1
            verdict.note(f"list of writer {number} holds {seq} {count} times")
    missing = [s for s in pushes if writer.acked_ns[s] > 0 and s not in times]
    verdict.lost += len(missing)
    if missing:
        verdict.note(f"list of writer {number} lacks {len(missing)} acknowledged, the first is {missing[0]}")
    highest = highest_acked = -1
    for seq in found:
        acked = seq < total and writer.acked_ns[seq] > 0
        if acked and seq < highest_acked:
            verdict.misordered += 1
            verdict.note(f"list of writer {number} holds {seq} behind {highest_acked}")
        elif not acked and seq < highest:
            verdict.late += 1
        highest = max(highest, seq)
        highest_acked = max(highest_acked, seq) if acked else highest_acked


def spread(nodes: Sequence[tuple[str, int]], each: int, **more: Any) -> Plan:
    """A plan with `each` writers at every node."""
    return Plan(tuple(nodes), tuple(n for n in range(len(nodes)) for _ in range(each)), **more)
