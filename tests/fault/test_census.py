"""CLIENT LIST, INFO, KILL and ID, of the clients of all nodes as of one server's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from musidecar.testbed import NodeStatus, Testbed, wait_until
from tests.fault.cluster import leader_of
from tests.fault.test_own import WAIT_S, Line, blocked


def number(line: Line, text: str = "CLIENT ID") -> int:
    """What is answered, a number."""
    (said,) = line.ask(text)
    assert said.startswith(":"), said
    return int(said[1:])


def listed(line: Line, text: str = "CLIENT LIST") -> dict[int, dict[str, str]]:
    """The rows of a list of clients, by their numbers."""
    line.say(text)
    size = int(line.lines.readline()[1:])
    text = line.lines.read(size + 2).decode()
    rows = [dict(word.partition("=")[::2] for word in row.split(" ")) for row in text.split("\n")]
    found = {int(row["id"]): row for row in rows if "id" in row}
    assert len(found) == sum("id" in row for row in rows), "no number twice"
    return found


def is_closed(line: Line) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return line.lines.read() == b""
    return True


@pytest.fixture
def everywhere(shared_bed: Testbed) -> Iterator[list[Line]]:
    """A client at each node."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Line(one)) for one in shared_bed.status().nodes]


def test_each_client_has_one_number_wherever_it_is_shown(node: NodeStatus, everywhere: list[Line]) -> None:
    with Line(node) as asks:
        numbers = [number(line) for line in everywhere]
        rows = listed(asks)
        assert rows.keys() == {*numbers, number(asks)} and len(set(numbers)) == 3
        for line, own in zip(everywhere, numbers, strict=True):
            assert rows[own]["addr"] == "{}:{}".format(*line.connection.getsockname())
            assert rows[own]["laddr"] == "{}:{}".format(*line.connection.getpeername())
            assert rows[own]["cmd"] == "client|id"
            assert f":{own}" in line.ask("HELLO 2", 26), "HELLO says it, too"
            assert line.ask("WATCH w") == ["+OK"] and number(line) == own, "on a connection of its own"
            assert line.ask("MULTI") == ["+OK"] and line.ask("CLIENT ID") == ["+QUEUED"]
            assert line.ask("EXEC", 2) == ["*1", f":{own}"], "in a transaction"
            assert listed(line, "CLIENT INFO").keys() == {own}
            assert line.ask("SUBSCRIBE c", 6)[5] == ":1"
        assert listed(asks, f"CLIENT LIST ID {numbers[0]} {numbers[2]} 123456789").keys() == {numbers[0], numbers[2]}
        rows = listed(asks, "CLIENT LIST TYPE pubsub")
        assert rows.keys() == set(numbers) and {row["flags"] for row in rows.values()} == {"P"}
        assert listed(asks, "CLIENT LIST TYPE normal").keys() == {number(asks)}
        assert asks.ask("CLIENT LIST TYPE none")[0].startswith("-ERR Unknown client type")


def test_clients_are_killed_by_what_they_are(shared_bed: Testbed, node: NodeStatus) -> None:
    for how in ("ID", "ADDR", "ADDR of old", "TYPE", "LADDR"):
        for victims_at in shared_bed.status().nodes:
            with Line(node) as asks, Line(victims_at) as victim, Line(victims_at) as other:
                own, place = number(victim), "{}:{}".format(*victim.connection.getsockname())
                if how == "TYPE":
                    victim.ask("SUBSCRIBE c", 6)
                texts = {"ID": f"ID {own}", "ADDR": f"ADDR {place} ID {own}", "ADDR of old": place,
                         "TYPE": "TYPE pubsub", "LADDR": f"LADDR {victims_at.client} SKIPME yes"}  # fmt: skip
                text = texts[how]
                killed = 2 if how == "LADDR" else 1
                assert asks.ask(f"CLIENT KILL {text}") == ["+OK" if how == "ADDR of old" else f":{killed}"]
                assert is_closed(victim) and own not in listed(asks)
                assert is_closed(other) if how == "LADDR" else other.ask("PING") == ["+PONG"]
                again = asks.ask(f"CLIENT KILL {text}")[0]
                assert again == ("-ERR No such client" if how == "ADDR of old" else ":0")


