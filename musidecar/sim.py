"""`musidecar-sim`: the simulator of the replication core. One seed decides everything that happens in a run.

The program itself is C (tests/sim, over ffi/core and ffi/fabric/sim.c). It is compiled where it is first used, from the
sources of the tree; an installation without them says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-I.", "-Iffi", "-DMUSIDECAR_SIMULATED")
FAST = ("-O2", "-g")
PLANTED = "-DMUSIDECAR_PLANTS"
CHUNK = 50  # seeds that one process runs
LINE_S = 10.0  # between two lines of progress, into a file


class SimulatorError(Exception):
    """It cannot be built here, or did not understand what it was told."""


@dataclass
class Counts:
    """What the seeds that ran had in them, added up; `seconds` of processor time of the simulator."""

    seeds: int = 0
    seconds: float = 0
    core_steps: int = 0
    numbers: dict[str, int] = field(default_factory=dict)

    def add(self, said: dict[str, float]) -> None:
        self.seeds += int(said["seeds"])
        self.seconds += said["seconds"]
        self.core_steps += int(said["core_steps"])
        for name, number in said.items():
            if name not in {"seeds", "seconds", "core_steps"}:
                most = name.endswith("_max")
                before = self.numbers.get(name, 0)
                self.numbers[name] = max(before, int(number)) if most else before + int(number)


@dataclass(frozen=True)
class Outcome:
    """Of one process: is everything as it must be, what was said, and the counts (empty if it could not tell)."""

    sound: bool
    said: str
    counts: dict[str, float]


# ---- building -------------------------------------------------------------------------------------------------------


def sources(root: Path = ROOT) -> list[Path]:
    """The C files of the simulator. Raises SimulatorError when they are not all there."""
    found = sorted((root / "tests/sim").glob("*.c")) + sorted((root / "ffi/core").glob("*.c"))
    found.append(root / "ffi/fabric/sim.c")
    if not (root / "tests/sim/simulate.c").exists() or not found[-1].exists():
        raise SimulatorError(
            "the simulator is compiled from the source tree (tests/sim, ffi), which this installation does not have:"
            " run it from a checkout or an unpacked sdist"
        )
    return found


def program(flags: Sequence[str] = FAST, root: Path = ROOT) -> Path:
    """The compiled simulator, from build/sim of the tree (or a temporary folder when that cannot be written).
    Compiled again when a source or a flag has changed. Raises SimulatorError."""
    files = sources(root)
    headers = sorted([*root.glob("tests/sim/*.h"), *root.glob("ffi/*.h"), *root.glob("ffi/core/*.h")])
    headers += sorted(root.glob("ffi/fabric/*.h"))
    digest = hashlib.sha256(" ".join(flags).encode())
    for path in (*files, *headers):
        digest.update(path.read_bytes())
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise SimulatorError("the simulator needs a C compiler: apt-get install gcc")
    folder = root / "build/sim"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / f"musidecar-sim-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"simulate-{digest.hexdigest()[:16]}"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            made = path.with_suffix(".new")
            line = [compiler, *FLAGS, *flags, "-o", str(made), *(str(file.relative_to(root)) for file in files)]
            done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SimulatorError(done.stderr)
            made.rename(path)
    return path


# ---- running --------------------------------------------------------------------------------------------------------


def run(built: Path, options: Iterable[str], timeout_s: float | None = None,
        under_way: set[subprocess.Popen[str]] | None = None) -> Outcome:
    """Runs the program once; meanwhile its process is one of those `under_way`, for somebody else to kill. Raises
    SimulatorError when it did not understand the options, TimeoutExpired."""
    line = [str(built), *options]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if under_way is not None:
            under_way.add(process)
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
            if under_way is not None:
                under_way.discard(process)
    if process.returncode == 2:
        raise SimulatorError(f"not understood: {' '.join(line[1:])}")
    lines = stdout.splitlines()
    counts = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    said = "\n".join([*stderr.splitlines(), *(lines[:-1] if counts else lines)])
    return Outcome(process.returncode == 0, said, counts)


def chunks(first: int, seeds: int) -> Iterator[tuple[int, int]]:
    """(first seed, number of seeds) of the processes to run."""
    for at in range(first, first + seeds, CHUNK):
        yield at, min(CHUNK, first + seeds - at)


def run_all(built: Path, first: int, seeds: int, options: Sequence[str], jobs: int) -> tuple[Counts, str | None]:
    """Runs seeds on `jobs` processors, with a progress line (where that is not a terminal: one every `LINE_S`), until
    one violates something: then what it said. An exception, SIGINT's for one, leaves no process behind."""
    counts, broken, waiting = Counts(), None, chunks(first, seeds)
    under_way: set[subprocess.Popen[str]] = set()
    start = said_s = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} seeds"),
               TextColumn("{task.fields[speed]}"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task("simulating", total=seeds, speed="")
        running: set[Future[Outcome]] = set()
        try:
            while True:
                while len(running) < jobs and broken is None and (chunk := next(waiting, None)):
                    line = ["--seed", str(chunk[0]), "--seeds", str(chunk[1]), *options]
                    running.add(pool.submit(run, built, line, None, under_way))
                if not running:
                    return counts, broken
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    outcome = future.result()
                    if outcome.counts:
                        counts.add(outcome.counts)
                    if not outcome.sound:
                        broken = outcome.said
                seconds = time.monotonic() - start
                speed = f"{counts.seeds / seconds:.0f} seeds/s, {counts.core_steps / seconds / 1e3:.0f}k core steps/s"
                progress.update(task, completed=counts.seeds, speed=speed)
                if not progress.console.is_terminal and time.monotonic() - said_s > LINE_S:
                    said_s = time.monotonic()
                    print(f"{counts.seeds:,} of {seeds:,} seeds in {seconds:.0f} s, {speed}", flush=True)
        except BaseException:
            for process in list(under_way):
                process.kill()
            raise


def report(counts: Counts) -> str:
    """One line."""
    speed = f"{counts.core_steps / max(counts.seconds, 1e-9):,.0f} core steps/s on one processor"
    rest = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in counts.numbers.items())
    return f"{counts.seeds:,} seeds, {counts.core_steps:,} core steps, {speed}; {rest}"


