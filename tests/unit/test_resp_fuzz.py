"""tests/fuzz/fuzz_resp.c, built with ASan and UBSan, for as many rounds as a test may take."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ["resp.c", "resp_inline.c", "resp_reply.c", "commands.c"]
FLAGS = "-std=c11 -D_GNU_SOURCE -Wall -Wextra -Werror -g -O1 -fsanitize=address,undefined -fno-sanitize-recover"
ROUNDS = 60_000


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize("seed", [1, 1_000_000])
def test_random_traffic_under_the_sanitizers(seed: int, tmp_path: Path) -> None:
    binary = tmp_path / "fuzz_resp"
    sources = ["tests/fuzz/fuzz_resp.c", *(f"protocols/redis/{name}" for name in SOURCES)]
    subprocess.run(["gcc", *FLAGS.split(), "-I.", "-Iffi", *sources, "-o", binary], cwd=ROOT, check=True)
    done = subprocess.run([binary, str(ROUNDS), str(seed)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{ROUNDS} rounds")
