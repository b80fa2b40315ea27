"""The simulated fabric keeps the same contract as the real ones, with and without delays."""

from __future__ import annotations

from typing import Any

import pytest

from musidecar._ffi import ffi, lib
from tests.unit.fabric_contract import (
    BACKGROUND_BYTES,
    DONE,
    DOWN,
    FLUSHED,
    LOG_BYTES,
    REFUSED,
    Cluster,
    FabricContract,
)


class SimCluster(Cluster):
    def __init__(self, nodes: int, delay_us: tuple[int, int] = (0, 0), part_bytes: int = 0, seed: int = 1) -> None:
        super().__init__(nodes)
        config = {
            "nodes": nodes,
            "log_bytes": LOG_BYTES,
            "background_bytes": BACKGROUND_BYTES,
            "seed": seed,
            "delay_min_us": delay_us[0],
            "delay_max_us": delay_us[1],
            "part_bytes": part_bytes,
        }
        self.sim: Any = lib.sim_new(ffi.new("struct sim_config *", config))

    def fabric(self, node: int) -> Any:
        return lib.sim_fabric(self.sim, node)

    def log(self, node: int) -> memoryview:
        return memoryview(ffi.buffer(lib.sim_log(self.sim, node), LOG_BYTES)).cast("B")

    def background(self, node: int) -> memoryview:
        return memoryview(ffi.buffer(lib.sim_background(self.sim, node), BACKGROUND_BYTES)).cast("B")

    def kill(self, node: int) -> None:
        lib.sim_crash(self.sim, node)

    def advance(self, us: int = 1_000_000) -> None:
        lib.sim_advance(self.sim, lib.sim_now_us(self.sim) + us)

    def close(self) -> None:
        lib.sim_free(self.sim)


class TestSimContract(FabricContract):
    def make(self, nodes: int) -> Cluster:
        return SimCluster(nodes)


class TestSlowSimContract(FabricContract):
    def make(self, nodes: int) -> Cluster:
        return SimCluster(nodes, delay_us=(1, 90), part_bytes=64)


@pytest.fixture
def slow() -> Any:
    cluster = SimCluster(3, delay_us=(10, 10), part_bytes=64)
    yield cluster
    cluster.close()


class TestHarm:
    def test_a_long_write_lands_in_parts(self, slow: SimCluster) -> None:
        slow.permit(1, 0)
        slow.write(0, 1, 0, b"p" * 640)
        seen = set()
        for _ in range(200):
            slow.advance(1)
            seen.add(bytes(slow.log(1)[:640]).count(b"p"))
        assert seen >= {0, 64, 640} and len(seen) > 4

    def test_revoking_cuts_a_write_in_the_middle(self, slow: SimCluster) -> None:
        slow.permit(1, 0)
        lib.sim_hold(slow.sim, 0, 1, 3)
        slow.write(0, 1, 0, b"p" * 640)
        slow.advance()
        slow.revoke(1)
        lib.sim_hold(slow.sim, 0, 1, 0xFFFFFFFF)
        assert slow.statuses(0) == [REFUSED]
        assert bytes(slow.log(1)[:640]) == b"p" * 192 + bytes(448)

    def test_a_frozen_writer_goes_on_later(self, slow: SimCluster) -> None:
        slow.permit(1, 0)
        slow.write(0, 1, 0, b"p" * 8)
        lib.sim_freeze(slow.sim, 0, True)
        slow.advance()
        assert not any(slow.log(1))
        lib.sim_freeze(slow.sim, 0, False)
        assert slow.statuses(0) == [DONE]
        assert bytes(slow.log(1)[:8]) == b"p" * 8

    def test_a_cut_link_fails_what_is_under_way_and_heals_without_it(self, slow: SimCluster) -> None:
        slow.permit(1, 0)
        slow.write(0, 1, 0, b"p" * 8)
        lib.sim_cut(slow.sim, 0, 1)
        slow.write(0, 1, 8, b"q" * 8)
        assert slow.statuses(0) == [DOWN, FLUSHED]
        slow.write(0, 1, 16, b"r" * 8)
        slow.write(0, 1, 0, b"r" * 8, region=1)
        lib.sim_heal(slow.sim, 0, 1)
        assert slow.statuses(0) == [FLUSHED, FLUSHED]
        slow.write(0, 1, 0, b"s" * 8, region=1)
        assert slow.statuses(0) == [DONE]
        assert not any(slow.log(1))
        slow.permit(1, 0)
        slow.write(0, 1, 0, b"t" * 8)
        assert slow.statuses(0) == [DONE]

    def test_the_same_seed_gives_the_same_run(self) -> None:
        def run(seed: int) -> list[bytes]:
            c = SimCluster(2, delay_us=(1, 50), part_bytes=64, seed=seed)
            c.permit(1, 0)
            c.write(0, 1, 0, b"p" * 900)
            states = []
            for _ in range(100):
                c.advance(3)
                states.append(bytes(c.log(1)[:900]))
            c.close()
            return states

        assert run(5) == run(5)
        assert run(5) != run(6)
