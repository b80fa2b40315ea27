"""Which commands were called, and how often: as clients called them, whatever the sidecar asks in between."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from musidecar.testbed import NodeStatus, Testbed, wait_until
from tests.fault.cluster import leader_of
from tests.fault.test_own import Line

WAIT_S = 20.0


def calls(client: redis.Redis) -> dict[str, int]:
    """By LATENCY HISTOGRAM."""
    rows: list[Any] = client.execute_command("LATENCY", "HISTOGRAM")
    return {name.decode(): row[1] for name, row in zip(rows[::2], rows[1::2], strict=True)}


def counted(client: redis.Redis) -> dict[str, int]:
    """By INFO commandstats."""
    rows = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): row["calls"] for name, row in rows.items()}


@pytest.fixture
def client(shared_bed: Testbed, node: NodeStatus) -> redis.Redis:
    return shared_bed.client(node)


def test_calls_are_those_of_clients(shared_bed: Testbed, node: NodeStatus, client: redis.Redis) -> None:
    server = shared_bed.backend(leader_of(shared_bed.status()))
    client.config_resetstat()
    asked = server.info("commandstats")["cmdstat_ping"]["calls"] if "cmdstat_ping" in counted(server) else 0
    wait_until("the sidecar has asked", lambda: counted(server).get("ping", 0) > asked + 2, WAIT_S)
    client.config_resetstat()
    assert calls(client) == {"config|resetstat": 1}
    with Line(node) as line:
        assert line.ask("ROLE", 3)[0] == "*3" and line.hear(2)
        line.say("SELECT 3", "SET k v", "SELECT 0", "CLIENT ID", "SELECT 3", "CLIENT ID")
        assert line.hear(6)[1] == "+OK"
        assert line.ask("SELECT 0") == ["+OK"]
    for counts in (calls(client), counted(client)):
        assert (counts["role"], counts["set"], counts["client|id"]) == (1, 1, 2), counts
        assert counts["select"] == 2, "those that went to the server"
        assert not {"hello", "ping", "client|setname", "slowlog|get"} & set(counts), counts
    rows = client.execute_command("LATENCY", "HISTOGRAM", "role", "set")
    for row in rows[1::2]:
        assert row[1] == 1 == row[3][-1], "every call is in the last bucket"


def test_counting_anew_unseen_hides_nothing_for_long(client: redis.Redis) -> None:
    with client.pipeline(transaction=True) as pipe:
        pipe.config_resetstat().get("k")
        pipe.execute()
    assert "role" not in calls(client)
    client.execute_command("ROLE")
    assert calls(client)["role"] == 1 and counted(client)["get"] == 1
