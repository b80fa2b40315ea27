"""A load on a memcached cluster that remembers what it was told: sets of unique values, counters, and loops of gets and
cas.

A connection that breaks or falls silent leaves its last command unknown: it may have been done, once, or not at all. No
command is ever sent again.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field

from musidecar.protocols.memcached.comparing import differences
from musidecar.protocols.memcached.connection import Connection
from musidecar.protocols.server import Address, BackendError
from musidecar.testbed import ClusterStatus, NodeStatus, Testbed

TIMEOUT_S = 5.0
RETRY_S = 0.002
SETTLED_S = 20.0


def client_of(node: NodeStatus) -> Address:
    host, port = node.client_address
    return Address(host=host, port=port)


def backends(status: ClusterStatus) -> dict[str, Address]:
    """Past the sidecars."""
    return {node.id: Address(path=node.backend) for node in status.alive}


def assert_same(bed: Testbed) -> int:
    """All living nodes hold the same once they have done the same; the number of keys."""
    def settled(status: ClusterStatus) -> bool:
        alive = status.alive
        return len({node.commit for node in alive}) == 1 and all(node.applied == node.commit for node in alive)

    deadline = time.monotonic() + SETTLED_S
    while True:
        status = bed.wait_status("all have applied the same", settled)
        count, found = differences(backends(status))
        if not found:
            return count
        assert time.monotonic() < deadline, "\n".join(found)


def read(address: Address, keys: list[bytes]) -> dict[bytes, bytes]:
    """What they hold."""
    found = {}
    with Connection(address, 30) as connection:
        for at in range(0, len(keys), 200):
            connection.send(b"get " + b" ".join(keys[at : at + 200]) + b"\r\n")
            while (line := connection.line()) != b"END":
                _, key, _, length = line.split(b" ")[:4]
                found[key] = b"".join(connection.value(int(length)))
    return found


@dataclass
class Outcome:
    """Of one writer. sets: key -> value of those that were acknowledged. Of its counter, and of the register that all
    share: how often it was acknowledged as changed, and how often nobody can know. tokens: with which cas was done."""

    sets: dict[bytes, bytes] = field(default_factory=dict)
    counted: int = 0
    counter_unknown: int = 0
    replies: list[int] = field(default_factory=list)
    swapped: int = 0
    swap_unknown: int = 0
    tokens: list[bytes] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)


class Load:
    """Writers in threads, each at its own node until that one breaks; a context manager."""

    def __init__(self, nodes: list[Address], writers: int = 6) -> None:
        self.nodes = nodes
        self.outcomes = [Outcome() for _ in range(writers)]
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(writers)]

    def __enter__(self) -> Load:
        with Connection(self.nodes[0], TIMEOUT_S) as connection:
            assert connection.ask(b"set register 0 0 1\r\n0") == b"STORED"
            for i in range(len(self.outcomes)):
                assert connection.ask(b"set counter%d 0 0 1\r\n0" % i) == b"STORED"
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    @property
    def acknowledged(self) -> int:
        return sum(len(each.sets) + each.counted + each.swapped for each in self.outcomes)

    def wait_for(self, more: int, timeout_s: float = 30.0) -> None:
        """Until so many more are acknowledged."""
        wanted, deadline = self.acknowledged + more, time.monotonic() + timeout_s
        while self.acknowledged < wanted:
            assert time.monotonic() < deadline, f"{self.acknowledged} of {wanted} in {timeout_s:g} s"
            time.sleep(0.002)

    def _run(self, number: int) -> None:
        node = number
        while not self._ended.is_set():
            with contextlib.suppress(BackendError):
                with Connection(self.nodes[node % len(self.nodes)], TIMEOUT_S) as connection:
                    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._write(number, self.outcomes[number], connection)
            node += 1
            time.sleep(RETRY_S)

    def _write(self, number: int, outcome: Outcome, connection: Connection) -> None:
        while not self._ended.is_set():
            key = b"w%d:%d" % (number, len(outcome.sets) + outcome.counter_unknown + outcome.swap_unknown)
            if connection.ask(b"set %b 7 0 %d\r\n%b" % (key, len(key), key)) == b"STORED":
                outcome.sets[key] = key
            outcome.counter_unknown += 1
            answer = connection.ask(b"incr counter%d 1" % number)
            if not answer.isdigit():
                outcome.errors.append(answer)
                raise BackendError("no counter")
            outcome.replies.append(int(answer))
            outcome.counter_unknown -= 1
            outcome.counted += 1
            self._swap(outcome, connection)

    def _swap(self, outcome: Outcome, connection: Connection) -> None:
        connection.send(b"gets register\r\n")
        line = connection.line().split(b" ")
        if line[0] != b"VALUE":
            outcome.errors.append(b" ".join(line))
            raise BackendError("no register")
        value = int(b"".join(connection.value(int(line[3]))))
        assert connection.line() == b"END"
        new = b"%d" % (value + 1)
        outcome.swap_unknown += 1
        answer = connection.ask(b"cas register 0 0 %d %b\r\n%b" % (len(new), line[4], new))
        outcome.swap_unknown -= 1
        if answer == b"STORED":
            outcome.swapped += 1
            outcome.tokens.append(line[4])
        elif answer != b"EXISTS":
            outcome.errors.append(answer)

    def judge(self, reader: Address) -> None:
        """What that reader finds is what was acknowledged. The load must have ended."""
        for i, outcome in enumerate(self.outcomes):
            found = read(reader, list(outcome.sets))
            lost = [key for key, value in outcome.sets.items() if found.get(key) != value]
            assert not lost, f"{len(lost)} acknowledged sets of writer {i} are lost at {reader}, e.g. {lost[0]!r}"
            count = int(read(reader, [b"counter%d" % i])[b"counter%d" % i])
            assert outcome.counted <= count <= outcome.counted + outcome.counter_unknown, (i, count, outcome)
            assert outcome.replies == sorted(set(outcome.replies)), "a counter was answered out of order"
        tokens = [token for outcome in self.outcomes for token in outcome.tokens]
        assert len(tokens) == len(set(tokens)), "a cas succeeded twice with one token"
        swapped = sum(outcome.swapped for outcome in self.outcomes)
        unknown = sum(outcome.swap_unknown for outcome in self.outcomes)
        register = int(read(reader, [b"register"])[b"register"])
        assert swapped <= register <= swapped + unknown, (swapped, register, unknown)
        assert not [error for outcome in self.outcomes for error in outcome.errors]
