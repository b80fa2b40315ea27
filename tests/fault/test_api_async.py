"""Three AsyncReplicas in one process and one event loop: proposals at all nodes, events, nodes that leave, cancelled
calls; and Replicas, as far as they need no process of their own."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from musidecar.api import AsyncReplica, Closed, Leadership, MachineFailed, Rejected, Replica, Unknown
from musidecar.bench.machines import Machines
from musidecar.protocols.own import wire

LONG_S = 30.0


class Sums:
    """Text -> sum: `name=number`. It keeps its order of insertion."""

    def __init__(self) -> None:
        self.sums: dict[str, int] = {}

    def apply(self, index: int, record: bytes) -> bytes:
        name, found, number = record.decode().partition("=")
        if not found:
            raise Rejected(f"no number: {name}")
        self.sums[name] = self.sums.get(name, 0) + int(number)
        return b"%d" % self.sums[name]

    def snapshot(self) -> bytes:
        return "\n".join(f"{name}={number}" for name, number in self.sums.items()).encode()

    def restore(self, data: bytes) -> None:
        self.sums = {}
        for line in data.decode().split("\n") if data else []:
            name, _, number = line.partition("=")
            self.sums[name] = int(number)


class Hangs(Sums):
    """At one record it waits until it may go on."""

    def __init__(self, gate: threading.Event) -> None:
        super().__init__()
        self.gate = gate
        self.restored = 0

    def apply(self, index: int, record: bytes) -> bytes:
        if record == b"hang=1":
            assert self.gate.wait(LONG_S)
        return super().apply(index, record)

    def restore(self, data: bytes) -> None:
        self.restored += 1
        super().restore(data)


class Blobs:
    """Says what it is told, and keeps a hash of it."""

    def __init__(self) -> None:
        self.hashes: list[bytes] = []

    def apply(self, index: int, record: bytes) -> bytes:
        self.hashes.append(hashlib.sha256(record).digest())
        return record

    def snapshot(self) -> bytes:
        return b"".join(self.hashes)

    def restore(self, data: bytes) -> None:
        self.hashes = [data[at : at + 32] for at in range(0, len(data), 32)]


class Rolls(Sums):
    def apply(self, index: int, record: bytes) -> bytes:
        return b"%d" % random.getrandbits(60)


class Gated(Sums):
    """It is filled when it may be."""

    def __init__(self, gate: threading.Event) -> None:
        super().__init__()
        self.gate = gate

    def restore(self, data: bytes) -> None:
        assert self.gate.wait(LONG_S)
        super().restore(data)


@pytest.fixture
def machines() -> Iterator[Machines]:
    with Machines() as made:
        yield made


async def three(machines: Machines, **more: Any) -> list[AsyncReplica]:
    replicas = [AsyncReplica(machines.config, node, Sums(), **more) for node in (1, 2, 3)]
    await asyncio.gather(*(replica.start() for replica in replicas))
    return replicas


async def close(replicas: list[AsyncReplica]) -> None:
    for replica in replicas:
        await replica.close()


def test_many_tasks_at_all_nodes_and_the_leader_leaves(machines: Machines) -> None:
    async def caller(replica: AsyncReplica, name: str, times: int) -> None:
        for i in range(1, times + 1):
            assert await replica.propose(f"{name}=1".encode()) == b"%d" % i

    async def main() -> None:
        replicas = await three(machines)
        await asyncio.gather(*(caller(r, f"{n}.{i}", 20) for n, r in enumerate(replicas) for i in range(30)))
        results = await replicas[1].propose_many(f"many={i}".encode() for i in range(20_000))
        assert results[-1] == b"%d" % sum(range(20_000))
        leader = replicas[0].leadership.leader
        assert leader is not None
        leaves = replicas.pop(leader - 1)
        calls = [asyncio.create_task(caller(r, f"after {n}.{i}", 20)) for n, r in enumerate(replicas) for i in range(9)]
        await asyncio.sleep(0)
        await leaves.close()
        await asyncio.gather(*calls)
        with pytest.raises(Closed, match="this replica is closed"):
            await leaves.propose(b"x=1")
        states = await asyncio.gather(*(replica.read(lambda sums: dict(sums.sums)) for replica in replicas))
        assert states[0] == states[1] and list(states[0]) == list(states[1])
        assert len(states[0]) == 3 * 30 + 1 + 2 * 9
        await close(replicas)

    asyncio.run(asyncio.wait_for(main(), 2 * LONG_S))


def test_none_is_started_before_the_death_of_any_can_be_borne(machines: Machines) -> None:
    """What the cluster begins with is the seed's alone until others are filled."""

    async def main() -> None:
        gate, seed = threading.Event(), Sums()
        seed.sums["seed's"] = 41
        made = [seed, Gated(gate), Gated(gate)]
        replicas = [AsyncReplica(machines.config, node, machine) for node, machine in enumerate(made, 1)]
        starts = [asyncio.create_task(replica.start()) for replica in replicas]
        while not replicas[0].leadership.leads:
            await asyncio.sleep(0.01)
        done, _ = await asyncio.wait(starts, timeout=0.3)
        assert not done
        gate.set()
        await starts[0]
        await replicas[0].close()
        await asyncio.gather(*starts[1:])
        assert await replicas[1].propose(b"seed's=1") == b"42"
        await close(replicas[1:])

    asyncio.run(asyncio.wait_for(main(), 2 * LONG_S))


