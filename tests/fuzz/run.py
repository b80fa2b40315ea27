"""Builds the harnesses fuzz_<parser>.c and fuzz_<parser>.py, runs them with libFuzzer, or replays inputs.

    run.py run [--minutes M | --executions N] [--parser NAME]   all in turn; exit 1 on a crash, its input is kept
    run.py replay [--sanitize LIST] [--parser NAME] [FILE...]   once over the corpus (or FILEs), with gcc
    run.py minimise [--parser NAME]                             the corpus anew, from what the runs found

A corpus is in corpus/<parser>; `regression-*` in it are inputs that broke something once, and stay. What a run finds
goes to build/fuzz/<parser>/found.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "fuzz"
BUILD = ROOT / "build" / "fuzz"
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O2", "-g", "-fno-omit-frame-pointer"]
FLAGS += ["-fno-sanitize-recover=all"]
LINK = ["-lpthread", "-lm", "-Wl,--allow-multiple-definition"]  # a harness's own definition comes first
INCLUDES = ["-I.", "-Iffi", "-Itests/fuzz"]
CORE = ("ffi/core", "ffi/fabric", "ffi/engine", "ffi/gate", "protocols/*")
FUZZER_SANITIZERS = "address,undefined"
COMPARISONS = [f"__sanitizer_cov_trace_{kind}cmp{size}" for kind in ("", "const_") for size in (1, 2, 4, 8)]
UNTRACED = [f"-Wl,--wrap={name}" for name in COMPARISONS]
PROGRESS_S = 5.0
CLANGS = ("clang-14", "clang")


@dataclass(frozen=True)
class Parser:
    """One harness. `bytes_max`: longest input. `is_long`: one execution does much; then libFuzzer is not told what is
    compared with what, which would take more than half of the time."""

    name: str
    bytes_max: int
    dictionary: str | None = None
    is_long: bool = False

    @property
    def is_python(self) -> bool:
        return not (HERE / f"fuzz_{self.name}.c").exists()

    @property
    def corpus(self) -> Path:
        return HERE / "corpus" / self.name

    @property
    def folder(self) -> Path:
        return BUILD / self.name


PARSERS = {
    parser.name: parser
    for parser in (
        Parser("requests", 192, "redis.dict", is_long=True),
        Parser("replies", 128, "redis.dict"),
        Parser("psync", 320, "redis.dict"),
        Parser("role", 128, "redis.dict"),
        Parser("feed", 192, "redis.dict"),
        Parser("memcached", 256, "memcached.dict", is_long=True),
        Parser("memcached_replies", 128, "memcached.dict"),
        Parser("frames", 448),
        Parser("records", 160, is_long=True),
        Parser("payloads", 160, is_long=True),
        Parser("lines", 160, "lines.dict"),
        Parser("own", 192),
        Parser("herd", 320, "herd.dict", is_long=True),
        Parser("gate", 320, "gate.dict", is_long=True),
        Parser("mesh", 256, "mesh.dict"),
    )
}


# ---- building --------------------------------------------------------------------------------------------------------


def clang() -> str | None:
    """The compiler that has libFuzzer, or None."""
    target = b"int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return d && n ? 0 : 0; }"
    for name in filter(shutil.which, CLANGS):
        command = [name, f"-fsanitize=fuzzer,{FUZZER_SANITIZERS}", "-x", "c", "-", "-o", os.devnull]
        if subprocess.run(command, input=target, capture_output=True).returncode == 0:
            return name
    return None


def has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None


def run_compiler(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"fuzz: {' '.join(map(str, command))}\n{done.stderr}")


def stale(target: Path, source: Path, headers_time: float) -> bool:
    if not target.exists():
        return True
    built = target.stat().st_mtime
    return built < source.stat().st_mtime or built < headers_time


def headers_time() -> float:
    """When anything that is included was last changed."""
    files = [*ROOT.glob("ffi/**/*.h"), *ROOT.glob("protocols/**/*.h"), *HERE.glob("*.h"), HERE / "run.py"]
    return max(path.stat().st_mtime for path in files)


def build_core(compiler: str, sanitize: Sequence[str], folder: Path) -> Path:
    """The product's C code as an archive: of what a harness stands in for, nothing is taken from it."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(path for room in CORE for path in ROOT.glob(f"{room}/*.c"))
    newest = headers_time()
    jobs = []
    for source in sources:
        target = folder / ("_".join(source.relative_to(ROOT).parts)[:-2] + ".o")
        if stale(target, source, newest):
            jobs.append([compiler, *FLAGS, *INCLUDES, *sanitize, "-c", source, "-o", target])
    archive = folder / "core.a"
    if jobs or not archive.exists():
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(run_compiler, jobs))
        archive.unlink(missing_ok=True)
        run_compiler(["ar", "rcs", archive, *sorted(folder.glob("*.o"))])
    return archive


