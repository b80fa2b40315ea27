"""Requests outlive the leader (rule 14): clients of the nodes that stay see no error when it is killed under load, and
nothing is done twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading

import pytest

from musidecar.testbed import NodeStatus, wait_until
from musidecar.workload import encode
from tests.fault.cluster import another_serves
from tests.fault.nursery import Cradle, Nursery

CLIENTS = 6  # of each node that stays
DEPTH = 8


class Counter(threading.Thread):
    """A client that counts on a key of its own, some increments at a time, and looks at every answer: each is one more
    than the one before, across everything that happens to the leader."""

    def __init__(self, node: NodeStatus, name: str) -> None:
        super().__init__(daemon=True)
        self.key, self.chance, self.count = name.encode(), random.Random(name), 0
        self.over, self.trouble = threading.Event(), ""
        self.connection = socket.create_connection(node.client_address, timeout=20)
        self.start()

    def run(self) -> None:
        with contextlib.closing(self.connection), self.connection.makefile("rb") as lines:
            try:
                while not self.over.is_set() and not self.trouble:
                    self.ask(lines)
            except OSError as error:
                self.trouble = f"{error!r} after {self.count}"

    def ask(self, lines: object) -> None:
        depth = self.chance.randint(1, DEPTH)
        self.connection.sendall(encode((b"INCR", self.key)) * depth)
        for _ in range(depth):
            answer = lines.readline()  # type: ignore[attr-defined]
            if answer != b":%d\r\n" % (self.count + 1):
                self.trouble = f"{answer!r} after {self.count}"
                return
            self.count += 1


def fail_over(nursery: Nursery, number: int) -> int:
    """One cluster, one kill -9 of its leader's node under load. Returns how many were counted."""
    with Cradle(nursery) as bed:
        before = bed.wait_ready()
        leader = before[before.leader or ""]
        counters = [Counter(node, f"{number}:{node.id}:{i}") for node in before.followers for i in range(CLIENTS)]
        wait_until("all count", lambda: all(c.count > 20 or c.trouble for c in counters), 20)
        for pid in (leader.backend_pid, leader.pid) if number % 2 else (leader.pid,):
            os.kill(pid, signal.SIGKILL)
        after = another_serves(bed, before)
        then = [c.count for c in counters]
        goals = [n + 20 for n in then]
        wait_until("all go on", lambda: all(c.count > n or c.trouble for c, n in zip(counters, goals, strict=True)), 20)
        for counter in counters:
            counter.over.set()
        for counter in counters:
            counter.join(20)
        assert [c.trouble for c in counters if c.trouble] == [], bed.logs()
        client = bed.client(after[after.leader or ""])
        assert [int(client.get(c.key) or 0) for c in counters] == [c.count for c in counters]
        return sum(c.count for c in counters)


def test_rule_14_clients_of_other_nodes_do_not_notice_that_the_leader_is_killed(nursery: Nursery) -> None:
    assert sum(fail_over(nursery, number) for number in range(6)) > 1000


@pytest.mark.slow
def test_rule_14_two_hundred_times(nursery: Nursery) -> None:
    for number in range(200):
        fail_over(nursery, number)
