"""Real clusters under fire for about a minute (`make soak` goes on for longer), and the fire itself: what the nemesis
says it does it does, and what goes wrong is noticed."""

from __future__ import annotations

import contextlib
import io
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from musidecar.testbed import NodeStatus, is_alive, open_backend, state_of, wait_until
from tests.fault.clients import Crowd, Outcome, Plan
from tests.fault.history import DONE, Operation, load
from tests.fault.nemesis import LASTING, Fault, Nemesis, Strike, count_links, cut_backend, cut_links, plan
from tests.fault.nursery import Cradle, Nursery
from tests.fault.rounds import SETTINGS, Arena, Round
from tests.fault.soak import Bounds, nodes_of, soak

MINUTES = 0.75


@pytest.fixture
def cradle(nursery: Nursery) -> Iterator[Cradle]:
    bed = Cradle(nursery, 3, SETTINGS)
    with bed:
        yield bed
    assert bed.leftovers() == []
    assert not bed.root.exists()


def test_a_minute_under_fire(tmp_path: Path) -> None:
    heard = io.StringIO()
    tally = soak(Bounds(minutes=MINUTES), 1000, tmp_path, Console(file=heard, width=200))
    stories = "\n".join(path.read_text() for path in tmp_path.glob("*.txt"))
    assert not tally.unsound, f"{heard.getvalue()}\n{stories}"
    assert tally.failovers > 0 and tally.acknowledged > 1000 and tally.keys > 100


def test_a_number_decides_what_is_done_and_never_to_more_than_a_minority() -> None:
    kinds = set()
    twice = 0
    for seed in range(2000):
        for nodes in (3, 5):
            strikes = plan(seed, nodes)
            assert strikes == plan(seed, nodes)
            for strike in strikes:
                assert len({fault.victim for fault in strike.faults}) <= (nodes - 1) // 2
                assert strike.mended or strike is strikes[-1], "or more would be down at a time"
                kinds |= {fault.kind for fault in strike.faults}
                twice += len(strike.faults) > 1
    assert kinds >= set(LASTING) | {"stop", "stop-backend", "stop-node", "cut-backend", "cut-feed"}
    assert twice > 500
    assert plan(1, 3) != plan(2, 3)


# ---- what it says it does, it does -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["kill", "kill-backend", "kill-node", "stop-kill"])
def test_what_lasts(cradle: Cradle, kind: str) -> None:
    sidecar, backend = cradle.pids[1], cradle.backend_pids[1]
    nemesis = Nemesis(cradle, 1)
    _, recovering = nemesis.strike(Strike(0, (Fault(kind, 0, 0.01),)), [1, 2, 3])
    wait_until("the backend is gone", lambda: not is_alive(backend), 10)
    if kind == "kill-backend":
        assert is_alive(sidecar)
    assert nemesis.damaged == {1} and not recovering
    assert nemesis.killed == (set() if kind == "kill-backend" else {1})
    if kind != "kill-backend":
        wait_until("its end is known", lambda: cradle.died() == {1: "killed by SIGKILL"}, 10)


@pytest.mark.parametrize("kind", ["stop", "stop-backend", "stop-node"])
def test_what_passes(cradle: Cradle, kind: str) -> None:
    pids = {"stop": [cradle.pids[2]], "stop-backend": [cradle.backend_pids[2]],
            "stop-node": [cradle.pids[2], cradle.backend_pids[2]]}[kind]  # fmt: skip
    nemesis = Nemesis(cradle, 1)
    end = nemesis._begin(Fault(kind, 1, 0.01), 2)
    assert end is not None
    wait_until("it stands still", lambda: all(state_of(pid) == "T" for pid in pids), 10)
    end()
    assert nemesis.await_recovered({2}, 20) == []
    assert not nemesis.damaged


