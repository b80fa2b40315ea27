"""Every scenario has a test that carries its number: 25 traps of one-sided replication, 10 rows of what a stopped or
killed writer may leave behind, 20 rules of the Redis path. docs/proof.md says what they are and names their tests; that
column is written by `python tests/unit/test_named.py`, and compared here.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = "docs/proof.md"
COUNTS = {"trap": 25, "row": 10, "rule": 20}
# Numbers without a test yet: take them out when the test is there.
AWAITED: set[str] = set()
NAME = re.compile(r"test_(trap|row|rule)_(\d\d)_[a-z0-9_]+")
LINE = re.compile(r"\| (trap|row|rule) (\d\d) \| (.*?) \|.*\|")

Found = dict[str, list[str]]  # "trap 07" -> ["sim/test_traps.py: slots_of_the_lap_before", ...]


def names_in(path: Path) -> Iterator[str]:
    """Names of the test functions and methods of a file, in order, without importing it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name


def collect(tests: Path) -> Found:
    """What each number's tests are called, and where they are, relative to `tests`."""
    found: Found = defaultdict(list)
    for path in sorted(tests.rglob("*.py")):
        for name in names_in(path):
            if match := NAME.fullmatch(name):
                words = name.removeprefix(f"test_{match[1]}_{match[2]}_")
                found[f"{match[1]} {match[2]}"].append(f"{path.relative_to(tests)}: {words}")
    return found


def render(text: str, found: Found) -> str:
    """The document with the last column of its tables as it should be."""

    def line(match: re.Match[str]) -> str:
        by_file: dict[str, list[str]] = defaultdict(list)
        for place in found.get(f"{match[1]} {match[2]}", []):
            path, _, words = place.partition(": ")
            by_file[path].append(words)
        tests = "; ".join(f"`{path}`: {', '.join(words)}" for path, words in by_file.items())
        return f"| {match[1]} {match[2]} | {match[3]} | {tests} |"

    return LINE.sub(line, text)


def wanted() -> set[str]:
    return {f"{kind} {number:02}" for kind, count in COUNTS.items() for number in range(1, count + 1)}


def test_every_number_has_a_test() -> None:
    found = collect(ROOT / "tests")
    missing = sorted(wanted() - set(found) - AWAITED)
    assert not missing, f"no test is named after: {', '.join(missing)}"
    assert not AWAITED & set(found), "there are tests for what AWAITED lists: take it out there"
    assert set(found) <= wanted(), f"no such number: {sorted(set(found) - wanted())}"


def test_a_number_has_two_digits_and_words() -> None:
    names = [name for path in (ROOT / "tests").rglob("*.py") for name in names_in(path)]
    almost = [name for name in names if re.match(r"test_(trap|row|rule|r)_?\d", name) and not NAME.fullmatch(name)]
    assert not almost


def test_the_table_names_every_number_and_its_tests() -> None:
    text = (ROOT / TABLE).read_text()
    assert {f"{match[1]} {match[2]}" for match in LINE.finditer(text)} == wanted()
    assert render(text, collect(ROOT / "tests")) == text, f"{TABLE} has drifted: run python tests/unit/test_named.py"


def test_the_collector_sees_functions_methods_and_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "sim").mkdir()
    (tmp_path / "sim" / "test_a.py").write_text(
        "def test_trap_07_some_words(): pass\n"
        "def helper(): pass\n"
        "class TestB:\n    def test_row_02_more(self): pass\n"
        "def test_trap_7_too_short(): pass\n"
    )
    found = collect(tmp_path)
    assert found == {"trap 07": ["sim/test_a.py: some_words"], "row 02": ["sim/test_a.py: more"]}
    text = "| trap 07 | what | old |\n| rule 01 | which | gone |\n"
    assert render(text, found) == "| trap 07 | what | `sim/test_a.py`: some_words |\n| rule 01 | which |  |\n"


if __name__ == "__main__":
    path = ROOT / TABLE
    path.write_text(render(path.read_text(), collect(ROOT / "tests")))
