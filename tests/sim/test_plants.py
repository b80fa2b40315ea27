"""Mistakes planted in the core and its fabrics (ffi/plant.h): the simulator must notice each, and soon; of those in
shared memory, which it does not run on, the contract's tests."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from musidecar import sim
from tests.fault import plants

HEADER = (Path(__file__).resolve().parent.parent.parent / "ffi/plant.h").read_text()
NAMES = re.findall(r'"([a-z-]+)"', HEADER[HEADER.index("plant_names[") :].split(";")[0])
PLANTS = NAMES[: NAMES.index("effect-twice")]  # those behind are of the engine: tests/fault
SEEDS = 4000
MEDIAN_S_MAX = 10


@dataclass(frozen=True)
class Caught:
    plant: str
    seed: str
    seconds: float
    how: str


caught: list[Caught] = []


def test_every_mistake_of_the_core_and_the_fabric_is_here() -> None:
    assert len(PLANTS) >= 12
    assert HEADER[: HEADER.index("/* ffi/engine")].count("\n    PLANT_") == len(PLANTS)
    assert len(NAMES) == len(re.findall(r"^    PLANT_\w+,", HEADER, re.MULTILINE))


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_mistake_is_noticed(plant: str) -> None:
    program = sim.program((*sim.FAST, sim.PLANTED))
    start = time.monotonic()
    outcome = sim.run(program, ["--seeds", str(SEEDS), "--plant", plant], timeout_s=150)
    seconds = time.monotonic() - start
    assert not outcome.sound, f"{SEEDS} seeds did not notice it"
    what = re.search(r"violation: seed (\d+), (.*)", outcome.said)
    assert what, outcome.said
    caught.append(Caught(plant, what[1], seconds, what[2].split(": ", 1)[1]))


def shm_tests(*planted: str) -> subprocess.CompletedProcess[str]:
    """The contract of fabrics, and what else shm promises, on the test build."""
    line = [sys.executable, "-P", "-m", "pytest", "-xq", "-o", "pythonpath=", "-p", "no:cacheprovider"]
    line += ["tests/unit/test_shm.py"]
    return subprocess.run(line, cwd=plants.ROOT, env=plants.environment(*planted), capture_output=True, text=True,
                          timeout=150, check=False)  # fmt: skip


@pytest.mark.parametrize("plant", ["no-revoke", "late-writes", "dead-acks"])
def test_a_mistake_planted_in_shared_memory_is_noticed(plant: str) -> None:
    start = time.monotonic()
    done = shm_tests(plant)
    failed = re.search(r"FAILED tests/unit/test_shm.py::(\S+)", done.stdout)
    assert done.returncode == 1 and failed, done.stdout + done.stderr
    caught.append(Caught(f"{plant} (shm)", "", time.monotonic() - start, failed[1]))


def test_without_a_mistake_shared_memory_is_as_promised() -> None:
    done = shm_tests()
    assert done.returncode == 0, done.stdout + done.stderr


def test_they_are_noticed_soon(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("planted", "caught by seed", "after", "because", title="planted mistakes")
    for one in caught:
        table.add_row(one.plant, one.seed, f"{one.seconds:.2f} s", one.how)
    with capsys.disabled():
        Console(width=150).print("", table)
    if len(caught) < len(PLANTS):
        pytest.skip("not all of them ran")
    assert statistics.median(one.seconds for one in caught) < MEDIAN_S_MAX


def test_the_same_program_without_a_mistake_notices_nothing() -> None:
    outcome = sim.run(sim.program((*sim.FAST, sim.PLANTED)), ["--seeds", "200"], timeout_s=150)
    assert outcome.sound, outcome.said