def test_who_is_killed_while_it_waits_is_given_nothing(shared_bed: Testbed, node: NodeStatus) -> None:
    with Line(node) as asks, contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(Line(one)) for one in shared_bed.status().nodes]
        numbers = [number(line) for line in waiting]
        for line in waiting:
            line.say("BLPOP q 0")
        wait_until("all wait", lambda: blocked(shared_bed) == 3, WAIT_S)
        assert asks.ask(f"CLIENT UNBLOCK {numbers[2]}") == [":1"] and waiting[2].hear() == ["*-1"]
        assert asks.ask("CLIENT UNBLOCK 123456789") == [":0"]
        for own in numbers[:2]:
            assert asks.ask(f"CLIENT KILL ID {own}") == [":1"]
        assert asks.ask("RPUSH q kept") == [":1"] and asks.ask("LLEN q") == [":1"]
        assert is_closed(waiting[0]) and is_closed(waiting[1])
        assert asks.ask("DEL q") == [":1"]


def test_all_but_oneself_and_oneself_too(shared_bed: Testbed, node: NodeStatus, everywhere: list[Line]) -> None:
    with Line(node) as asks, Line(node) as watches:
        assert watches.ask("WATCH w") == ["+OK"]
        for line in everywhere:
            assert line.ask("PING") == ["+PONG"]

        def clients() -> int:
            asks.say("INFO clients")
            text = asks.lines.read(int(asks.lines.readline()[1:]) + 2).decode()
            return int(text.partition("connected_clients:")[2].split()[0])

        wait_until("INFO knows all", lambda: clients() == len(listed(asks)) >= 5, WAIT_S)
        others = clients() - 1
        assert asks.ask("CLIENT KILL SKIPME yes") == [f":{others}"]
        assert all(is_closed(line) for line in (*everywhere, watches))
        assert len(listed(asks)) == 1
        wait_until("INFO knows one", lambda: clients() == 1, WAIT_S)
        assert asks.ask("CLIENT KILL SKIPME no") == [":1"] and is_closed(asks)
    with Line(leader_of(shared_bed.status())) as after:
        assert after.ask("PING") == ["+PONG"]


def test_invalidations_go_to_the_client_with_that_number(node: NodeStatus) -> None:
    with Line(node) as reads, Line(node) as hears, Line(node) as writes:
        own = number(hears)
        hears.ask("SUBSCRIBE __redis__:invalidate", 6)
        assert reads.ask(f"CLIENT TRACKING ON REDIRECT {own}") == ["+OK"]
        assert reads.ask("CLIENT GETREDIR") == [f":{own}"] and listed(writes)[number(reads)]["redir"] == str(own)
        assert writes.ask("SET k 1") == ["+OK"] and reads.ask("GET k", 2) == ["$1", "1"]
        assert writes.ask("SET k 2") == ["+OK"]
        assert hears.hear(8)[-1] == "k"
        assert reads.ask("CLIENT TRACKING ON REDIRECT 123456789")[0].startswith("-ERR The client ID you want")


def test_what_tells_of_the_sidecar_does_not_in_a_transaction_either(shared_bed: Testbed, node: NodeStatus) -> None:
    client = shared_bed.client(node)
    asks = ("ROLE", "INFO replication", "CONFIG GET masterauth", "SLOWLOG LEN", "SLOWLOG GET 3", "INFO commandstats")
    client.set("k", "v")
    outside = [client.execute_command(*text.split()) for text in asks]
    with client.pipeline(transaction=True) as block:
        block.get("k")
        for text in asks:
            block.execute_command(*text.split())
        block.incr("n")
        inside = block.execute()
    assert inside[0] == b"v" and inside[-1] == 1 and client.delete("n") == 1
    role, replication, masterauth, length, entries, calls = inside[1:-1]
    assert role[2] == [] == outside[0][2] and replication["connected_slaves"] == 0 and "slave0" not in replication
    assert (masterauth, length, entries) == (outside[2], outside[3], outside[4])
    assert calls.keys() <= {*outside[5], "cmdstat_multi", "cmdstat_exec", "cmdstat_get", "cmdstat_info"}, calls
    with Line(node) as line:  # one that fails, and one whose answers come one by one, are in nobody's way
        line.say("MULTI", "INFO replication", "BADCOMMAND", "EXEC")
        assert line.hear(4)[3].startswith("-EXECABORT")
        assert line.ask("MULTI") == ["+OK"] and line.ask("ROLE") == ["+QUEUED"] and line.ask("PING") == ["+QUEUED"]
        heard = line.ask("EXEC", 7)
        assert heard[1:4] == ["*3", "$6", "master"] and heard[5:] == ["*0", "+PONG"], heard
