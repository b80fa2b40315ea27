"""The verbs fabric on soft-RoCE: tests/unit/test_verbs.py, with the contract that shm and sim keep too."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.fabric_contract import DONE, REFUSED
from tests.unit.test_verbs import (  # noqa: F401
    TestCyclingVerbsContract,
    TestLinks,
    TestPermission,
    TestQueues,
    TestVerbsContract,
    VerbsCluster,
    c,
    new_verbs,
)

pytestmark = pytest.mark.usefixtures("rxe0")


@pytest.fixture
def huge_pages() -> Iterator[Path]:
    """Of 2 MiB each: how many the kernel keeps. As it was, afterwards."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text()
    yield setting
    setting.write_text(before)


def huge_pages_free() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("HugePages_Free"))


def test_a_log_lies_on_huge_pages_and_where_there_are_none_says_so(huge_pages: Path) -> None:
    huge_pages.write_text("6\n")
    assert huge_pages_free() == 6, "the guest has no 12 MiB in one piece each"
    cluster = VerbsCluster(3, huge_pages=True)
    try:
        assert huge_pages_free() == 3
        cluster.permit(1, 0)
        cluster.write(0, 1, 64, b"huge" * 100)
        assert cluster.statuses(0) == [DONE]
        assert bytes(cluster.log(1)[64:464]) == b"huge" * 100
        cluster.write(2, 1, 64, b"none")
        assert cluster.statuses(2) == [REFUSED]
    finally:
        cluster.close()
    assert huge_pages_free() == 6
    huge_pages.write_text("0\n")
    with pytest.raises(LookupError, match=r"sysctl vm\.nr_hugepages=2, or verbs\.huge_pages = false"):
        new_verbs(0, huge_pages=True)