def test_what_events_tell(machines: Machines) -> None:
    async def until(told: list[Leadership], leader: int) -> None:
        while not any(each.leader == leader and each.serving for each in told):
            await asyncio.sleep(0.01)

    async def listen(replica: AsyncReplica, into: list[Leadership]) -> None:
        async for each in replica.events():
            into.append(each)

    async def main() -> None:
        replicas = await three(machines)
        told: list[list[Leadership]] = [[], [], []]
        listening = [asyncio.create_task(listen(*pair)) for pair in zip(replicas, told, strict=True)]
        await replicas[0].propose(b"x=1")
        first = replicas[0].leadership.leader
        assert first is not None
        await asyncio.gather(*(until(each, first) for each in told))
        assert told[first - 1][-1].leads and not told[first % 3][-1].leads
        await replicas[first - 1].close()
        await asyncio.wait_for(listening[first - 1], LONG_S)  # it ends with its replica
        assert told[first - 1][-1] == Leadership(None, 0, False, False)
        left = [node for node in (1, 2, 3) if node != first]
        await replicas[left[0] - 1].propose(b"x=1")
        while (second := replicas[left[0] - 1].leadership.leader) not in left:
            await asyncio.sleep(0.01)
        await asyncio.gather(*(until(told[node - 1], second) for node in left))
        last = told[second - 1][-1]
        assert last.leads and last.term > told[first - 1][0].term
        await close(replicas)
        await asyncio.wait_for(asyncio.gather(*listening), LONG_S)

    asyncio.run(asyncio.wait_for(main(), 2 * LONG_S))


