"""What a sidecar adds to a HERD, as it is printed; what that is worth is not judged here, on an emulated processor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from musidecar.bench import herd
from musidecar.protocols.herd.driver import words
from tests.fault.nursery import Nursery
from tests.vm import herd_double, hosts
from tests.vm.herd_cluster import ANSWER_MS, HerdBed
from tests.vm.hosts_cluster import CLIENT_PORT

COUNT = 200
TIME_LIMIT_S = 3600 if herd_double.REAL else 600

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TIME_LIMIT_S)]


@pytest.fixture(scope="module")
def main(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return herd_double.main(tmp_path_factory.mktemp("herd"))


@pytest.fixture
def bed(nursery: Nursery, network: hosts.Network, main: Path) -> Iterator[HerdBed]:
    with HerdBed(nursery, network, main) as one:
        yield one
    assert one.leftovers() == []


def test_one_request_at_a_time_bare_and_through_the_sidecar(
    rxe0: str, main: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    options = {"herd_main": main, "workers": herd_double.WORKERS, "answer_ms": ANSWER_MS}
    bare = herd.bare(tmp_path, words(options), COUNT)
    bed: HerdBed = request.getfixturevalue("bed")
    leader = next(host for host in bed.hosts if bed.says(host).get("role") == "leader")
    through = herd.through((f"10.8.0.{leader}", CLIENT_PORT), COUNT)
    counted = bed.counted(leader)
    for name, alone, sidecar, ratio in map(herd.row, ("PUT", "GET"), bare, through):
        print(f"{name}: HERD alone p50 {alone:.0f} us, through the sidecar p50 {sidecar:.0f} us: {ratio:.1f} times")
        assert alone > 0 and ratio > 0.2
    print(f"behind the gate HERD answered in p50 {counted.reply_p50_ns / 1000:.0f} us", flush=True)