def build(parsers: Sequence[Parser], compiler: str, kind: str, sanitize: str, libfuzzer: bool) -> dict[str, list[str]]:
    """How each parser's harness is started. `kind` names the folder of this way of building."""
    core = BUILD / "core" / kind
    flags = [f"-fsanitize={'fuzzer-no-link,' if libfuzzer else ''}{sanitize}"]
    compiled = [parser for parser in parsers if not parser.is_python]
    archive = build_core(compiler, flags, core) if compiled else None
    main = [f"-fsanitize=fuzzer,{sanitize}"] if libfuzzer else [*flags, str(HERE / "replay.c")]
    jobs = []
    for parser in compiled:
        assert archive is not None
        source, target = HERE / f"fuzz_{parser.name}.c", core / f"fuzz_{parser.name}"
        if stale(target, source, max(headers_time(), archive.stat().st_mtime)):
            quiet = [*UNTRACED, str(HERE / "untraced.c")] if libfuzzer and parser.is_long else []
            jobs.append([compiler, *FLAGS, *INCLUDES, *main, source, *quiet, archive, *LINK, "-o", target])
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(run_compiler, jobs))
    return {
        parser.name: [sys.executable, str(HERE / f"fuzz_{parser.name}.py")]
        if parser.is_python
        else [str(core / f"fuzz_{parser.name}")]
        for parser in parsers
    }


def build_fuzzers(parsers: Sequence[Parser]) -> dict[str, list[str]]:
    compiler = clang()
    if compiler is None or (any(p.is_python for p in parsers) and not has_atheris()):
        raise SystemExit("fuzz: clang with libFuzzer and atheris are needed: tools/setup --fuzz installs them")
    return build(parsers, compiler, "libfuzzer", FUZZER_SANITIZERS, libfuzzer=True)


# ---- running ---------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What one parser's run came to."""

    parser: str
    executions: int = 0
    seconds: float = 0.0
    edges: int = 0
    inputs: int = 0
    crashes: tuple[Path, ...] = ()
    failed: bool = False


STATUS = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: \d+ corp: (\d+)")


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


class Progress:
    """One line every few seconds, from what libFuzzer printed last."""

    def __init__(self, result: Result, limit: str) -> None:
        self.result, self.limit = result, limit
        self.began = time.monotonic()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.over.wait(PROGRESS_S):
            self.say()

    def say(self) -> None:
        r, elapsed = self.result, time.monotonic() - self.began
        rest = f"{r.executions:>12,} executions, {r.edges} edges, {r.inputs} inputs"
        print(f"fuzz: {r.parser:<9} {clock(elapsed)} of {self.limit}  {rest}", flush=True)

    def end(self) -> None:
        self.over.set()
        self.thread.join()
        self.result.seconds = time.monotonic() - self.began


def environment() -> dict[str, str]:
    return os.environ | {
        # A small quarantine: what is used after it was freed is used soon, and memory stays in the cache. Who allocated
        # is told by four frames: to walk up the stack at each allocation took a sixth of the time.
        "ASAN_OPTIONS": "detect_leaks=1:quarantine_size_mb=1:malloc_context_size=4",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(ROOT),
    }


def run_parser(parser: Parser, start: Sequence[str], limits: Sequence[str], limit_text: str, seed: int) -> Result:
    found = parser.folder / "found"
    found.mkdir(parents=True, exist_ok=True)
    parser.corpus.mkdir(parents=True, exist_ok=True)
    before = set(parser.folder.iterdir())
    command = [*start, *limits, f"-max_len={parser.bytes_max}", f"-artifact_prefix={parser.folder}/"]
    command += ["-print_final_stats=1", "-timeout=20", "-rss_limit_mb=4096", f"-seed={seed}"]
    if parser.dictionary is not None:
        command.append(f"-dict={HERE / parser.dictionary}")
    command += [str(found), str(parser.corpus)]
    result, output = Result(parser.name), []
    progress = Progress(result, limit_text)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if match := STATUS.match(line):
                result.executions, result.edges, result.inputs = map(int, match.groups())
            elif line.startswith("stat::number_of_executed_units:"):
                result.executions = int(line.split()[1])
            else:
                output.append(line)
                del output[:-200]
    progress.end()
    result.crashes = tuple(sorted(set(parser.folder.iterdir()) - before))
    result.failed = process.returncode != 0
    if result.failed:
        sys.stdout.write("".join(output))
    return result