def test_calls_that_are_given_up_or_cannot_end(machines: Machines) -> None:
    async def main() -> None:
        replicas = await three(machines)
        with pytest.raises(Rejected, match="no number: five"):
            await replicas[2].propose(b"five")
        assert [str(result) for result in await replicas[2].propose_many([b"a=1", b"six", b"a=2"])] == [
            "b'1'", "no number: six", "b'3'"]  # fmt: skip
        with pytest.raises(ZeroDivisionError):
            await replicas[1].read(lambda sums: 1 // 0)
        cancelled = [asyncio.create_task(replicas[0].propose(b"given up=1")) for _ in range(5)]
        await asyncio.sleep(0)
        for each in cancelled:
            each.cancel()
        assert await replicas[0].propose(b"given up=0") == b"5"  # they were under way all the same
        await close(replicas[:2])
        proposal = asyncio.create_task(replicas[2].propose(b"alone=1"))
        read = asyncio.create_task(replicas[2].read(lambda sums: sums.sums))
        done, _ = await asyncio.wait([proposal, read], timeout=0.5)
        assert not done  # one node of three is no majority
        await replicas[2].close()
        with pytest.raises(Unknown, match="closed before there was an outcome"):
            await proposal
        with pytest.raises(Closed):
            await read

    asyncio.run(asyncio.wait_for(main(), 2 * LONG_S))


def test_the_longest_records_at_every_node_and_over_a_leaders_end(machines: Machines) -> None:
    """One that is too long to be kept at a follower until it is answered is sent again by its client."""

    async def main() -> None:
        replicas = [AsyncReplica(machines.config, node, Blobs()) for node in (1, 2, 3)]
        await asyncio.gather(*(replica.start() for replica in replicas))
        sizes = [0, 1, (1 << 17) - 1, 1 << 17, (1 << 20) + 1, wire.RECORD_BYTES_MAX]
        given = [random.Random(size).randbytes(size) for size in sizes]
        for replica in replicas:
            assert await replica.propose_many(given) == given
        with pytest.raises(ValueError, match=f"{wire.RECORD_BYTES_MAX} are the most"):
            await replicas[0].propose(bytes(wire.RECORD_BYTES_MAX + 1))
        leader = replicas[0].leadership.leader
        assert leader is not None
        left = [replica for node, replica in enumerate(replicas, 1) if node != leader]
        calls = [asyncio.create_task(replica.propose_many(given)) for replica in left]
        await asyncio.sleep(0)
        await replicas[leader - 1].close()
        assert await asyncio.gather(*calls) == [given, given]
        hashes = await asyncio.gather(*(replica.read(lambda blobs: list(blobs.hashes)) for replica in left))
        wanted = sorted([hashlib.sha256(record).digest() for record in given] * 5)
        assert hashes[0] == hashes[1] and sorted(hashes[0]) == wanted
        await close(left)

    asyncio.run(asyncio.wait_for(main(), 2 * LONG_S))


def test_a_machine_that_hangs_is_filled_anew(machines: Machines) -> None:
    """Another node leads meanwhile; what was proposed at this one gets the result that it had there."""
    timing = machines.config.timing.model_copy(update={"backend_timeout_ms": 400})
    config = machines.config.model_copy(update={"timing": timing})

    async def main() -> None:
        gates = [threading.Event() for _ in range(3)]
        made = [Hangs(gate) for gate in gates]
        replicas = [AsyncReplica(config, node, machine) for node, machine in enumerate(made, 1)]
        await asyncio.gather(*(replica.start() for replica in replicas))
        leader = replicas[0].leadership.leader
        assert leader is not None
        hangs, others = replicas.pop(leader - 1), replicas
        before = made[leader - 1].restored
        for node, gate in enumerate(gates, 1):
            if node != leader:
                gate.set()
        calls = [asyncio.create_task(hangs.propose(record)) for record in (b"hang=1", b"a=1", b"hang=2")]
        while not any(replica.leadership.leads for replica in others):
            await asyncio.sleep(0.01)
        assert await others[0].propose(b"a=1") == b"2"
        gates[leader - 1].set()
        assert await asyncio.gather(*calls) == [b"1", b"1", b"3"]
        assert await hangs.propose(b"a=1") == b"3"
        states = await asyncio.gather(*(r.read(lambda sums: dict(sums.sums)) for r in (hangs, *others)))
        assert states == [{"hang": 3, "a": 3}] * 3
        assert made[leader - 1].restored == before + 1
        await close([hangs, *others])

    asyncio.run(asyncio.wait_for(main(), 2 * LONG_S))


@pytest.mark.parametrize("wrong", [False, True])
def test_everything_applied_twice(machines: Machines, wrong: bool) -> None:
    """check=True at every node; a machine that draws random numbers ends all of them, and says why."""

    async def main() -> None:
        made = [Rolls() if wrong else Sums() for _ in range(3)]
        replicas = [AsyncReplica(machines.config, i, machine, check=True) for i, machine in enumerate(made, 1)]
        await asyncio.gather(*(replica.start() for replica in replicas))
        if wrong:
            with pytest.raises(MachineFailed, match=r"apply\(\) said b'\d+' to b'a=1' here, and b'\d+' in another"):
                await replicas[0].propose(b"a=1")
        else:
            for i in range(1, 20):
                assert await replicas[i % 3].propose(b"a=1") == b"%d" % i
            states = await asyncio.gather(*(replica.read(lambda sums: sums.sums["a"]) for replica in replicas))
            assert states == [19] * 3
        await close(replicas)

    asyncio.run(asyncio.wait_for(main(), 2 * LONG_S))


def test_threads_that_wait_with_a_bound(machines: Machines) -> None:
    replicas = [Replica(machines.config, node, Sums()) for node in (1, 2, 3)]
    starting = [threading.Thread(target=replica.start) for replica in replicas]
    for thread in starting:
        thread.start()
    for thread in starting:
        thread.join()
    found: list[BaseException] = []

    def ask(call: Any) -> None:
        try:
            call()
        except Exception as error:
            found.append(error)

    assert replicas[1].propose(b"a=1", timeout_s=LONG_S) == b"1"
    events = replicas[2].events()
    assert next(events).serving
    for replica in replicas[:2]:
        replica.close()
    with pytest.raises(TimeoutError, match="under way"):
        replicas[2].propose(b"a=2", timeout_s=0.2)
    with pytest.raises(TimeoutError):
        replicas[2].read(lambda sums: sums.sums, timeout_s=0.2)
    calls = [lambda: replicas[2].propose(b"a=3"), lambda: replicas[2].read(dict), lambda: list(events)]
    waiting = [threading.Thread(target=ask, args=(call,)) for call in calls]
    for thread in waiting:
        thread.start()
    time.sleep(0.1)  # they may as well come later
    replicas[2].close()
    for thread in waiting:
        thread.join(LONG_S)
        assert not thread.is_alive()
    assert sorted(type(error).__name__ for error in found) in (["Closed", "Unknown"], ["Closed", "Closed"])
