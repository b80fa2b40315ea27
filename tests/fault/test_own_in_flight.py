"""Clients with a connection of their own (rule 5) whose leader is killed in the middle: of what they asked last the
outcome is unknown and they are closed; it was done whole, once, or not at all. Nobody hangs, whatever he was doing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from musidecar.testbed import NodeStatus, wait_until
from tests.fault import plants
from tests.fault.cluster import a_follower_of, another_serves, assert_same_data, leader_of
from tests.fault.nursery import Cradle, Nursery
from tests.fault.test_own import Line

PLACES = ("before-hazard", "before-store", "before-tail", "after-store", "settled")  # of one write into the logs
KINDS = ("watch", "setting", "user", "block")
USER = "few"


class Doer(threading.Thread):
    """Does one thing again and again, on keys of its own, one more each time, until it is closed or told to end."""

    def __init__(self, node: NodeStatus, kind: str, number: int) -> None:
        super().__init__(daemon=True)
        self.key, self.kind, self.node = f"{kind}:{node.id}:{number}", kind, node
        self.done, self.trouble, self.closed, self.over = 0, "", False, threading.Event()
        self.line = Line(node)
        self.start()

    def run(self) -> None:
        try:
            if self.kind == "user":
                assert self.line.ask(f"AUTH {USER} secret") == ["+OK"]
            while not self.over.is_set():
                self.once(str(self.done + 1))
                self.done += 1
        except TimeoutError:
            self.trouble = f"{self.key}: hangs after {self.done}"
        except (ConnectionError, EOFError):
            self.closed = True
        except AssertionError as error:
            self.trouble = f"{self.key}: after {self.done}: {error}"
        finally:
            self.line.connection.close()

    def say(self, answers: list[str], *texts: str) -> None:
        """Asks, and compares each line of the answers with what it must be."""
        self.line.say(*texts)
        for answer in answers:
            raw = self.line.lines.readline()
            if not raw.endswith(b"\n"):
                raise EOFError
            assert raw.rstrip().decode() == answer, f"{raw!r}, not {answer}"

    def once(self, count: str) -> None:
        a, b = f"{self.key}:a", f"{self.key}:b"
        queued = ["+OK", "+QUEUED", "+QUEUED", "*2", f":{count}", f":{count}"]
        if self.kind == "watch":
            self.say(["+OK"], f"WATCH {a}")
            self.say(queued, "MULTI", f"INCR {a}", f"INCR {b}", "EXEC")
        elif self.kind == "setting":
            self.say(
                ["+OK", *["+QUEUED"] * 3, "*3", f":{count}", "+OK", f":{count}"],
                "MULTI", f"INCR {a}", f"CONFIG SET acllog-max-len {200 + int(count)}", f"INCR {b}", "EXEC",
            )  # fmt: skip
        elif self.kind == "user":
            self.say(queued, "MULTI", f"INCR {a}", f"INCR {b}", "EXEC")
        else:  # what it pushes it takes out again, by a command that would have waited
            self.say([f":{count}", f":{count}", ":1"], f"INCR {a}", f"INCR {b}", f"RPUSH {self.key}:q {count}")
            width = str(len(count))
            name = f"{self.key}:q"
            self.say(["*2", f"${len(name)}", name, f"${width}", count], f"BLPOP {name} 0")


@pytest.fixture(scope="module")
def planted() -> Iterator[Nursery]:
    with Nursery(plants.environment()) as one:
        yield one


def fail_over(planted: Nursery, place: str, chance: random.Random) -> tuple[int, int]:
    """One cluster, its leader killed at that place. Returns how much was done, and how many were closed."""
    with Cradle(planted) as bed:
        before = bed.wait_ready()
        leader = leader_of(before)
        bed.client(leader).acl_setuser(USER, enabled=True, passwords=["+secret"], keys=["user:*"], commands=["+@all"])
        nodes = (leader, *before.followers)
        doers = [Doer(node, kind, n) for node in nodes for kind in KINDS for n in (1, 2)]
        wait_until("all are at it", lambda: all(d.done > 2 or d.trouble for d in doers), 20)
        plants.arm(leader.pid, place, chance.randrange(40))
        plants.await_stop(leader.pid)
        os.kill(leader.pid, signal.SIGKILL)
        after = another_serves(bed, before)
        reached = {d.key: d.done for d in doers}

        def ends_or_goes_on(d: Doer) -> bool:
            """Between two transactions a client has no state, unless it is another user."""
            may_go_on = d.node is not leader and d.kind != "user"
            return d.closed or d.trouble != "" or (may_go_on and d.done > reached[d.key])

        wait_until("those with state are closed, the others go on", lambda: all(map(ends_or_goes_on, doers)), 20)
        client = bed.client(leader_of(after))
        for doer in doers:
            doer.over.set()
        for doer in doers:
            doer.join(20)
        assert [d.trouble for d in doers if d.trouble or d.is_alive()] == [], bed.logs()
        for d in doers:
            a, b = (int(client.get(f"{d.key}:{name}") or 0) for name in "ab")
            if d.kind == "block":
                left = client.lrange(f"{d.key}:q", 0, -1)
                assert d.done <= b <= a <= d.done + 1 and len(left) <= 1, (d.key, d.done, a, b, left)
            else:
                assert a == b and d.done <= a <= d.done + d.closed, (d.key, d.done, a, b)
        assert_same_data(bed)
        return sum(d.done for d in doers), sum(d.closed for d in doers)


@pytest.mark.parametrize("place", PLACES)
def test_rule_05_what_was_under_way_was_done_whole_and_once_or_not_at_all(planted: Nursery, place: str) -> None:
    done, closed = fail_over(planted, place, random.Random(place))
    assert done > 50 and closed >= 12  # all of the leader's node, and the other user's


@pytest.mark.slow
def test_rule_05_a_hundred_times(planted: Nursery) -> None:
    for number in range(100):
        fail_over(planted, PLACES[number % len(PLACES)], random.Random(number))


# ---- each state, again and again -------------------------------------------------------------------------------------

STATES = {  # what is asked, how many lines come at once
    "blocked": ("BLPOP q 0", 0), "stream": ("XREAD BLOCK 0 STREAMS s $", 0), "waits": ("WAIT 3 0", 0),
    "watch": ("WATCH w", 1), "subscribed": ("SUBSCRIBE c", 6), "sharded": ("SSUBSCRIBE c", 6),
    "monitor": ("MONITOR", 1), "user": (f"AUTH {USER} secret", 1),
}  # fmt: skip


def enter(stack: contextlib.ExitStack, node: NodeStatus) -> dict[str, Line]:
    """A client in each state, and one with pushes of RESP3, one in an open transaction of each kind."""
    lines = {}
    for name, (text, count) in STATES.items():
        lines[name] = stack.enter_context(Line(node))
        assert all(line[:1] != "-" for line in lines[name].ask(text, count)), name
    for name in ("tracking", "multi", "own multi"):
        lines[name] = stack.enter_context(Line(node))
    assert lines["tracking"].ask("HELLO 3", 26)[0] == "%7"
    assert lines["tracking"].ask("CLIENT TRACKING ON BCAST") == ["+OK"]
    for name in ("multi", "own multi"):
        assert lines[name].ask("MULTI") == ["+OK"] and lines[name].ask("INCR m") == ["+QUEUED"]
    assert lines["own multi"].ask("CLIENT GETREDIR") == ["+QUEUED"]
    return lines


@pytest.mark.parametrize("whole", [True, False], ids=["node", "sidecar"])
def test_rule_14_each_state_ends_and_nobody_hangs(planted: Nursery, whole: bool) -> None:
    """Clients of the leader's node and of another one. Only the transaction that its node gathers goes on, there."""
    with Cradle(planted) as bed, contextlib.ExitStack() as stack:
        before = bed.wait_ready()
        leader, follower = leader_of(before), a_follower_of(before)
        bed.client(leader).acl_setuser(USER, enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all"])
        here, there = enter(stack, leader), enter(stack, follower)
        blocked = bed.backend(leader)
        wait_until("four wait", lambda: int(blocked.info("clients")["blocked_clients"]) == 4, 20)
        for pid in (leader.pid, leader.backend_pid) if whole else (leader.pid,):
            os.kill(pid, signal.SIGKILL)
        after = another_serves(bed, before)
        assert there.pop("multi").ask("EXEC", 2) == ["*1", ":1"]
        client = bed.client(leader_of(after))
        client.publish("c", "for nobody")
        assert client.rpush("q", "kept") == 1 and client.llen("q") == 1
        client.xadd("s", {"f": "v"})
        for name, line in [*here.items(), *there.items()]:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                left = line.lines.read()
                assert name in ("monitor", "tracking") or left == b"", (name, left)
        assert client.get("m") == b"1"
        with socket.create_connection(follower.client_address, 20) as fresh:
            fresh.sendall(b"PING\r\n")
            assert fresh.recv(100) == b"+PONG\r\n"
        assert_same_data(bed)
