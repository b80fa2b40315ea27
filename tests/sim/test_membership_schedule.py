"""Random schedules with changes of membership, driven from here; those of the simulator are in test_schedule.py."""

from __future__ import annotations

import random
from typing import Any

import pytest

from musidecar._ffi import lib
from tests.sim.cluster import Cluster, Node, Record


class Schedule:
    """Random faults and changes of membership; `possible` is every membership that may be in force somewhere."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        delays = self.random.choice([(0, 0), (1, 40), (1, 150)])
        self.c = Cluster(
            5,
            ring_bytes=self.random.choice([4096, 1 << 14]),
            piece_bytes=300,
            delay_us=delays,
            part_bytes=self.random.choice([0, 64]),
            seed=seed,
            members=range(self.random.randint(1, 5)),
        )
        self.slots = range(5)
        self.possible: dict[int, dict[int, int]] = {0: {i: 1 for i in self.slots if self.c.members[i]}}
        self.lives = dict.fromkeys(self.slots, 1)
        self.cuts: set[tuple[int, int]] = set()
        self.seen: dict[int, Any] = {}
        self.leaders: dict[int, int] = {}
        self.acknowledged: dict[int, Record] = {}
        self.changes = self.proposed = 0

    # The oracle: one record per index, whoever hands it out, in whichever of its lives; one leader per term; what a
    # leader saw decided is there for ever. `judged` says up to where a node's records were looked at.

    def judge(self) -> None:
        for node in self.c.nodes:
            if node.leads:
                assert self.leaders.setdefault(node.term, node.number) == node.number
            for record in node.delivered[max(node.judged, node.first) - node.first :]:
                assert self.seen.setdefault(record.index, record.contents) == record.contents, record.index
            node.judged = node.first + len(node.delivered)
            if node.leads and node.commit >= max(self.acknowledged, default=0):
                for record in node.delivered:
                    self.acknowledged.setdefault(record.index, record)
        for index, record in self.acknowledged.items():
            assert self.seen[index] == record.contents

    # Memberships

    def live(self, members: dict[int, int], without: int = -1) -> bool:
        """Would a majority of these members be alive, with their memory?"""
        count = sum(i != without and self.lives[i] == who and not self.c[i].dead for i, who in members.items())
        return count > len(members) // 2

    def change(self, leader: Node) -> None:
        slot = self.random.choice(self.slots)
        members = leader.members
        incarnation = 0 if slot in members and self.random.random() < 0.6 else self.lives[slot]
        index = leader.propose_member(slot, incarnation)
        if index <= 0:
            return
        self.changes += 1
        after = {i: who for i, who in members.items() if i != slot}
        self.possible[index * 1000 + leader.term] = after | ({slot: incarnation} if incarnation else {})

    def forget(self) -> None:
        """Memberships that are decided not to be, or to be of the past."""
        known = max((n for n in self.c.nodes if not n.dead), key=lambda n: n.commit)
        for key in [key for key in self.possible if key // 1000 <= known.commit]:
            del self.possible[key]
        self.possible[0] = known.members

    # Faults

    def cut(self, a: int, b: int) -> None:
        if a != b:
            self.cuts.add((min(a, b), max(a, b)))
            self.c.cut(a, b)

    def heal(self, pair: tuple[int, int]) -> None:
        self.cuts.discard(pair)
        self.c.heal(*pair)

    def restart(self, number: int) -> None:
        self.lives[number] += 1
        self.c.restart(number, self.lives[number])
        for pair in self.cuts:
            if number in pair:
                self.c.cut(*pair)

    def harm(self) -> None:
        roll, number = self.random.randrange(12), self.random.choice(self.slots)
        node = self.c[number]
        self.forget()
        if roll < 2 and not node.dead:
            self.c.stop(number)
        elif roll < 5 and not node.dead:
            self.c.go_on(number)
        elif roll < 6:
            self.cut(number, self.random.choice(self.slots))
        elif roll < 8 and self.cuts:
            self.heal(self.random.choice(sorted(self.cuts)))
        elif roll < 9:
            lib.replica_resign(node.replica, self.c.now_us)
        elif all(self.live(members, number) for members in self.possible.values()):
            if roll < 10 and not node.dead:
                self.c.kill(number, told=self.random.random() < 0.5)
            else:
                self.restart(number)

    def step(self) -> None:
        c = self.c
        c.step(self.random.choice([5, 20, 50, 200]))
        for node in c.alive:
            if node.damage == lib.REPLICA_LAPPED:
                source = int(lib.replica_source(node.replica))
                if source < 5 and c[source] in c.alive:
                    node.install(c[source])
            while node.leads and self.random.random() < 0.3:
                self.proposed += node.propose(b"%d" % self.proposed * self.random.randint(1, 20)) > 0
            if node.leads and self.random.random() < 0.05:
                self.change(node)
        self.judge()

    def settle(self) -> None:
        """The faults stop: there must be one leader, and further records that come to everybody who counts."""
        c = self.c
        for pair in sorted(self.cuts):
            self.heal(pair)
        for node in c.nodes:
            if not node.dead:
                c.go_on(node.number)
        before = len(self.seen)

        def done() -> bool:
            self.judge()
            for node in c.alive:
                if node.damage == lib.REPLICA_LAPPED and (source := int(lib.replica_source(node.replica))) < 5:
                    node.install(c[source])
                if node.leads and len(self.seen) < before + 5:
                    node.propose(b"at the end")
            leading = [n for n in c.alive if n.leads]
            counting = [n for n in c.alive if leading and leading[0].members.get(n.number) == self.lives[n.number]]
            return len(leading) == 1 and len(self.seen) >= before + 5 and len({n.hash for n in counting}) == 1

        c.run_until(done, within_us=2_000_000)


@pytest.mark.parametrize("block", range(4))
def test_random_changes_of_membership(block: int) -> None:
    changes = 0
    for seed in range(block * 25, block * 25 + 25):
        schedule = Schedule(seed)
        with schedule.c as c:
            c.run(2_000)
            harm_in = schedule.random.randint(10, 150)
            try:
                for _ in range(600):
                    if schedule.random.randrange(harm_in) == 0:
                        schedule.harm()
                    schedule.step()
                schedule.settle()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}; {c.describe()}") from error
            changes += schedule.changes
    assert changes > 100
