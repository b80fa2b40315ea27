"""Random schedules: `schedule.c` drives the core under one oracle, with the sanitizers; planted bugs must show."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from musidecar._ffi import lib

FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-g", "-I.", "-Iffi"]
SANITIZERS = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compiled(root: Path, to: Path, flags: list[str]) -> Path:
    sources = sorted(str(path.relative_to(root)) for path in (root / "ffi/core").glob("*.c"))
    line = ["cc", *FLAGS, *flags, "tests/sim/schedule.c", "ffi/fabric/sim.c", *sources, "-o", str(to)]
    subprocess.run(line, cwd=root, check=True, timeout=120)
    return to


@pytest.fixture(scope="module")
def fast(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(root, tmp_path_factory.mktemp("schedule") / "schedule", ["-O2"])


@pytest.fixture(scope="module")
def sanitized(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(root, tmp_path_factory.mktemp("schedule") / "sanitized", SANITIZERS)


def run(program: Path, nodes: int, first_seed: int, seeds: int, steps: int, bugs: int = 0) -> tuple[int, str]:
    line = [str(program), *map(str, (nodes, first_seed, seeds, steps, bugs))]
    done = subprocess.run(line, capture_output=True, text=True, timeout=150)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5])
def test_random_schedules(fast: Path, nodes: int) -> None:
    status, said = run(fast, nodes, 1, 400, 3000)
    assert status == 0, said
    laps = int(said.split(" laps")[0].split()[-1])
    assert laps > 400  # the ring went round, or the schedules show little


@pytest.mark.parametrize("nodes", [3, 5])
def test_random_schedules_under_the_sanitizers(sanitized: Path, nodes: int) -> None:
    status, said = run(sanitized, nodes, 10_000, 60, 2000)
    assert status == 0, said


def test_the_same_seed_gives_the_same_run(fast: Path) -> None:
    assert run(fast, 3, 77, 5, 2000) == run(fast, 3, 77, 5, 2000)


@pytest.mark.parametrize("bug", ["SIM_BUG_LATE_WRITES", "SIM_BUG_DEAD_ACKS"])
def test_a_bug_planted_in_the_fabric_is_noticed(fast: Path, bug: str) -> None:
    status, said = run(fast, 3, 1, 500, 2000, int(getattr(lib, bug)))
    assert status != 0, said


# What a mistake in the core looks like: file, right, wrong.
MISTAKES = {
    "prepare skipped": ("takeover.c", "if (best == r->self) {", "if (true) {"),
    "a majority of one too few": ("quorum.h", "return nodes / 2 + 1;", "return (nodes + 1) / 2 - (nodes > 2);"),
    "ring reused before it is applied": ("confirm.c", "if (p->pins) lowest =", "if (false) lowest ="),
    "what is present taken for committed": ("follow.c", "hear(r, copy.commit)", "hear(r, copy.index)"),
    "commit index told ahead of the records": ("leader.c", "sooner(r->commit.index, p->sent.index)", "r->last.index"),
    "no new permission after a failure": ("confirm.c", "p->stage = PEER_APART;", "p->stage = PEER_PERMITTED;"),
    "leading on after granting to another": (
        "permission.c",
        "if (r->role == REPLICA_LEADER) leader_step_down(r);",
        "",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bug_planted_in_the_core_is_noticed(root: Path, tmp_path: Path, mistake: str) -> None:
    for folder in ("ffi/core", "ffi/fabric", "tests/sim"):
        (tmp_path / folder).mkdir(parents=True)
        for path in (root / folder).glob("*.[ch]"):
            (tmp_path / folder / path.name).write_text(path.read_text())
    (tmp_path / "ffi/check.h").write_text((root / "ffi/check.h").read_text())
    name, right, wrong = MISTAKES[mistake]
    source = tmp_path / "ffi/core" / name
    assert source.read_text().count(right) == 1
    source.write_text(source.read_text().replace(right, wrong))
    program = compiled(tmp_path, tmp_path / "schedule", ["-O1"])
    assert any(run(program, nodes, 1, 300, 2000)[0] != 0 for nodes in (3, 5))