def test_cut_links_close_and_nothing_else(cradle: Cradle) -> None:
    assert cut_links(cradle, 1, [2]) == 2  # control, data
    for here, there in ((1, 2), (2, 1)):
        log = cradle.dir / f"{here}.log"
        wait_until("both ends know", lambda log=log, there=there: f"node {there} lost" in log.read_text(), 10)  # type: ignore[misc]
    assert " lost" not in (cradle.dir / "3.log").read_text()
    assert all(cradle.alive(node) for node in (1, 2, 3))


def _says(cradle: Cradle, node: int, text: str) -> int:
    return (cradle.dir / f"{node}.log").read_text().count(text)


@pytest.mark.parametrize("here, there", [(1, 2), (3, 1), (2, 3)])
def test_a_cut_link_is_mended(cradle: Cradle, here: int, there: int) -> None:
    """Between the leader and a follower, either end's connections cut, and between two followers; more than once."""
    for times in (1, 2, 3):
        assert cut_links(cradle, here, [there]) == 2
        for a, b in ((here, there), (there, here)):
            again = f"mesh: connected to node {b} again"
            wait_until("they have met again", lambda a=a, t=again, n=times: _says(cradle, a, t) == n, 5)  # type: ignore[misc]
        cradle.wait_status("all serve", lambda s: all(node.more["serving"] for node in s.nodes))
        # The data links, too: until both are there, another cut would find fewer.
        wait_until("both connections are there", lambda: count_links(cradle, here, [there]) == 2, 5)
    with cradle.client(cradle.status()[str(max(here, there))]) as client:
        assert client.set("k", times) and client.get("k") == b"3"


def test_a_node_without_its_link_to_the_leader_is_resynced(cradle: Cradle) -> None:
    """Its backend was lost for a moment, too (soak, seed 20033)."""
    cut_links(cradle, 1, [2])
    cut_backend(cradle, 2, random.Random(1))
    wait_until("the loss was noticed", lambda: _says(cradle, 2, "the backend is lost") == 1, 5)
    cradle.wait_status("it is in step and serves",
                       lambda s: s["2"].more["backend_state"] == "fed" and bool(s["2"].more["serving"]))  # fmt: skip


def test_a_cut_backend_connection_makes_the_leader_step_down(cradle: Cradle) -> None:
    assert cut_backend(cradle, 1, random.Random(1)) == 1
    cradle.wait_status("another node leads", lambda s: s.leader not in (None, "1"))
    assert Nemesis(cradle, 1).await_recovered({1, 2, 3}, 20) == []


# ---- what goes wrong is noticed --------------------------------------------------------------------------------------


def _spoilt(cradle: Cradle, spoil: Any) -> Outcome:
    """What the judge says when `spoil(backend of the leader)` is done behind everybody's back."""
    status = cradle.status()
    with Crowd() as crowd:
        crowd.start(Plan(tuple(node.client_address for node in status.nodes), 1))
        wait_until("there is something", lambda: min(crowd.counts()) > 100, 20)
        backend = open_backend(status[status.leader or ""].backend)
        try:
            spoil(backend)
        finally:
            backend.close()
        seen = crowd.counts()
        # Somebody must read a spoilt key before the next write to it: that takes more than a few operations.
        wait_until("clients go on", lambda: min(crowd.counts()) > max(seen) + 300, 40)
        crowd.stop()
        crowd.finish([0, 1, 2])
        return crowd.outcome()


def _some(backend: Any, kind: str) -> list[bytes]:
    return list(backend.scan_iter(match=f"{kind}*", count=1000))


def test_a_correct_cluster_is_called_correct(cradle: Cradle) -> None:
    outcome = _spoilt(cradle, lambda backend: None)
    assert not outcome.violations and not outcome.troubles
    assert (outcome.lost, outcome.doubled, outcome.unknown, outcome.refused) == (0, 0, 0, 0)
    assert outcome.acknowledged > 300 and outcome.operations > outcome.acknowledged


def test_a_counter_moved_behind_its_back_is_noticed(cradle: Cradle) -> None:
    outcome = _spoilt(cradle, lambda backend: [backend.incr(key) for key in _some(backend, "c")])
    assert outcome.violations and outcome.doubled > 0 and outcome.kept


