"""On one host with a device, as its user types it: `bench herd` and `demo --backend herd`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm import herd_double

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(herd_double.REAL), reason="a real HERD's workers leave nobody an emulated processor"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def words(rxe0: str, tmp_path: Path) -> list[str]:
    return ["--backend", "herd", "--binary", str(herd_double.main(tmp_path)), "--workers", str(herd_double.WORKERS)]


def _musidecar(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-m", "musidecar", *words], capture_output=True, text=True, cwd=cwd)


def test_bench_herd_prints_what_the_sidecar_adds(words: list[str], tmp_path: Path) -> None:
    done = _musidecar("bench", "herd", *words[2:], "--count", "50", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("PUT", "GET"):
        alone, through = (
            float(value.replace("k", "e3"))
            for value in re.findall(rf"{name}, (?:HERD alone|through the sidecar), p50 +│ +(\S+) us", done.stdout)
        )
        assert alone > 0 and through > 0, done.stdout
    assert (tmp_path / "bench-results" / "herd.json").exists()


def test_the_demo_holds(words: list[str], tmp_path: Path) -> None:
    done = _musidecar("demo", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    print(done.stdout)
