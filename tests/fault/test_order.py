"""Requests of clients that do not wait for each other's answers: nobody promises an order, but what one server does as
it comes is done so through one node, too, whichever connections carry it. (Of 300 pairs as here a plain server did ten
the other way round: it does not ask which of two sockets had something to read first.)"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest

from musidecar.testbed import NodeStatus, Testbed
from tests.fault.cluster import leader_of
from tests.fault.test_own import Line

TIMES = 150
WRONG_MAX = TIMES // 15
CROWD = 3


@contextlib.contextmanager
def crowd(node: NodeStatus) -> Iterator[None]:
    """Others keep the shared connection busy meanwhile."""
    over = threading.Event()

    def work(number: int) -> None:
        with Line(node) as line:
            while not over.is_set():
                line.say(*[f"INCR crowd:{number}"] * 20)
                line.hear(20)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(CROWD)]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join(20)


@pytest.mark.parametrize("busy", [False, True], ids=["quiet", "crowd"])
def test_who_asks_to_wait_waits_before_the_next_one_writes(shared_bed: Testbed, node: NodeStatus, busy: bool) -> None:
    """A reader that came too late would be told that there is no such group."""
    overtaken = 0
    with contextlib.ExitStack() as stack:
        writer, old = stack.enter_context(Line(node)), stack.enter_context(Line(node))
        if busy:
            stack.enter_context(crowd(leader_of(shared_bed.status())))
        for number in range(TIMES):
            with contextlib.ExitStack() as once:
                reader = once.enter_context(Line(node)) if number % 2 else old
                assert reader.ask("PING") == ["+PONG"]
                writer.ask("DEL s")
                assert writer.ask("XGROUP CREATE s g $ MKSTREAM") == ["+OK"]
                reader.say("XREADGROUP GROUP g me BLOCK 0 STREAMS s >")
                writer.say("DEL s")
                assert writer.hear() == [":1"]
                (said,) = reader.hear()
                assert said.startswith("-")
                overtaken += "no longer exists" not in said
    assert overtaken <= WRONG_MAX


def test_those_who_wait_are_served_in_the_order_in_which_they_came(shared_bed: Testbed, node: NodeStatus) -> None:
    """Whether they have a connection of their own already or not."""
    wrong = 0
    with Line(node) as old, Line(node) as giver:
        for _ in range(TIMES):
            with Line(node) as fresh:
                assert fresh.ask("PING") == ["+PONG"]
                fresh.say("BLPOP q 0")
                old.say("BLPOP q 0")
                giver.say("RPUSH q a b")
                assert giver.hear() == [":2"]
                said = fresh.hear(5)
                assert old.hear(5)[:3] == ["*2", "$1", "q"] == said[:3]
                wrong += said[4] != "a"
    assert wrong <= WRONG_MAX


def test_what_was_written_before_is_there(shared_bed: Testbed, node: NodeStatus) -> None:
    """A write by everybody's connection, and behind it a look by one of its own."""
    wrong = 0
    with Line(node) as writer, Line(node) as looks:
        looks.ask("CLIENT ID")
        for number in range(TIMES):
            writer.say(f"SET k {number}")
            looks.say("GET k")
            assert writer.hear() == ["+OK"]
            wrong += looks.hear(2)[1] != str(number)
    assert wrong <= WRONG_MAX
