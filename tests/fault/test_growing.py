"""A cluster grows from three nodes to five and shrinks again while clients go on; a node moves to another place."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from musidecar.config import load
from musidecar.switchover import switchover
from musidecar.testbed import ClusterStatus, free_ports, musidecar, wait_until
from musidecar.workload import Load, spread, verify
from tests.fault.cluster import leader_of
from tests.fault.nursery import Cradle
from tests.fault.test_rejoin import REJOIN_S, assert_equal

END_S = 60.0


def rewrite(bed: Cradle, text: str) -> None:
    path = bed.dir / "cluster.toml"
    path.write_text(text)
    load(path)


def node_table(node: int, port: int) -> str:
    backend = f'backend = {{ socket = "redis-{node}.sock", spawn = true }}'
    return f'\n[[nodes]]\nid = {node}\nclient = "127.0.0.1:{port}"\nlog = "{node}.log"\n{backend}\njoins = true\n'


def members(status: ClusterStatus) -> set[int]:
    """As the leader has them."""
    return set(map(int, leader_of(status).more["members"])) if status.leader is not None else set()


def complete(wanted: set[int]) -> object:
    """All of these are members, serve and follow the log, and nobody else is a member."""

    def test(status: ClusterStatus) -> bool:
        nodes = [node for node in status.nodes if int(node.id) in wanted]
        ready = [node.is_well for node in nodes]
        if status.leader is None or members(status) != wanted or not all(ready):
            return False
        return set(leader_of(status).more["confirmed"]) >= wanted

    return test


def stop(bed: Cradle, node: int) -> None:
    os.kill(bed.pids[node], signal.SIGTERM)
    wait_until("it has ended", lambda: not bed.alive(node), END_S)


def lead(bed: Cradle, away_from: int) -> None:
    """Makes sure that another node leads."""
    if bed.status().leader == str(away_from):
        switchover(bed.config, away_from % 3 + 1)
        bed.wait_status("another leads", lambda s: s.leader not in (None, str(away_from)))


def test_3_to_5_to_3_under_load(cradle: Cradle) -> None:
    bed, wanted = cradle, {1, 2, 3}
    status = bed.status()
    with Load(spread([node.client_address for node in status.nodes], 1, timeout_s=10.0)) as load_:
        load_.wait_for(50)
        port = free_ports(2)
        rewrite(bed, (bed.dir / "cluster.toml").read_text() + node_table(4, port) + node_table(5, port + 1))
        for node in (1, 2, 3):  # each learns of the new places
            lead(bed, node)
            stop(bed, node)
            bed.revive(node)
            bed.wait_status("it is a member again", complete(wanted), REJOIN_S)  # type: ignore[arg-type]
        for node in (4, 5):
            bed.revive(node)
            wanted = wanted | {node}
            bed.wait_status("it has become a member", complete(wanted), REJOIN_S)  # type: ignore[arg-type]
        before = bed.status()
        leader = int(leader_of(before).id)
        dead = [node for node in (1, 2, 3, 4) if node != leader][:2]
        for node in dead:  # two of five: a majority of the three would be gone with some two of them
            os.kill(bed.pids[node], signal.SIGKILL)
        counts = load_.counts()
        wait_until("writes go on", lambda: sum(load_.counts()) > sum(counts) + 50, END_S)
        for node in dead:
            bed.revive(node)
        bed.wait_status("all five are members", complete(wanted), REJOIN_S)  # type: ignore[arg-type]
        for node in (5, 4):
            lead(bed, node)
            done = musidecar("member", "remove", str(node), "--dir", str(bed.dir), timeout_s=60)
            assert done.returncode == 0, done.stderr + bed.logs(40)
            wanted = wanted - {node}
            bed.wait_status("it is a member no more", lambda s, node=node: node not in members(s))  # type: ignore[misc]
            stop(bed, node)
            del bed.pids[node]
        bed.wait_status("three are left", complete({1, 2, 3}), REJOIN_S)  # type: ignore[arg-type]
        refused = musidecar("member", "remove", "3" if bed.status().leader != "3" else "2", "--dir", str(bed.dir))
        assert refused.returncode == 1 and "at least 3 members" in refused.stderr
        counts = load_.counts()
        wait_until("writes go on", lambda: sum(load_.counts()) > sum(counts) + 50, END_S)
        history = load_.finish()
    assert_equal(bed)
    after = bed.status()
    assert musidecar("status", "--dir", str(bed.dir)).returncode == 0
    for each in after.nodes[:3]:
        verdict = verify(history, bed.client(each))
        assert not verdict.lost and not verdict.doubled, verdict.troubles


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(10))
def test_3_to_5_to_3_again_and_again(cradle: Cradle, turn: int) -> None:
    test_3_to_5_to_3_under_load(cradle)


def test_a_node_is_replaced_by_one_at_another_address(cradle: Cradle) -> None:
    bed = cradle
    lead(bed, 3)
    with bed.client(leader_of(bed.status())) as client:
        assert client.set("k", "v")
    os.kill(bed.pids[3], signal.SIGKILL)
    wait_until("it has ended", lambda: not bed.alive(3), END_S)
    text, port = (bed.dir / "cluster.toml").read_text(), free_ports(1)
    old = bed.config.node(3).client
    text = text.replace(old, f"127.0.0.1:{port}").replace("redis-3.sock", "elsewhere.sock")
    rewrite(bed, re.sub(r'log = "3.log"', 'log = "3-new.log"', text))
    bed.revive(3)
    after = bed.wait_status("it has become a member", complete({1, 2, 3}), REJOIN_S)  # type: ignore[arg-type]
    assert after["3"].client_address == ("127.0.0.1", port)
    with bed.client(after["3"]) as client:
        assert client.get("k") == b"v" and client.set("k", "w")
    assert Path(bed.dir / "elsewhere.sock").is_socket()
