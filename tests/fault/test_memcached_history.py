"""What memcached's clients saw while leaders were killed and stopped has an order: registers, counters, swaps."""

from __future__ import annotations

import contextlib
import random
import threading
import time

from musidecar.protocols.memcached.connection import Connection
from musidecar.protocols.server import Address, BackendError
from musidecar.testbed import ClusterStatus, NodeStatus, Testbed
from tests.fault.history import DONE, REFUSED, Operation
from tests.fault.linearizability import check, check_key, swapped
from tests.fault.memcached_load import TIMEOUT_S, assert_same, client_of

KEYS = ("r0", "r1", "c0", "s0", "s1")
CLIENTS = 6
OPERATIONS_A_PHASE = 300
PAUSE_S = 0.001  # so that the search has few to place at once


class Client:
    """One thread of operations, each at its own node until that breaks."""

    def __init__(self, number: int, nodes: list[Address]) -> None:
        self.number, self.nodes = number, nodes
        self.chance = random.Random(number)
        self.history: list[Operation] = []

    def run(self, ended: threading.Event) -> None:
        node = self.number
        while not ended.is_set():
            at = node % len(self.nodes)
            with contextlib.suppress(BackendError), Connection(self.nodes[at], TIMEOUT_S) as connection:
                while not ended.is_set():
                    self._one(connection, at)
                    time.sleep(PAUSE_S)
            node += 1
            time.sleep(PAUSE_S)

    def _one(self, connection: Connection, node: int) -> None:
        key = self.chance.choice(KEYS)
        value = f"{self.number}:{len(self.history)}"
        if key[0] == "c" and self.chance.random() < 0.6:
            answer = self._ask(connection, node, key, "INCR", "", b"incr %b 1" % key.encode())
            self.history[-1].result = int(answer)
        elif key[0] == "r" and self.chance.random() < 0.5:
            self._ask(connection, node, key, "SET", value, _set(b"set", key, value))
        else:
            token, found = self._get(connection, node, key)
            if key[0] == "s" and found is None:
                self._ask(connection, node, key, "SET", value, _set(b"set", key, value))
            elif key[0] == "s":
                self._ask(connection, node, key, "CAS", f"{found}>{value}", _set(b"cas", key, value, token))

    def _ask(self, connection: Connection, node: int, key: str, name: str, argument: str, line: bytes) -> str:
        op = Operation(key, name, argument, time.monotonic_ns(), node=node, client=self.number)
        self.history.append(op)
        answer = connection.ask(line).decode()
        op.back_ns, op.outcome, op.result = time.monotonic_ns(), DONE, answer
        if "ERROR" in answer or answer == "NOT_FOUND":
            op.outcome = REFUSED
            raise BackendError(f"{op}: {answer}")
        return answer

    def _get(self, connection: Connection, node: int, key: str) -> tuple[bytes, str | None]:
        op = Operation(key, "GET", "", time.monotonic_ns(), node=node, client=self.number)
        self.history.append(op)
        connection.send(b"gets %b\r\n" % key.encode())
        words = connection.line().split(b" ")
        found = None
        if words[0] == b"VALUE":
            found = b"".join(connection.value(int(words[3]))).decode()
            assert connection.line() == b"END"
        op.back_ns, op.outcome = time.monotonic_ns(), DONE
        op.result = found if key[0] != "c" else int(found or 0) or None
        return words[-1], found


def _set(command: bytes, key: str, value: str, token: bytes = b"") -> bytes:
    return b"%b %b 0 0 %d%b\r\n%b" % (command, key.encode(), len(value), b" " + token if token else b"", value.encode())


def _leader(status: ClusterStatus) -> NodeStatus:
    assert status.leader is not None
    return status[status.leader]


def _await_another(bed: Testbed, before: ClusterStatus) -> None:
    bed.wait_status("another node leads", lambda s: s.leader not in (None, before.leader) and s.term > before.term)


def test_what_clients_saw_has_an_order_while_leaders_are_stopped_and_killed() -> None:
    with Testbed(backend="memcached") as bed:
        nodes = [client_of(node) for node in bed.status().nodes]
        with Connection(nodes[0], TIMEOUT_S) as connection:
            assert connection.ask(b"set c0 0 0 1\r\n0") == b"STORED"
        clients = [Client(i, nodes) for i in range(CLIENTS)]
        ended = threading.Event()
        threads = [threading.Thread(target=client.run, args=(ended,), daemon=True) for client in clients]
        for thread in threads:
            thread.start()

        def flow() -> None:
            wanted = sum(len(client.history) for client in clients) + OPERATIONS_A_PHASE
            deadline = time.monotonic() + 30
            while sum(len(client.history) for client in clients) < wanted:
                assert time.monotonic() < deadline, "no operations"
                time.sleep(0.005)

        try:
            flow()
            before = bed.status()
            stopped = _leader(before)
            bed.stop(stopped)
            _await_another(bed, before)
            flow()
            bed.cont(stopped)
            back = bed.wait_status("it follows", lambda s: s.leader is not None and s[stopped.id].role == "follower")
            flow()
            bed.kill(_leader(back))
            _await_another(bed, back)
            flow()
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert_same(bed)
    history = [op for client in clients for op in client.history]
    assert not [str(op) for op in history if op.outcome == REFUSED]
    assert not (found := check(history)), found[0].explain()
    names = {op.name for op in history if op.outcome == DONE}
    assert names == {"GET", "SET", "INCR", "CAS"} and any(op.result == "STORED" for op in history if op.name == "CAS")
    assert bed.leftovers() == []


def _done(name: str, argument: str, result: str | None, called: int, back: int) -> Operation:
    return Operation("s0", name, argument, called, back, DONE, result)


def test_the_model_of_a_swap_refuses_two_with_one_token_and_a_lost_one() -> None:
    first = [_done("SET", "a", "STORED", 0, 1), _done("CAS", "a>b", "STORED", 2, 3)]
    assert check_key([*first, _done("CAS", "a>c", "EXISTS", 4, 5), _done("GET", "", "b", 6, 7)], swapped).linearizable
    assert not check_key([*first, _done("CAS", "a>c", "STORED", 4, 5)], swapped).linearizable
    assert not check_key([*first, _done("GET", "", "a", 6, 7)], swapped).linearizable
