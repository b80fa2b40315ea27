"""The test build of the program: the same sources with -DMUSIDECAR_PLANTS, in build/plants, beside the real one.

In it, mistakes can be planted (ffi/plant.h: name them in the environment variable MUSIDECAR_PLANT of the process), and
the whole process can be made to stop itself at an exact place (ffi/failpoint.h: `arm()` it from outside).
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "plants"
LIBRARY = FOLDER / "lib"
# enum failpoint
PLACES = ("nowhere", "before-hazard", "before-store", "before-tail", "after-store", "settled", "accepted",
          "revoking", "revoked", "granted", "yielded", "answered")  # fmt: skip


@functools.cache
def build() -> Path:
    """Compiles what changed. Returns the folder for PYTHONPATH; with -P, or the working folder comes first."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(FOLDER), "--build-lib", str(LIBRARY),
               "--build-temp", str(FOLDER / "temp")]  # fmt: skip
    with open(FOLDER / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"CFLAGS": "-DMUSIDECAR_PLANTS"}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the test build failed:\n{done.stdout}")
    return LIBRARY


def environment(*plants: str) -> Mapping[str, str]:
    """The environment of a process of the test build, with these mistakes planted (names of ffi/plant.h). For
    `python -P`, which finds the tests too."""
    path = os.pathsep.join([str(build()), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "MUSIDECAR_PLANT": ",".join(plants)}


# ---- fail points -----------------------------------------------------------------------------------------------------


def _mapped_at(pid: int, library: Path) -> int:
    """Where a process has a library; 0 when it has not."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[5] == str(library) and int(words[2], 16) == 0:
            return int(words[0].split("-")[0], 16)
    return 0


@functools.cache
def _offset() -> int:
    """Of `failpoint_armed` from the start of the extension."""
    library = build() / "musidecar" / "_ffi" / "_core.abi3.so"
    word = ctypes.c_uint64.in_dll(ctypes.CDLL(str(library)), "failpoint_armed")
    return ctypes.addressof(word) - _mapped_at(os.getpid(), library)


def arm(pid: int, place: str, passes: int = 0) -> None:
    """The process of the test build stops itself (SIGSTOP) at that place, once it has passed it `passes` times.
    "nowhere" disarms. Raises LookupError when it is no process of the test build."""
    at = _mapped_at(pid, build() / "musidecar" / "_ffi" / "_core.abi3.so")
    if not at:
        raise LookupError(f"process {pid} is none of the test build")
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(at + _offset())
        memory.write(struct.pack("II", PLACES.index(place), passes))  # one aligned word: one store


def armed(pid: int) -> str:
    """Where it will stop; "nowhere" once it has."""
    at = _mapped_at(pid, build() / "musidecar" / "_ffi" / "_core.abi3.so")
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(at + _offset())
        place, _ = struct.unpack("II", memory.read(8))
    return PLACES[place]


def await_stop(pid: int, timeout_s: float = 20.0) -> None:
    """Until the process stands still (state T), whoever's child it is. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        if time.monotonic() > deadline:
            raise TimeoutError(f"process {pid} did not stop in {timeout_s:g} s; armed: {armed(pid)}")
        time.sleep(0.0002)


def resume(pid: int) -> None:
    """SIGCONT."""
    os.kill(pid, signal.SIGCONT)
