"""What a commit costs is measured, and printed; what it is worth is not judged here, on a crowded host."""

import re
import subprocess
import sys


def test_bench_replicate_over_verbs_prints_its_ratios(rxe0: str) -> None:
    words = ["bench", "replicate", "--fabric", "verbs", "--device", rxe0, "--count", "30"]
    done = subprocess.run([sys.executable, "-m", "musidecar", *words], capture_output=True, text=True)
    assert done.returncode in (0, 1) and not done.stderr, done.stdout + done.stderr  # 1: a figure was missed
    for nodes, size in ((3, 64), (3, 136), (5, 64), (5, 136)):
        row = re.search(rf"{nodes} nodes, bare {size} B +│(.*)│", done.stdout)
        assert row, done.stdout
        commit, one, parallel, to_one, to_parallel = (float(cell) for cell in row[1].split("│"))
        assert min(commit, one, parallel) > 0 and to_one > to_parallel > 0
    assert "access flags" in done.stdout and "state cycle" in done.stdout