def test_lists_that_lose_an_element_are_noticed(cradle: Cradle) -> None:
    outcome = _spoilt(cradle, lambda backend: [backend.lpop(key) for key in _some(backend, "l")])
    assert outcome.violations and outcome.lost > 0


def test_registers_set_back_are_noticed(cradle: Cradle) -> None:
    outcome = _spoilt(cradle, lambda backend: [backend.set(key, "0") for key in _some(backend, "r")])
    assert outcome.violations


def test_locks_that_outlive_their_time_are_noticed(cradle: Cradle) -> None:
    def persist(backend: Any) -> None:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            for key in _some(backend, "k"):
                backend.persist(key)

    assert _spoilt(cradle, persist).violations


def _spoil_replica(node: NodeStatus) -> None:
    backend = open_backend(node.backend)
    backend.config_set("replica-read-only", "no")
    backend.set("r0", "nobody else has it")
    backend.close()


def test_unequal_replicas_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round in which a follower's Redis is written to on the quiet."""
    with Arena() as arena:
        launched = []
        prepare = arena._prepare
        monkeypatch.setattr(arena, "_prepare", lambda nodes: launched.append(prepare(nodes)) or launched[0])
        monkeypatch.setattr(Nemesis, "strike", lambda self, strike, order: (
            _spoil_replica(self.bed.status().followers[0]), (self.note("spoilt"), set()))[1])  # fmt: skip
        round_ = arena.fight(1, 3, [Strike(0.05, ())])
    assert not round_.sound and any("lacks 1 keys" in text for text in round_.troubles)
    assert not round_.outcome.violations


def test_a_cluster_that_stands_still_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three killed: no progress, and the story is kept."""
    monkeypatch.setattr("tests.fault.rounds.PROGRESS_S", 1.0)
    with Arena() as arena:
        round_ = arena.fight(5, 3, [Strike(0.05, (Fault("kill", 0), Fault("kill", 1)), mended=False)])
    assert not round_.sound and any("no progress" in text for text in round_.troubles)
    story = round_.keep(tmp_path).read_text()
    assert "kill of the leader" in story and "no progress" in story


def test_a_round_that_breaks_off_does_not_spoil_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clients are still at work, or wait to be judged."""
    with Arena() as arena:
        for broken in ("_strike_all", "_compare"):
            with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
                patch.setattr(f"tests.fault.rounds._Fight.{broken}", lambda self, what: 1 / 0)
                arena.fight(1, 3, [])
            round_ = arena.fight(2, 3, [])
            assert round_.sound and round_.outcome.acknowledged > 0, round_.text()


def test_what_is_found_is_kept_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Outcome(lost=2, violations=["r1: not linearizable"], kept=[Operation("r1", "GET", "", 1, 2, DONE, "7")])
    monkeypatch.setattr(Arena, "fight", lambda self, seed, nodes, nodes_next: Round(seed, nodes, outcome=bad))
    heard = io.StringIO()
    tally = soak(Bounds(rounds=2), 7, tmp_path, Console(file=heard, width=200))
    assert [one["seed"] for one in tally.unsound] == [7, 8] and tally.lost == 4
    assert str(tmp_path / "7-3.txt") in heard.getvalue() and "make soak SEED=7 ROUNDS=1" in heard.getvalue()
    assert "not linearizable" in (tmp_path / "7-3.txt").read_text()
    assert load(tmp_path / "7-3.jsonl") == bad.kept
    assert tally.report()["non_linearizable_histories"] == 2


def test_the_seeds_have_clusters_of_both_sizes() -> None:
    assert {nodes_of(seed) for seed in range(12)} == {3, 5}


def test_a_process_number_that_comes_again_is_not_the_dead_one() -> None:
    """They are few, and a long soak uses them all."""
    numbers = int(Path("/proc/sys/kernel/pid_max").read_text())
    with Nursery() as nursery:
        nursery.codes = dict.fromkeys(range(numbers), 1)
        bed = Cradle(nursery)
        with contextlib.closing(bed):
            assert bed.start().leader is not None
            assert not bed.died()
