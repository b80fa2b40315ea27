"""The simulator (tests/sim/*.c, `musidecar-sim`): random schedules of the real core under one oracle, also with the
sanitizers; schedules made and shrunk by hypothesis. Planted mistakes are in test_plants.py."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis.errors import NoSuchExample

from musidecar import sim

SANITIZERS = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# What hypothesis may do to a cluster of three: step, fault, two nodes, and a value.
FAULTS = st.sampled_from([
    "crash", "pause", "continue", "interrupt", "cut", "heal", "mend", "break", "hold", "release", "slow", "far", "near",
    "lazy", "resign", "ineligible", "eligible", "clock", "down", "rebirth", "add", "remove", "mute", "switchover",
])  # fmt: skip
FAULT = st.tuples(st.integers(0, 800), FAULTS, st.integers(0, 2), st.integers(0, 2), st.integers(0, 9000))
SCRIPTS = st.lists(FAULT, max_size=25).map(lambda faults: sorted(faults, key=lambda fault: fault[0]))


def text(script: list[tuple[int, str, int, int, int]]) -> str:
    """As the simulator reads it."""
    return "; ".join(" ".join(map(str, fault)) for fault in script)


@pytest.fixture(scope="module")
def fast() -> Path:
    return sim.program()


@pytest.fixture(scope="module")
def sanitized() -> Path:
    return sim.program(SANITIZERS)


def passes(program: Path, *options: object) -> dict[str, float]:
    outcome = sim.run(program, map(str, options), timeout_s=150)
    assert outcome.sound, outcome.said
    return outcome.counts


@pytest.mark.parametrize(("replicas", "seeds"), [(1, 300), (2, 300), (3, 700), (4, 300), (5, 500)])
def test_random_schedules(fast: Path, replicas: int, seeds: int) -> None:
    counts = passes(fast, "--replicas", replicas, "--seeds", seeds)
    assert counts["laps"] > seeds  # the ring went round, or the schedules show little
    assert counts["operations"] > 50 * seeds
    if replicas > 1:
        assert counts["leaders"] > 2 * seeds
        assert counts["interruptions"] > seeds
    if replicas > 2:
        assert counts["restarts"] > seeds / 5 and counts["changes"] > seeds / 3


def test_long_schedules(fast: Path) -> None:
    passes(fast, "--seed", 5_000, "--seeds", 20, "--steps", 40_000)


def test_random_schedules_under_the_sanitizers(sanitized: Path) -> None:
    passes(sanitized, "--seed", 10_000, "--seeds", 100)


def test_a_ring_that_will_feed_nobody_is_no_way_back(fast: Path) -> None:
    """A member waited to be fed by a node that was no member any more: all others' rings had gone on, and without that
    member there was no majority. It did not take a snapshot, and nobody led for ever."""
    passes(fast, "--seed", 8014, "--replicas", 5)


def test_the_same_seed_gives_the_same_run(fast: Path) -> None:
    def trace() -> str:
        line = [fast, "--seed", "77", "--trace"]
        said = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout
        return "\n".join(said.splitlines()[:-1])  # the last line has times

    once = trace()
    assert once == trace()
    assert "grants its log" in once and "fault: " in once and "is told" in once


def test_the_trace_of_a_seeds_faults_is_a_script(fast: Path) -> None:
    """The same faults, from a script instead of chance, give the same run."""

    def trace(*more: str) -> list[str]:
        line = [fast, "--seed", "42", "--trace", *more]
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()[:-1]

    by_chance = trace()
    script = "; ".join(match[1] for line in by_chance if (match := re.search(r"fault: (.*)", line)))
    assert script.count(";") > 5
    assert trace("--script", script) == by_chance


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(seed=st.integers(1, 1 << 32), script=SCRIPTS)
def test_schedules_of_hypothesis(seed: int, script: list[tuple[int, str, int, int, int]]) -> None:
    passes(sim.program(), "--seed", seed, "--replicas", 3, "--steps", 900, "--script", text(script))


def test_hypothesis_shrinks_a_violation_to_what_causes_it() -> None:
    program = sim.program((*sim.FAST, sim.PLANTED))

    def violates(script: list[tuple[int, str, int, int, int]]) -> bool:
        options = ["--seed", "3", "--replicas", "3", "--steps", "900", "--plant", "late-writes"]
        return not sim.run(program, [*options, "--script", text(script)], timeout_s=60).sound

    try:
        least = find(SCRIPTS, violates, settings=settings(max_examples=2000, deadline=None, derandomize=True,
                                                          phases=[Phase.generate, Phase.shrink]))
    except NoSuchExample:
        pytest.fail("no schedule shows the mistake")
    # How few there are depends on where it began, and that on which modules are loaded: none may be there for nothing.
    assert 1 <= len(least) <= 8, text(least)
    assert not [i for i in range(len(least)) if violates(least[:i] + least[i + 1 :])], text(least)


def test_the_command_replays_a_seed_and_says_what_was_violated() -> None:
    line = [sys.executable, "-m", "musidecar.sim"]
    done = subprocess.run([*line, "--seed", "5", "--steps", "300"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and '"seeds": 1' in done.stdout
    planted = [*line, "--seeds", "400", "--plant", "first-ack-commits"]
    done = subprocess.run(planted, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    replay = re.search(r"replay: musidecar-sim (.*)", done.stderr)
    assert "violation: seed" in done.stderr and replay
    again = subprocess.run([*line, *replay[1].split()], capture_output=True, text=True, timeout=100)
    assert again.returncode == 1 and "violation: seed" in again.stdout


def children(pid: int) -> set[int]:
    """Processes that it started and that run the simulator."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    found = {int(child) for task in tasks for child in task.read_text().split()}
    return {child for child in found if "simulate-" in command_of(child)}


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_whoever_ends_it_ends_its_processes(fast: Path, how: signal.Signals) -> None:
    line = [sys.executable, "-m", "musidecar.sim", "--seeds", "1000000", "--steps", "1000000", "--jobs", "2"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it, and so would they
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 60
            while len(started := children(process.pid)) < 2:
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.02)
            process.send_signal(how)
            assert process.wait(30) != 0
            while any(command_of(child) for child in started):
                assert time.monotonic() < until, "they go on without it"
                time.sleep(0.02)
        finally:
            process.kill()


def test_without_its_sources_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(sim.SimulatorError, match="source tree"):
        sim.program(root=tmp_path)


@pytest.mark.parametrize("option", ["--weights crash", "--script 5_dance_1", "--plant nothing", "--replicas 9"])
def test_what_is_not_understood_is_refused(fast: Path, option: str) -> None:
    with pytest.raises(sim.SimulatorError):
        sim.run(fast, option.replace("_", " ").split(" ", 1))
