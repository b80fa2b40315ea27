"""One round: a fresh cluster, clients at all its nodes, the nemesis, and then the questions: is the history
linearizable, is anything acknowledged missing or doubled, are the replicas that are left equal?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from redis.exceptions import RedisError

from musidecar.compare import compare, compare_logs
from musidecar.testbed import ClusterStatus, TestbedError, open_backend
from tests.fault import history
from tests.fault.clients import Crowd, Outcome, Plan
from tests.fault.nemesis import Nemesis, Strike, plan
from tests.fault.nursery import Cradle, Nursery

SETTINGS: Mapping[str, Mapping[str, int | str]] = {"timing": {"backend_timeout_ms": 300}}
WARM_WRITES = 40  # acknowledged by each node before the first strike
AFTER_WRITES = 60  # acknowledged by the others after each
PROGRESS_S = 15.0
RECOVERY_S = 20.0
COMPARE_S = 20.0


@dataclass
class Round:
    """What one round did and found. It is sound when nothing was lost, doubled, out of order, unequal or stuck."""

    seed: int
    nodes: int
    failovers: int = 0
    strikes: list[str] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    troubles: list[str] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0
    start_s: float = 0.0
    logs: str = ""

    @property
    def sound(self) -> bool:
        """Nothing was found."""
        return not (self.outcome.violations or self.outcome.lost or self.outcome.doubled or self.troubles)

    def text(self) -> str:
        """All of it, for people."""
        lines = [f"seed {self.seed}, {self.nodes} nodes: {'; '.join(self.strikes)}"]
        lines += [f"lost {self.outcome.lost}, doubled {self.outcome.doubled}, "
                  f"{len(self.outcome.violations)} keys without an order"]  # fmt: skip
        lines += [f"trouble: {text}" for text in self.troubles]
        lines += self.outcome.violations
        lines += [f"{moment / 1e6:.3f} ms  {text}" for moment, text in self.events]
        return "\n".join([*lines, self.logs]) + "\n"

    def keep(self, folder: Path) -> Path:
        """Writes the story and the histories of the keys in question; returns the story's path."""
        folder.mkdir(parents=True, exist_ok=True)
        story = folder / f"{self.seed}-{self.nodes}.txt"
        story.write_text(self.text())
        history.save(folder / f"{self.seed}-{self.nodes}.jsonl", self.outcome.kept)
        return story


class Arena:
    """Where rounds are fought: a nursery, a crowd, and the next cluster, which starts while the last one is judged."""

    def __init__(
        self,
        env: Mapping[str, str] | None = None,
        load: Mapping[str, float] | None = None,
        *,
        one_cluster: bool = False,
    ) -> None:
        """one_cluster: a cluster is used round after round, as long as all its nodes are well."""
        self.load, self.one_cluster = dict(load or {}), one_cluster
        self._stack = contextlib.ExitStack()
        self._nursery = self._stack.enter_context(Nursery(env))
        self._crowd = self._stack.enter_context(Crowd())
        self._next: tuple[int, Cradle] | None = None

    def close(self) -> None:
        """Ends everything."""
        if self._next is not None:
            self._next[1].close()
        self._stack.close()

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, nodes: int) -> Cradle:
        bed = Cradle(self._nursery, nodes, SETTINGS)
        try:
            bed.launch()
        except BaseException:
            bed.close()
            raise
        return bed

    def _take(self, nodes: int) -> Cradle:
        if self._next is not None:
            count, bed = self._next
            self._next = None
            if count == nodes:
                return bed
            bed.close()
        return self._prepare(nodes)

    def fight(self, seed: int, nodes: int, strikes: Sequence[Strike] | None = None, nodes_next: int = 0) -> Round:
        """One round. `nodes_next`: a cluster of so many nodes is started for the next one."""
        began = time.monotonic()
        bed: Cradle | None = self._take(nodes)
        assert bed is not None
        try:
            round_ = Round(seed, nodes)
            fight = _Fight(self, bed, round_, plan(seed, nodes) if strikes is None else strikes)
            nemesis = fight.nemesis
            fight.run(0 if self.one_cluster else nodes_next)
            if not round_.sound:
                round_.logs = bed.logs(60)
            elif self.one_cluster and not nemesis.damaged:
                self._next, bed = (nodes, bed), None
        finally:
            if bed is not None:
                bed.close()
        round_.seconds = time.monotonic() - began
        return round_


