"""What `status` makes of the nodes' answers. The answers are data here; tests/fault asks real nodes."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from musidecar.config import Cluster, parse
from musidecar.status import LAG_RECORDS, Problem, notes, problems, table


def config_of(**backend: Any) -> Cluster:
    nodes = [
        {"id": i, "client": f"127.0.0.1:{6999 + i}", "backend": {"socket": f"{i}.sock", **backend}} for i in (1, 2, 3)
    ]
    cluster = {"name": "c", "secret_file": "s", "directory": "."}
    return parse({"cluster": cluster, "nodes": nodes}, Path("/d/cluster.toml"))


@pytest.fixture
def config() -> Cluster:
    return config_of(spawn=True)


def snapshot(**changes: dict[str, Any]) -> dict[str, Any]:
    """A healthy cluster led by node 1; `n2={...}` changes node 2."""
    nodes = []
    for i in (1, 2, 3):
        node = {"id": i, "role": "leader" if i == 1 else "follower", "client": f"127.0.0.1:{6999 + i}", "serving": True}
        node |= {"backend": f"/d/{i}.sock", "pid": 100 + i, "backend_pid": 200 + i, "commit": 9, "applied": 9}
        node |= {"log_hash": "ab", "hash_index": 9, "incarnation": "01" * 16, "term": 4}
        nodes.append(node | changes.get(f"n{i}", {}))
    leader = next((node["id"] for node in nodes if node["role"] == "leader"), None)
    return {"cluster": "c", "leader": leader, "term": 4, "fabric": "shm", "nodes": nodes}


DOWN = {"role": "down", "serving": False, "reason": "is not running"} | dict.fromkeys(
    ("pid", "backend_pid", "commit", "applied", "log_hash", "hash_index", "incarnation", "term")
)


def test_healthy_has_no_problem(config: Cluster) -> None:
    assert problems(snapshot(), config) == []


def test_a_node_that_is_missing_at_the_start_comes_with_the_line_that_starts_it(config: Cluster) -> None:
    found = problems(snapshot(n1=DOWN, n2=DOWN, n3=DOWN), config)
    assert found[2].text == "node 2 is not running"
    assert found[2].remedy == "musidecar run --config /d/cluster.toml --node 2"


def test_a_node_lost_from_a_running_cluster_comes_with_the_line_that_brings_it_back(config: Cluster) -> None:
    (found,) = problems(snapshot(n2=DOWN), config)
    assert found == Problem("node 2 is not running", "musidecar run --config /d/cluster.toml --node 2")


def test_the_node_of_a_program_of_the_users_own_is_started_by_that() -> None:
    (found,) = problems(snapshot(n2=DOWN), config_of(kind="own"))
    assert found == Problem("node 2 is not running", "start the program again that makes its Replica (node=2)")


def test_trap_22_it_is_told_when_a_majority_has_lost_its_memory(config: Cluster) -> None:
    members = {"1": "aa" * 8, "2": "bb" * 8, "3": "cc" * 8}
    same = {"role": "follower", "serving": False, "members": members}
    nodes = {f"n{i}": same | {"incarnation": members[str(i)] + "00" * 8} for i in (1, 2, 3)}
    assert "there is no leader" in problems(snapshot(**nodes), config)[0].text
    nodes["n1"]["incarnation"] = nodes["n3"]["incarnation"] = "dd" * 16
    first = problems(snapshot(**nodes), config)[0]
    assert first.text.startswith("nodes 1, 3 have lost their memory") and "docs/operating.md" in first.remedy


def test_a_stopped_node_is_not_started_twice(config: Cluster) -> None:
    (found,) = problems(snapshot(n2=DOWN | {"reason": "runs, but does not answer: timed out"}), config)
    assert "musidecar run" not in found.remedy


def test_a_paused_cluster_says_so_and_without_a_leader_what_to_type(config: Cluster) -> None:
    paused = snapshot() | {"paused": True}
    assert problems(paused, config) == [] and "until `musidecar resume`" in notes(paused)[0]
    leaderless = snapshot(n1=DOWN) | {"paused": True}
    first = problems(leaderless, config)[0]
    assert "fail-over is paused" in first.text and first.remedy == "musidecar resume"
    assert notes(snapshot()) == []


def test_a_hand_over_under_way_is_shown(config: Cluster) -> None:
    assert notes(snapshot(n1={"heir": 3})) == ["node 1 is handing leadership over to node 3"]


def test_a_majority_is_one_of_the_members_that_the_log_knows(config: Cluster) -> None:
    members = {"1": "aa" * 8, "2": "bb" * 8, "3": "cc" * 8, "4": "dd" * 8, "5": "ee" * 8}
    found = problems(snapshot(n1={"members": members}, n3=DOWN), config)
    assert "only 2 of 5 nodes answer" in found[0].text and "wait for 3" in found[0].text
    gone = {"1": "aa" * 8, "2": "bb" * 8}  # node 3 was removed, and stopped
    assert problems(snapshot(n1={"members": gone}, n3=DOWN), config) == []


def test_no_majority_is_said_first(config: Cluster) -> None:
    found = problems(snapshot(n2=DOWN, n1=DOWN), config)
    assert found[0].text == "only 1 of 3 nodes answers: nothing is acknowledged, writes and reads wait for 2"
    assert len(found) == 3


def test_who_holds_up_the_log_is_told(config: Cluster) -> None:
    (found,) = problems(snapshot(n1={"evicted": [3]}), config)
    assert "node 3 held up the log and was dropped" in found.text


def test_no_leader(config: Cluster) -> None:
    found = problems(snapshot(n1={"role": "follower"}), config)
    assert "no leader" in found[0].text


def test_lag_and_different_logs(config: Cluster) -> None:
    found = problems(snapshot(n1={"commit": LAG_RECORDS + 10, "applied": LAG_RECORDS + 10}), config)
    assert [p.text for p in found] == [f"node {i} is {LAG_RECORDS + 1} records behind" for i in (2, 3)]
    (found_hash,) = problems(snapshot(n3={"log_hash": "cd"}), config)
    assert found_hash.text == "the logs of nodes 1 2 and 3 differ at record 9"
    assert problems(snapshot(n3={"log_hash": "cd", "hash_index": 8}), config) == []


def test_table_shows_local_reads_where_there_may_be_some() -> None:
    def shown(**nodes: Any) -> str:
        console = Console(width=160)
        with console.capture() as captured:
            console.print(table(snapshot(**nodes)))
        return captured.get()

    assert "local reads" not in shown()
    text = shown(n2={"reads_locally": True, "local_reads": 4711})
    assert "local reads" in text and text.count("4711") == 1


def test_table_shows_every_node() -> None:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table(snapshot(n2=DOWN)))
    text = captured.get()
    for part in ("leader", "follower", "down", "127.0.0.1:7002", "203", "term 4"):
        assert part in text
