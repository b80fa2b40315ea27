"""sdist, wheel, an empty environment outside the tree: what a user gets is what was tested."""

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections import Counter
from pathlib import Path

import pytest

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

BUILD_SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"


def run(*command: str | Path, cwd: Path) -> str:
    """The command's output; the test fails with all of it when the command does."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sdist(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing built before is in it and nothing is left in the tree."""
    place = tmp_path_factory.mktemp("sdist")
    skip = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "bench-results")
    shutil.copytree(root, place / "tree", symlinks=True, ignore=skip)
    run(sys.executable, "-c", BUILD_SDIST, place, cwd=place / "tree")
    (found,) = place.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(sdist: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", sdist.parent, sdist, cwd=sdist.parent)
    (found,) = sdist.parent.glob("*.whl")
    return found


def test_sdist_holds_everything_once(sdist: Path, root: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames() if "/" in name]
    assert max(Counter(names).values()) == 1
    assert not [name for name in names if name.startswith(("musidecar/_ffi", "musidecar/protocols")) or ".so" in name]
    for folder in ("ffi", "protocols"):
        wanted = {str(path.relative_to(root)) for path in (root / folder).rglob("*.[ch]")}
        assert wanted <= set(names)
    assert {"LICENSE", "README.md", "ffi/cdef.txt", "configs/cluster.toml", "musidecar/bench/load.c"} <= set(names)


def test_wheel_puts_one_package_into_site_packages(wheel: Path) -> None:
    assert "-cp311-abi3-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"musidecar"}
    for needed in ("_ffi/_core.abi3.so", "protocols/redis/driver.py", "py.typed", "_ffi/_core.pyi", "bench/load.c"):
        assert f"musidecar/{needed}" in names


def test_demo_runs_from_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", wheel, cwd=tmp_path)
    where = run(python, "-c", "import musidecar._ffi; print(musidecar.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path)
    assert run(tmp_path / "venv/bin/musidecar", "--version", cwd=tmp_path).startswith("musidecar ")
    run(tmp_path / "venv/bin/musidecar", "demo", cwd=tmp_path)
