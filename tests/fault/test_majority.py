"""A majority is gone for a while: nothing is acknowledged, `status` says what is missing, and it goes on by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from musidecar.bench.failover import Run as Outcome
from musidecar.bench.failover import await_traffic, check_data
from musidecar.testbed import ClusterStatus, musidecar, stop_processes, wait_until
from musidecar.workload import Load, spread
from tests.fault.cluster import last_words, leader_of, send
from tests.fault.nursery import Cradle, Nursery

WAIT_MS = 3500


@pytest.fixture
def cradle() -> Iterator[Cradle]:
    settings = {"timing": {"wait_timeout_ms": WAIT_MS}}
    with Nursery() as nursery:
        with Cradle(nursery, 3, settings) as bed:
            yield bed
        assert bed.leftovers() == []


def in_order(status: ClusterStatus) -> bool:
    """All nodes are members, serve, and may lead."""
    ready = [n.role != "joining" and n.more.get("serving") and n.more["eligible"] for n in status.nodes]
    return status.leader is not None and all(ready)


@pytest.mark.parametrize("left", ["leader", "follower"])
def test_without_a_majority_nothing_is_acknowledged_until_it_is_back(cradle: Cradle, left: str) -> None:
    bed = cradle
    before = bed.status()
    leader = leader_of(before)
    alone = leader if left == "leader" else before.followers[0]
    others = [node for node in before.nodes if node is not alone]
    others.sort(key=lambda node: node is leader)  # nobody is left who could take over from a leader that stands still
    with Load(spread([n.client_address for n in before.nodes], 2, timeout_s=2)) as load:
        load.wait_for(200)
        stop_processes([node.pid for node in others])
        # What was acknowledged has been; whatever comes now is not, as long as requests wait, and beyond.
        wait_until("acknowledgements have ended", _Still(load), 10)
        counts = load.counts()
        late = [send(alone, *words) for words in ((b"SET", b"late", b"1"), (b"GET", b"late"))]
        for connection in late:
            connection.settimeout(4 * WAIT_MS / 1000)
            assert last_words(connection) == b""  # closed, without a word that would mean "not done"
        assert load.counts() == counts
        shown = musidecar("status", "--dir", str(bed.dir))
        text = " ".join(shown.stdout.split())
        assert shown.returncode == 1
        assert "only 1 of 3 nodes answers: nothing is acknowledged, writes and reads wait for 2" in text
        for node in others:
            assert f"node {node.id} runs, but does not answer" in text and "kill -CONT" in text
        for node in others:
            bed.cont(node)
        bed.wait_status("all are in order", in_order, 30)
        await_traffic(load, range(3), 50)
        history = load.finish()
    status = bed.wait_status("all are in order", in_order)
    outcome = Outcome({}, 0.0, history.acknowledged)
    check_data(bed, status, history, outcome)
    assert outcome.sound, outcome.troubles


class _Still:
    """True once no write has been acknowledged for half a second."""

    def __init__(self, load: Load) -> None:
        self.load, self.counts, self.since = load, load.counts(), time.monotonic()

    def __call__(self) -> bool:
        now, counts = time.monotonic(), self.load.counts()
        if counts != self.counts:
            self.counts, self.since = counts, now
        return now - self.since > 0.5
