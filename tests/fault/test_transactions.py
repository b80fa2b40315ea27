"""Transactions: gathered at the client's node, they travel as one block when EXEC comes; what the server refuses it
refuses as early as without a sidecar, and says the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from musidecar.testbed import NodeStatus, Testbed, wait_until
from tests.fault.cluster import assert_same_data, leader_of
from tests.fault.test_own import Line, blocked

OOM = "OOM command not allowed when used memory > 'maxmemory'."
ABORTED = "-EXECABORT Transaction discarded because of"


@pytest.fixture(autouse=True)
def clean(shared_bed: Testbed) -> Iterator[None]:
    yield
    admin = shared_bed.client(leader_of(shared_bed.status()))
    admin.config_set("maxmemory", 0)
    admin.flushall()
    assert_same_data(shared_bed)


@contextlib.contextmanager
def no_memory(bed: Testbed) -> Iterator[None]:
    """The server refuses what needs memory."""
    admin = bed.client(leader_of(bed.status()))
    admin.config_set("maxmemory", 1)
    yield
    admin.config_set("maxmemory", 0)


def test_want_of_memory_is_told_when_a_command_is_queued(shared_bed: Testbed, node: NodeStatus) -> None:
    with Line(node) as line:
        assert line.ask("MULTI") == ["+OK"] and line.ask("SET a 1") == ["+QUEUED"]
        with no_memory(shared_bed):
            assert line.ask("LPUSH l v") == [f"-{OOM}"]
            assert line.ask("DEL a") == ["+QUEUED"], "it is lost already"
        assert line.ask("SET b 1") == ["+QUEUED"]
        assert line.ask("EXEC") == [f"{ABORTED} previous errors."]
        with no_memory(shared_bed):
            assert line.ask("MULTI") == ["+OK"] and line.ask("SET a 1") == [f"-{OOM}"]
            assert line.ask("DISCARD") == ["+OK"]
        assert line.ask("EXISTS a b l") == [":0"]


def test_want_of_memory_before_exec_is_told_by_exec(shared_bed: Testbed, node: NodeStatus) -> None:
    with Line(node) as line:
        for text in ("MULTI", "SET a 1", "GET a"):
            line.ask(text)
        with no_memory(shared_bed):
            assert line.ask("EXEC") == [f"{ABORTED}: {OOM}"]
            line.say("MULTI", "SET a 1", "GET a", "EXEC", "PING")  # told at once, it has seen the error
            assert line.hear(5) == ["+OK", f"-{OOM}", f"-{OOM}", f"{ABORTED} previous errors.", "+PONG"]
            assert line.ask("MULTI") == ["+OK"] and line.ask("DEL a") == [f"-{OOM}"], "to queue takes some, too"
            assert line.ask("DISCARD") == ["+OK"]
        assert line.ask("EXISTS a") == [":0"]


def test_what_is_not_allowed_inside_a_transaction(node: NodeStatus) -> None:
    with Line(node) as line:
        for command in ("SAVE", "SHUTDOWN"):
            assert line.ask("MULTI") == ["+OK"]
            assert line.ask(command) == ["-ERR Command not allowed inside a transaction"]
            assert line.ask("EXEC") == [f"{ABORTED} previous errors."]


def test_a_user_with_few_rights_queues_what_it_may(shared_bed: Testbed, node: NodeStatus) -> None:
    """The server is asked by one that the client did not name: that it may not use those is not its concern."""
    admin = shared_bed.client(leader_of(shared_bed.status()))
    admin.acl_setuser("default", enabled=True, commands=["-setrange"])
    try:
        with Line(node) as line:
            assert [line.ask(text) for text in ("MULTI", "SET a 1", "GET a", "EXEC")] == [
                ["+OK"], ["+QUEUED"], ["+QUEUED"], ["*2"],
            ]  # fmt: skip
            assert line.hear(3) == ["+OK", "$1", "1"]
    finally:
        admin.acl_setuser("default", enabled=True, commands=["+@all"])
    admin.acl_setuser("default", enabled=True, nopass=True, keys=["*"])


def test_half_a_pipeline_is_answered_when_it_stops(node: NodeStatus) -> None:
    with Line(node) as line:
        line.say("SET a 1", "MULTI", "INCR a")
        assert line.hear(3) == ["+OK", "+OK", "+QUEUED"]
        line.say("INCR a", "INCR a", "EXEC")
        assert line.hear(6) == ["+QUEUED", "+QUEUED", "*3", ":2", ":3", ":4"]


def test_the_question_is_not_seen(shared_bed: Testbed, node: NodeStatus) -> None:
    with Line(node) as line, Line(leader_of(shared_bed.status())) as monitor:
        assert monitor.ask("MONITOR") == ["+OK"]
        for text in ("MULTI", "SET a 1"):
            line.ask(text)
        assert line.ask("EXEC", 2) == ["*1", "+OK"] and line.ask("ECHO end", 2)[1] == "end"
        seen = ""
        while "end" not in seen:
            (seen,) = monitor.hear()
            assert "setrange" not in seen.lower()


def test_a_paused_transaction_waits_where_it_would(shared_bed: Testbed, node: NodeStatus) -> None:
    admin = shared_bed.client(leader_of(shared_bed.status()))
    with Line(node) as line:
        assert line.ask("MULTI") == ["+OK"]
        admin.client_pause(20_000, all=False)
        try:
            assert line.ask("GET a") == ["+QUEUED"]
            line.say("SET a 1")
            wait_until("it waits", lambda: blocked(shared_bed) == 1, 20)
            with Line(node) as other:
                assert other.ask("GET a") == ["$-1"], "nobody else waits for it"
        finally:
            admin.client_unpause()
        assert line.hear() == ["+QUEUED"] and line.ask("EXEC", 3) == ["*2", "$-1", "+OK"]
