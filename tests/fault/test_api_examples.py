"""The examples of docs/api.md, as they are: three processes each, and one killed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from musidecar.bench.machines import Machines


@pytest.fixture
def machines() -> Iterator[Machines]:
    with Machines() as made:
        yield made


def line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def type_in(process: subprocess.Popen[bytes], text: str) -> str:
    assert process.stdin is not None
    process.stdin.write(text.encode() + b"\n")
    process.stdin.flush()
    return line(process)


def hang_up(process: subprocess.Popen[bytes]) -> str:
    assert process.stdin is not None
    process.stdin.close()
    return line(process)


def test_the_counter(machines: Machines, root: Path) -> None:
    nodes = {i: machines.start(i, root / "examples/counter.py", machines.path, str(i)) for i in (1, 2, 3)}
    assert [line(process) for process in nodes.values()] == ["ready"] * 3
    assert type_in(nodes[1], "5") == "5"
    assert type_in(nodes[3], "7") == "12"
    assert type_in(nodes[2], "twelve") == "12"
    leader = machines.status()["leader"]
    machines.kill(leader)
    left = [process for node, process in nodes.items() if node != leader]
    assert type_in(left[0], "30") == "42"
    assert type_in(left[1], "1") == "43"
    anew = machines.start(leader, root / "examples/counter.py", machines.path, str(leader))
    assert line(anew) == "ready"
    assert type_in(anew, "100") == "143"
    assert [hang_up(process) for process in (left[0], anew)] == ["in the end: 143"] * 2  # one alone is no majority
    assert [process.wait(20) for process in (left[0], anew)] == [0] * 2


def test_the_vector(machines: Machines, root: Path) -> None:
    pytest.importorskip("numpy")
    example = root / "examples/vector.py"
    nodes = [machines.start(i, example, machines.path, str(i), "200") for i in (1, 2, 3)]
    assert [line(process) for process in nodes] == ["added"] * 3
    wanted = " ".join(str(i * 1110 * 200) for i in range(8))
    assert [hang_up(process) for process in nodes[:2]] == [wanted] * 2
