"""pymemcache's own integration suite through a leader's sidecar and a follower's: what passes on a plain memcached
passes there, and afterwards all nodes hold the same.

MUSIDECAR_SUITE=required, as in CI, makes a failure of what would be skipped otherwise.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from musidecar.ports import free_ports, give_back
from musidecar.protocols.memcached import driver
from musidecar.protocols.server import Address, BackendError
from musidecar.testbed import Testbed, wait_until
from tests.fault.memcached_load import assert_same

VERSION = "4.0.0"
CACHE = Path(__file__).resolve().parents[2] / "build" / "suites"
SUITE = "pymemcache/test/test_integration.py"


@pytest.fixture(scope="module")
def tree() -> Path:
    """The source distribution, which has the tests: fetched at the first call."""
    folder = CACHE / f"pymemcache-{VERSION}"
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps")
        words = ("--no-binary", ":all:", "-d", work, f"pymemcache=={VERSION}")
        done = subprocess.run([*pip, *words], capture_output=True, text=True)
        if done.returncode != 0:
            reason = f"pymemcache {VERSION} cannot be fetched: {done.stderr.strip()[-300:]}"
            if os.environ.get("MUSIDECAR_SUITE") == "required":
                pytest.fail(reason)
            pytest.skip(reason)
        (archive,) = Path(work).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(work, filter="data")
        (Path(work) / folder.name).rename(folder)
    return folder


def run(tree: Path, port: int) -> dict[str, str]:
    """Test -> PASSED, FAILED, SKIPPED ..., on the server at this port."""
    suite = (sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "-v", "-m", "integration")
    command = [*suite, SUITE, "--server", "127.0.0.1", "--port", str(port)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=150)
    found = dict(re.findall(r"^(\S+::\S.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", done.stdout, re.MULTILINE))
    assert len(found) > 90, done.stdout[-3000:] + done.stderr[-1000:]
    return found


def test_through_the_leader_and_a_follower_it_is_what_it_is_on_a_plain_server(tree: Path) -> None:
    port = free_ports(1)
    plain = subprocess.Popen(plain_command(port), stderr=subprocess.DEVNULL)
    try:
        address = Address(host="127.0.0.1", port=port)
        wait_until("it answers", lambda: answers(address), 10)
        expected = run(tree, port)
    finally:
        plain.kill()
        plain.wait()
        give_back(port)
    passed = [name for name, outcome in expected.items() if outcome == "PASSED"]
    assert len(passed) >= 100
    with Testbed(backend="memcached") as bed:
        status = bed.status()
        for node in (status[status.leader or ""], status.followers[0]):
            found = run(tree, node.client_address[1])
            assert found == expected, {name: how for name, how in found.items() if how != expected.get(name)}
        assert bed.status().term == status.term
        assert_same(bed)
    assert bed.leftovers() == []


def answers(address: Address) -> bool:
    try:
        return driver.attach(address) > 0
    except BackendError:
        return False


def plain_command(port: int) -> list[str]:
    """A memcached on TCP."""
    user = ["-u", "root"] if os.geteuid() == 0 else []
    return ["memcached", "-l", "127.0.0.1", "-p", str(port), "-U", "0", *user]
