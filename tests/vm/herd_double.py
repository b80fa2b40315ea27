"""HERD for the guest's tests: the double (herd/double.c), or a real one, each behind the shim that RoCE needs.

    HERD_MAIN=/path/to/main       a program of HERD's outside /tmp and /run, which the guest has of its own
    HERD_WORKERS=2                its NUM_WORKERS
    HERD_HUGE_PAGES=1200          of 2 MiB, for all HERDs at a time: 8 and, as HERD comes, 576 a worker
    HERD_MEMORY_MB=4608           of the guest; 2048 without

As the guest's root. A wrapper around the program stands for HERD's `main`: it loads the shim, and lets a real HERD's
workers, which never sleep, have only the processor time that nobody else wants.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "herd"
REAL = os.environ.get("HERD_MAIN", "")
WORKERS = int(os.environ.get("HERD_WORKERS", "2"))
HUGE_PAGES = int(os.environ.get("HERD_HUGE_PAGES", "0"))


@dataclass(frozen=True)
class Size:
    """Of a double. clients: a real one has 70. filled: how many keys it has at its start; a real one has 8 Mi.
    preset: another one, in hex."""

    workers: int = WORKERS
    clients: int = 8
    buckets: int = 4096
    filled: int = 64
    preset: str = ""

    def text(self) -> str:
        return " ".join(f"{name}={value}" for name, value in vars(self).items() if value != "")


def _compile(folder: Path, name: str, *words: str) -> Path:
    made = folder / name
    if not made.exists():
        command = ["cc", "-std=c11", "-D_GNU_SOURCE", "-O1", "-o", str(made), *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return made


def main(folder: Path, size: Size | None = None) -> Path:
    """The program to give as `herd_main`, made in `folder`."""
    size = size or Size()
    if REAL:
        assert Path(REAL).exists(), f"HERD_MAIN={REAL}: not there in the guest"
        Path("/proc/sys/vm/nr_hugepages").write_text(f"{HUGE_PAGES}\n")
    shim = _compile(folder, "herd_shim.so", "-shared", "-fPIC", str(SOURCES / "shim.c"), "-libverbs", "-ldl")
    double = [str(SOURCES / "double.c"), "-libverbs", "-lpthread"]
    program = Path(REAL) if REAL else _compile(folder, "herd_double", *double)
    wrapper = folder / f"main-{abs(hash(size)):x}"
    idle = "chrt -i 0 " if REAL else ""
    wrapper.write_text(
        f'#!/bin/sh\nexport HERD_DOUBLE="{size.text()}"\nexec {idle}env LD_PRELOAD={shim} {program} "$@"\n'
    )
    wrapper.chmod(0o700)
    return wrapper


def processes(gate: int) -> tuple[int, int]:
    """HERD's, of the gate with this pid: the master, the workers."""
    children = Path(f"/proc/{gate}/task/{gate}/children").read_text()
    master, workers = (int(pid) for pid in children.split())
    return master, workers