@click.command("musidecar-sim")
@click.option("--seed", default=1, show_default=True, help="The seed, or the first of them.")
@click.option("--seeds", default=1, show_default=True, help="How many, on all processors.")
@click.option("--steps", default=2000, show_default=True, help="Steps of the world before the faults stop.")
@click.option("--replicas", type=click.IntRange(0, 5), default=0, help="0: 3 or 5, as the seed says.")
@click.option("--trace", is_flag=True, help="One line per event.")
@click.option("--weights", help="How often what happens, e.g. crash=3,pause=10; names: --faults.")
@click.option("--script", help="What happens, instead of chance: 'STEP FAULT [A [B [VALUE]]]; ...'.")
@click.option("--plant", help="Mistakes to plant (see ffi/plant.h), separated by commas.")
@click.option("--faults", is_flag=True, help="Lists the faults.")
@click.option("--jobs", default=os.cpu_count() or 1, help="Processors to use for several seeds.")
def main(seed: int, seeds: int, steps: int, replicas: int, trace: bool, weights: str | None, script: str | None,
         plant: str | None, faults: bool, jobs: int) -> None:
    """Replays one seed of the deterministic simulator, or runs many. Exit 1 when something was violated: then the last
    lines say what, and how to see it again."""
    try:
        built = program((*FAST, PLANTED) if plant else FAST)
        if faults:
            sys.exit(subprocess.run([built, "--faults"], check=False).returncode)
        options = ["--steps", str(steps), "--replicas", str(replicas)]
        for name, value in (("--weights", weights), ("--script", script), ("--plant", plant)):
            options += [name, value] if value else []
        if seeds == 1:
            line = [str(built), "--seed", str(seed), *options, *(["--trace"] if trace else [])]
            sys.exit(subprocess.run(line, check=False).returncode)
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        counts, broken = run_all(built, seed, seeds, options, jobs)
    except SimulatorError as error:
        raise click.ClickException(str(error)) from error
    print(report(counts))
    if broken is not None:
        sys.exit(broken)


if __name__ == "__main__":
    main()