class _Fight:
    def __init__(self, arena: Arena, bed: Cradle, round_: Round, strikes: Sequence[Strike]) -> None:
        self.arena, self.bed, self.round, self.strikes = arena, bed, round_, strikes
        self.crowd = arena._crowd
        self.nemesis = Nemesis(bed, round_.seed)
        self.moments: list[int] = []

    def run(self, nodes_next: int) -> None:
        began = time.monotonic()
        status = self.bed.wait_ready()
        self.round.start_s = time.monotonic() - began
        addresses = tuple(node.client_address for node in status.nodes)
        if self.arena.one_cluster:  # the keys of the last round
            with self.bed.client(status.nodes[0]) as client:
                client.flushall()
        self.crowd.start(Plan(addresses, self.round.seed, **self.arena.load))  # type: ignore[arg-type]
        try:
            if self._progress(set(), WARM_WRITES):
                self._strike_all(status)
        finally:
            self.crowd.stop()
        if nodes_next:
            self.arena._next = (nodes_next, self.arena._prepare(nodes_next))
        survivors = [node for node in self.bed.pids if node not in self.nemesis.damaged]
        self.crowd.finish([node - 1 for node in survivors], self.moments)
        self.round.troubles += [f"node {node} ended by itself: {how}" for node, how in self.bed.died().items()
                                if node not in self.nemesis.killed]  # fmt: skip
        try:
            self._compare(survivors)
        except (TestbedError, OSError, RedisError) as error:
            self.round.troubles.append(f"the replicas cannot be compared: {error}")
        self.round.outcome = self.crowd.outcome()
        self.round.troubles += self.round.outcome.troubles
        self.round.events = self.nemesis.events

    def _strike_all(self, status: ClusterStatus) -> None:
        for strike in self.strikes:
            time.sleep(strike.after_s)
            leader = int(status.leader or 1)
            order = [leader, *(node for node in self.bed.pids if node != leader)]
            self.round.strikes.append(" and ".join(map(str, strike.faults)))
            moment, passing = self.nemesis.strike(strike, order)
            self.moments.append(moment)
            victims = {order[fault.victim] for fault in strike.faults}
            if not self._progress(victims, AFTER_WRITES):
                return
            mended = self.nemesis.mend() if strike.mended else set()
            late = self.nemesis.await_recovered(passing | mended, RECOVERY_S)
            self.round.troubles += late
            if late or not self._progress(self.nemesis.damaged, AFTER_WRITES):
                return
            status, term = self.bed.status(), status.term
            self.round.failovers += status.term > term and int(status.leader or 0) != leader

    def _progress(self, without: set[int], writes: int) -> bool:
        """Until the nodes that are not hit (or only cut off from others) have acknowledged so many writes more each, on
        the average."""
        nodes = [node - 1 for node in self.bed.pids if node not in without]
        before, deadline = self.crowd.counts(), time.monotonic() + PROGRESS_S
        while sum(self.crowd.counts()[n] - before[n] for n in nodes) < writes * len(nodes):
            if time.monotonic() > deadline:
                self.round.troubles.append(f"no progress for {PROGRESS_S:g} s at nodes {[n + 1 for n in nodes]}: "
                                           f"acknowledged {before}, then {self.crowd.counts()}")  # fmt: skip
                return False
            time.sleep(0.002)
        return True

    def _compare(self, survivors: Sequence[int]) -> None:
        backends = {str(n): open_backend(f"unix:{self.bed.dir}/redis-{n}.sock") for n in survivors}
        try:
            result = compare(backends, COMPARE_S)
            self.round.troubles += [f"replicas differ: {text}" for text in result.differences]
            self.round.troubles += compare_logs(self.bed.status, COMPARE_S)
        finally:
            for backend in backends.values():
                backend.close()
