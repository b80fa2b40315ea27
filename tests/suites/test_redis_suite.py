"""Redis's own test suite through a leader's sidecar and a follower's: what passes on a plain server passes there, but
for redis-known.txt; and afterwards all nodes hold the same. A few quick units each time, all with the slow tests.

MUSIDECAR_SUITE=required, as in CI, makes a failure of what would be skipped otherwise.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.fault.cluster import a_follower_of, assert_same_data, leader_of
from tests.suites.redis_suite import UNITS, SuiteError, baseline, cluster, differences, known, prepare, run

QUICK = (
    "unit/protocol", "unit/keyspace", "unit/type/incr", "unit/multi", "unit/quit", "unit/pubsub", "unit/functions",
    "unit/tracking", "unit/bitfield", "unit/info-command",
)  # fmt: skip


@pytest.fixture(scope="module")
def tree() -> Path:
    """The suite's folder."""
    reason = ""
    if shutil.which("tclsh") is None:
        reason = "no tclsh: apt-get install tcl"
    else:
        try:
            return prepare()
        except SuiteError as error:
            reason = str(error)
    if os.environ.get("MUSIDECAR_SUITE") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


def through(way: str, tree: Path, units: tuple[str, ...]) -> None:
    """Runs units through one node of a fresh cluster."""
    expected = baseline(tree, units)
    with cluster() as bed:
        status = bed.status()
        node = leader_of(status) if way == "leader" else a_follower_of(status)
        port = node.client_address[1]
        found = run(tree, port, units, bed)
        assert found.unequal == []
        differ = differences(expected, found)
        again = tuple(unit for unit in units if any(name.startswith(f"{unit}: ") for name in differ))
        if again:  # some of Redis's own tests count on their timing
            print("once more:", differ)
            differ = differences(baseline(tree, again), run(tree, port, again))
        assert not differ, "\n".join(f"{name}: {why}" for name, why in differ.items())
        assert bed.status().term == status.term, "another node leads"
        assert_same_data(bed)
    assert bed.leftovers() == []


@pytest.mark.parametrize("way", ["leader", "follower"])
def test_quick_units(way: str, tree: Path) -> None:
    through(way, tree, QUICK)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("way", ["leader", "follower"])
def test_all_units(way: str, tree: Path) -> None:
    through(way, tree, UNITS)


def test_what_is_known_has_a_reason_and_a_unit() -> None:
    for name, reason in known().items():
        unit, _, test = name.partition(": ")
        assert unit in UNITS and test and len(reason) > 10, name
