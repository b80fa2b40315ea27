"""Tidy: the house's rules that no other tool checks."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FILE_LINES_MAX = 650
FUNCTION_LINES_MAX = 70
SUFFIXES = {".c", ".h", ".py", ".pyi", ".toml", ".txt", ".md", ".sh", ""}
# A file or function that is over the limit today may stay, and may not grow. Take it out when it is mended.
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}


def sources(root: Path) -> list[Path]:
    """Every text file of the project: those git knows, or in an unpacked sdist simply all."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=root, capture_output=True, text=True)
    if done.returncode == 0:
        paths = [root / name for name in done.stdout.split("\0") if name]
    else:
        paths = [path for path in root.rglob("*") if not {".venv", "build"} & set(path.relative_to(root).parts)]
    return [path for path in paths if path.is_file() and not path.is_symlink() and path.suffix in SUFFIXES]


def functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, first line, number of lines) of each C function: from where its declaration starts to the `}` in column 0.

    A declaration starts at a letter in column 0; the brace of a structure or table ends with a semicolon and is passed.
    """
    start, lines = 0, path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        if re.match(r"[A-Za-z_]", line):
            start = number
        elif line == "}" and start:
            name = re.search(r"(\w+)\s*\(", lines[start - 1])
            yield name[1] if name else lines[start - 1], start, number - start + 1


def test_files_are_short(root: Path) -> None:
    found = {}
    for path in sources(root):
        name = str(path.relative_to(root))
        lines = len(path.read_text(errors="replace").splitlines())
        if path.suffix in {".c", ".h", ".py"} and lines > LONG_FILES.get(name, FILE_LINES_MAX):
            found[name] = lines
    assert not found, f"over {FILE_LINES_MAX} lines: {found}"


def test_c_functions_are_short(root: Path) -> None:
    found = {}
    for path in sources(root):
        if path.suffix in {".c", ".h"}:
            for name, start, lines in functions(path):
                if lines > LONG_FUNCTIONS.get(name, FUNCTION_LINES_MAX):
                    found[f"{path.relative_to(root)}:{start} {name}"] = lines
    assert not found, f"over {FUNCTION_LINES_MAX} lines: {found}"


def test_the_measure_sees_a_long_function(tmp_path: Path) -> None:
    path = tmp_path / "a.c"
    body = "    a++;\n" * 80
    table = "struct s {\n    int a;\n};\n"
    path.write_text(f"{table}static int f(int a,\n             int b) {{\n{body}    return a;\n}}\n")
    assert list(functions(path)) == [("f", 4, 84)]


@pytest.mark.parametrize("bare", ["ffi", "protocols"])
def test_the_rooms_are_imported_by_their_full_name(root: Path, bare: str) -> None:
    pattern = re.compile(rf"^\s*(?:import|from) {bare}\b", re.MULTILINE)
    found = [str(path) for path in sources(root) if path.suffix == ".py" and pattern.search(path.read_text())]
    assert not found


def test_nothing_names_a_machine(root: Path) -> None:
    """No absolute path of somebody's home or work folder, no other host's registry."""
    pattern = re.compile(r"/(?:home|root|work|Users)/\w|https?://\S*(?:pypi|index|mirror)\S*/simple")
    found = [
        f"{path.relative_to(root)}:{number}"
        for path in sources(root)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line) and path.name != "test_style.py"
    ]
    assert not found


def test_names_no_header_twice_and_every_header_guarded(root: Path) -> None:
    guards: dict[str, Path] = {}
    for path in sources(root):
        if path.suffix == ".h":
            match = re.search(r"^#ifndef (\w+_H)\n#define \1$", path.read_text(), re.MULTILINE)
            assert match, f"{path}: no include guard"
            assert match[1] not in guards, f"{path} and {guards[match[1]]}: the same include guard"
            guards[match[1]] = path