def table(results: Sequence[Result]) -> str:
    rows = [("parser", "executions", "exec/s", "edges", "inputs", "time", "crashes")]
    for r in results:
        speed = f"{r.executions / max(r.seconds, 0.001):,.0f}"
        crashes = str(max(len(r.crashes), int(r.failed)))
        rows.append((r.parser, f"{r.executions:,}", speed, str(r.edges), str(r.inputs), clock(r.seconds), crashes))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths[0] *= -1
    return "\n".join(
        "  ".join(f"{cell:{'<' if w < 0 else '>'}{abs(w)}}" for cell, w in zip(row, widths, strict=True))
        for row in rows
    )


def fuzz(parsers: Sequence[Parser], seconds_each: float, executions: int | None, seed: int) -> list[Result]:
    """All in turn: each for so many seconds, or until it has run so often."""
    starts = build_fuzzers(parsers)
    if executions is not None:
        limits, text = [f"-runs={executions}"], f"{executions:,} executions"
    else:
        limits, text = [f"-max_total_time={max(1, int(seconds_each))}"], clock(seconds_each)
    return [run_parser(parser, starts[parser.name], limits, text, seed) for parser in parsers]


def report(results: Sequence[Result]) -> int:
    print(table(results))
    for r in results:
        for path in r.crashes:
            print(f"fuzz: {r.parser} broke. Its input is kept; to see it again:")
            print(f"  {sys.executable} tests/fuzz/run.py replay --parser {r.parser} {path}")
    return 1 if any(r.failed for r in results) else 0


# ---- the corpus ------------------------------------------------------------------------------------------------------


def replay(parsers: Sequence[Parser], files: Sequence[str], sanitize: str) -> int:
    """Once over every input of the corpora (or the files), without libFuzzer. The number of parsers that failed."""
    starts = build(parsers, os.environ.get("CC", "gcc"), sanitize.replace(",", "-"), sanitize, libfuzzer=False)
    failures = 0
    for parser in parsers:
        paths = list(files) or [str(parser.corpus)]
        begin = [*starts[parser.name], *(["--replay"] if parser.is_python else [])]
        done = subprocess.run(
            [*begin, *paths], cwd=ROOT, env=environment(), capture_output=True, text=True, errors="replace"
        )
        print(f"fuzz: {parser.name}: {done.stdout.strip() or 'no inputs'}", flush=True)
        if done.returncode != 0:
            failures += 1
            sys.stdout.write(done.stderr)
    return failures


def minimise(parsers: Sequence[Parser], files_max: int) -> None:
    """The smallest set of inputs that reaches all that the corpus and what was found reach; regressions stay."""
    for parser in parsers:
        start = build_fuzzers([parser])[parser.name]
        fresh = parser.folder / "minimised"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        folders = [path for path in (parser.corpus, parser.folder / "found") if path.exists()]
        if parser.is_python:  # merging starts the harness anew, which atheris cannot
            for path in (path for folder in folders for path in folder.iterdir()):
                shutil.copyfile(path, fresh / hashlib.sha1(path.read_bytes()).hexdigest())
        else:
            command = [*start, "-merge=1", f"-max_len={parser.bytes_max}", str(fresh), *map(str, folders)]
            subprocess.run(command, cwd=ROOT, env=environment(), check=True, stderr=subprocess.DEVNULL)
        for path in parser.corpus.iterdir():
            if not path.name.startswith("regression-"):
                path.unlink()
        # Merging takes small ones first, each for something no earlier one has: the first are the most worth.
        kept = sorted(fresh.iterdir(), key=lambda path: path.stat().st_size)
        step = max(1.0, len(kept) / files_max)
        for i in range(min(files_max, len(kept))):
            path = kept[int(i * step)]
            shutil.copyfile(path, parser.corpus / path.name[:12])
        print(f"fuzz: {parser.name}: {len(kept)} inputs matter, {len(list(parser.corpus.iterdir()))} kept")


# ---- the command line ------------------------------------------------------------------------------------------------


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=("run", "replay", "minimise"))
    arguments.add_argument("files", nargs="*")
    arguments.add_argument("--parser", choices=sorted(PARSERS))
    arguments.add_argument("--minutes", type=float, default=5.0, help="for all parsers together")
    arguments.add_argument("--executions", type=int, help="of each parser, however long they take")
    arguments.add_argument("--sanitize", default="address,undefined")
    arguments.add_argument("--seed", type=int, default=0, help="0: another one each time")
    arguments.add_argument("--files-max", type=int, default=40)
    given = arguments.parse_intermixed_args()
    parsers = [PARSERS[given.parser]] if given.parser else list(PARSERS.values())
    if given.what == "replay":
        return 1 if replay(parsers, given.files, given.sanitize) else 0
    if given.what == "minimise":
        minimise(parsers, given.files_max)
        return 0
    return report(fuzz(parsers, given.minutes * 60 / len(parsers), given.executions, given.seed))


if __name__ == "__main__":
    sys.exit(main())
