"""The verbs fabric under ASan and UBSan, and under TSan: `make vm-sanitize`, which builds what runs here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from musidecar import _ffi

LINKS = 12
TESTS = ("tests/vm/guest/test_fabric.py", "tests/vm/guest/test_hostile_peer.py")
BUILT_BY = "make vm-sanitize (or test-all) builds what this runs"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("rxe0")]


def built(root: Path, name: str) -> Path:
    path = root / "build/sanitized" / name
    if not path.exists():
        pytest.skip(BUILT_BY)
    return path


@pytest.mark.parametrize("kind", ["address", "thread"])
def test_links_made_anew_by_one_thread_while_others_post(root: Path, kind: str) -> None:
    """TSan does not see what a device writes; it sees the threads of one node, which share the links."""
    driver = built(root, f"verbs_links-{kind}")
    done = subprocess.run([driver, str(LINKS)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert done.stdout.startswith(f"{LINKS} links, ")


def test_the_contract_under_asan_and_ubsan(root: Path) -> None:
    """All that TESTS do, with the extension so built put in the place of the other.

    Leaks are not looked for: the interpreter leaves much behind. The driver above is whole without it."""
    core = _ffi._core.__file__
    here = built(root, f"musidecar/_ffi/{Path(core).name}")
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    plugins = [f"-p{name}" for name in ("no:cacheprovider", "pytest_timeout", "_hypothesis_pytestplugin")]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, *TESTS]
    script = 'mount --bind "$1" "$2" && shift 2 && exec env LD_PRELOAD="$1" ASAN_OPTIONS=detect_leaks=0 "${@:2}"'
    line = ["unshare", "--mount", "bash", "-c", script, "bash", str(here), core, runtime.stdout.strip(), *command]
    done = subprocess.run(line, cwd=root, capture_output=True, text=True, env={**os.environ, "PYTHONMALLOC": "malloc"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout
