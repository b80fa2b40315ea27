"""Redis's own test suite, run against a server that is there already: a plain one, then a sidecar of a cluster.

The suite is that of Debian's source package of the redis-server installed here, fetched with apt into build/suites.
Each unit (tests/unit/type/list ...) is a run of its own, so that one that hangs costs only itself.
Results are compared by test name; what differs must stand in redis-known.txt, with its reason.

    python -m tests.suites.redis_suite [--unit unit/type/list ...] [--through plain leader follower]

prints what failed, and whether all nodes held the same after each unit. All of it takes about five minutes a way.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import redis

from musidecar.compare import compare, compare_logs
from musidecar.ports import free_ports, give_back
from musidecar.testbed import Testbed

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "suites"
KNOWN = Path(__file__).with_name("redis-known.txt")
PROGRAMS = ("redis-server", "redis-cli", "redis-benchmark", "redis-check-aof", "redis-check-rdb")
SERVER_OPTIONS = ("--enable-debug-command", "yes", "--enable-protected-configs", "yes")
UNIT_TIMEOUT_S = 150.0
CONTROL_PORTS = 32  # so far below its base port the suite looks for one of its own: not well, where others run it too
LINE = re.compile(r"^\[(ok|err|ignore|exception)\]: (.*)$")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
UNITS = (  # those that have tests for a server that is there already
    "unit/printver", "unit/dump", "unit/auth", "unit/protocol", "unit/keyspace", "unit/scan", "unit/info",
    "unit/info-command", "unit/type/string", "unit/type/incr", "unit/type/list", "unit/type/list-2", "unit/type/list-3",
    "unit/type/set", "unit/type/zset", "unit/type/hash", "unit/type/stream", "unit/type/stream-cgroups", "unit/sort",
    "unit/expire", "unit/other", "unit/multi", "unit/quit", "unit/aofrw", "unit/acl", "unit/acl-v2",
    "unit/latency-monitor", "integration/logging", "integration/redis-cli", "integration/redis-benchmark",
    "integration/dismiss-mem", "unit/pubsub", "unit/pubsubshard", "unit/slowlog", "unit/scripting", "unit/functions",
    "unit/maxmemory", "unit/introspection", "unit/introspection-2", "unit/limits", "unit/obuf-limits", "unit/bitops",
    "unit/bitfield", "unit/geo", "unit/memefficiency", "unit/hyperloglog", "unit/lazyfree", "unit/wait", "unit/pause",
    "unit/querybuf", "unit/pendingquerybuf", "unit/tracking", "unit/networking", "unit/violations", "unit/replybufsize",
)  # fmt: skip


class SuiteError(Exception):
    """The suite cannot be had, or not be run."""


# ---- the suite -------------------------------------------------------------------------------------------------------


def package_version() -> str:
    """Version of the installed redis-server package, e.g. "5:7.0.15-1~deb12u10"."""
    done = subprocess.run(["dpkg-query", "-W", "-f=${Version}", "redis-server"], capture_output=True, text=True)
    if done.returncode != 0:
        raise SuiteError(f"redis-server is not installed from Debian's package: {done.stderr.strip()}")
    return done.stdout.strip()


def prepare() -> Path:
    """The suite's folder, fetched and set up at the first call."""
    version = package_version()
    tree = CACHE / f"redis-{version.split(':')[-1]}"
    if not (tree / "src" / "redis-cli").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=CACHE))
        try:
            unpacked = _fetch(version, work)
            for program in PROGRAMS:
                found = shutil.which(program)
                if found is None:
                    raise SuiteError(f"no {program} on PATH: install redis-tools")
                (unpacked / "src" / program).unlink(missing_ok=True)
                (unpacked / "src" / program).symlink_to(found)
            shutil.rmtree(tree, ignore_errors=True)
            unpacked.rename(tree)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return tree


def _fetch(version: str, work: Path) -> Path:
    """Downloads the source package with apt, from where packages come from, and unpacks it."""
    sources = work / "deb-src.sources"
    texts = [p.read_text() for p in Path("/etc/apt/sources.list.d").glob("debian.sources")]
    sources.write_text(re.sub(r"(?m)^Types:.*$", "Types: deb-src", "\n".join(texts)))
    if not texts:
        sources = work / "deb-src.list"
        lines = Path("/etc/apt/sources.list").read_text().splitlines()
        sources.write_text("\n".join("deb-src" + line[3:] for line in lines if line.startswith("deb ")))
    (work / "lists" / "partial").mkdir(parents=True)
    (work / "cache" / "archives" / "partial").mkdir(parents=True)
    options = {
        "Dir::Etc::sourcelist": sources, "Dir::Etc::sourceparts": "/dev/null", "Dir::State::lists": work / "lists",
        "Dir::Cache": work / "cache", "Acquire::Retries": 3,
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    if shutil.which(apt[0]) is None:
        raise SuiteError("no apt-get to fetch Debian's source package with")
    for words in (["update"], ["source", "--download-only", f"redis={version}"]):
        done = subprocess.run([*apt, *words], cwd=work, capture_output=True, text=True)
        if done.returncode != 0:
            raise SuiteError(f"apt-get {' '.join(words)}: {done.stderr.strip()}")
    archive = next(work.glob("redis_*.orig.tar.*"))
    (work / "tree").mkdir()
    subprocess.run(["tar", "xf", str(archive), "-C", str(work / "tree"), "--strip-components=1"], check=True)
    return work / "tree"


# ---- what it runs against --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def plain_server() -> Iterator[int]:
    """The port of a fresh redis-server with the options that the suite needs."""
    port = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            ["redis-server", "--port", str(port), "--save", "", "--dir", folder, *SERVER_OPTIONS],
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_answers(port)
            yield port
        finally:
            server.kill()
            server.wait()


def _wait_answers(port: int) -> None:
    deadline = time.monotonic() + 15
    ping = ["redis-cli", "-p", str(port), "ping"]
    while subprocess.run(ping, capture_output=True, text=True).stdout.strip() != "PONG":
        if time.monotonic() > deadline:
            raise SuiteError(f"nothing answers on port {port}")
        time.sleep(0.05)


@contextlib.contextmanager
def cluster() -> Iterator[Testbed]:
    """A cluster whose backends have the same options: a `redis-server` of that name stands in front on PATH."""
    real = shutil.which("redis-server")
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder) / "redis-server"
        wrapper.write_text(f'#!/bin/sh\nexec {real} "$@" {" ".join(SERVER_OPTIONS)}\n')
        wrapper.chmod(0o755)
        with Testbed(env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}) as bed:
            yield bed


# ---- running it ------------------------------------------------------------------------------------------------------


@dataclass
class Results:
    """What became of the tests: names are "unit: test"."""

    ok: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)  # name -> how
    unequal: list[str] = field(default_factory=list)  # what the nodes did not hold alike after a unit
    seconds: float = 0.0

    def add(self, other: Results) -> None:
        """Takes another unit's in."""
        self.ok |= other.ok
        self.failed |= other.failed
        self.unequal += other.unequal
        self.seconds += other.seconds


def run_unit(
    tree: Path, port: int, unit: str, skip: Sequence[str] = (), timeout_s: float = UNIT_TIMEOUT_S
) -> Results:
    """Runs one unit against the server on `port` of this host, without the tests of the names in `skip`."""
    control = free_ports(1)
    command = ["tclsh", "tests/test_helper.tcl", "--host", "127.0.0.1", "--port", str(port), "--tags", "-slow",
               "--durable", "--clients", "1", "--single", unit, "--timeout", "90",
               "--baseport", str(control + CONTROL_PORTS)]  # fmt: skip
    command += [word for name in skip for word in ("--skiptest", name)]
    since = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, cwd=tree, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
        ended = True
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            ended = False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
            give_back(control)
        output.seek(0)
        text = COLOUR.sub("", output.read().decode(errors="replace"))
    results = read_output(unit, text)
    results.seconds = time.monotonic() - since
    if not ended:
        results.failed[f"{unit}: (the unit)"] = f"not done after {timeout_s:g} s"
    elif process.returncode != 0 and not results.failed:
        results.failed[f"{unit}: (the unit)"] = f"exit code {process.returncode}: {text[-500:]}"
    return results


def read_output(unit: str, text: str) -> Results:
    """What `runtest` printed. A name that comes twice in a unit is told apart by its number."""
    results = Results()
    seen: dict[str, int] = {}
    lines = text.splitlines()
    for i, line in enumerate(lines):
        match = LINE.match(line)
        if match is None or match[1] == "ignore":
            continue
        name = re.sub(r" \(\d+ ms\)$", "", match[2]) if match[1] == "ok" else match[2].split(f" in tests/{unit}")[0]
        name = re.sub(r"0x[0-9a-f]+|\b\d{6,}\b|seed \d+|\d+\.\d+ ?(s|sec|seconds)\b", "#", name)
        seen[name] = seen.get(name, 0) + 1
        full = f"{unit}: {name}" + (f" #{seen[name]}" if seen[name] > 1 else "")
        if match[1] == "ok":
            results.ok.add(full)
        else:
            why = " | ".join(part.strip() for part in lines[i + 1 : i + 4] if part.strip())
            results.failed[full] = why[:400]
    return results


def unequal(bed: Testbed) -> list[str]:
    """What the nodes do not hold alike: data (DUMP, PEXPIRETIME, XINFO FULL, FUNCTION DUMP) at equal offsets; logs."""
    try:
        return compare(bed.backends(bed.status())).differences + compare_logs(bed.status)
    except redis.exceptions.RedisError as error:  # a unit that was cut short has left a script running, say
        return [f"cannot be compared: {error}"]


def run(
    tree: Path, port: int, units: Sequence[str], bed: Testbed | None = None, tell: bool = False,
    with_known: bool = False,
) -> Results:
    """Runs units one after the other; `bed`: whose nodes are compared after each. Tests that are known to fail are left
    out, unless `with_known`: one that fails half-way leaves its connection, inside MULTI perhaps, and its settings to
    those behind it."""
    results, listed = Results(), [] if with_known else [name.partition(": ") for name in known()]
    for unit in units:
        part = run_unit(tree, port, unit, [name for of, _, name in listed if of == unit])
        if bed is not None:
            part.unequal = [f"after {unit}: {what}" for what in unequal(bed)]
        results.add(part)
        if tell:
            print(f"{unit}: {len(part.ok)} ok, {len(part.failed)} failed, {part.seconds:.1f} s", flush=True)
            for name, why in part.failed.items():
                print(f"    {name}\n        {why}", flush=True)
            for what in part.unequal:
                print(f"    {what}", flush=True)
    return results


def baseline(tree: Path, units: Sequence[str]) -> set[str]:
    """Names of the tests that pass on a plain server; kept in build/suites between runs."""
    kept = CACHE / f"{tree.name}.json"
    have: dict[str, list[str]] = json.loads(kept.read_text()) if kept.exists() else {}
    for unit in units:
        if unit not in have:
            with plain_server() as port:  # a fresh one: a unit leaves its settings behind
                results = run_unit(tree, port, unit)
            if not results.ok and results.failed:
                raise SuiteError(f"{unit} does not run on a plain server: {results.failed}")
            have[unit] = sorted(results.ok)
            kept.write_text(json.dumps(have, indent=1))
    return {name for unit in units for name in have[unit]}


def known() -> dict[str, str]:
    """redis-known.txt: name of the test -> why it differs."""
    rows = {}
    for number, line in enumerate(KNOWN.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, tab, reason = line.partition("\t")
        if not tab or not reason.strip():
            raise SuiteError(f"{KNOWN.name}:{number}: no reason given")
        rows[name.strip()] = reason.strip()
    return rows


def differences(expected: set[str], results: Results) -> dict[str, str]:
    """Tests that pass on a plain server and not here, without those that are known: name -> what was seen."""
    listed = known()
    return {
        name: results.failed.get(name, "did not run")
        for name in sorted(expected - results.ok)
        if name not in listed
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--unit", action="append", choices=UNITS, metavar="UNIT", help="only this one (repeatable)")
    parser.add_argument("--through", nargs="+", choices=("plain", "leader", "follower"), default=["leader", "follower"])
    parser.add_argument("--with-known", action="store_true", help="run those of redis-known.txt, too")
    options = parser.parse_args(argv)
    units = options.unit or UNITS
    tree = prepare()
    expected = baseline(tree, units)
    print(f"{len(expected)} tests pass on a plain redis-server")
    wrong = False
    for way in options.through:
        with contextlib.ExitStack() as stack:
            bed = None
            if way == "plain":
                port = stack.enter_context(plain_server())
            else:
                bed = stack.enter_context(cluster())
                status = bed.status()
                leads = status[status.leader or ""]
                port = (leads if way == "leader" else status.followers[0]).client_address[1]
            results = run(tree, port, units, bed, tell=True, with_known=options.with_known)
        differ = differences(expected, results)
        print(f"{way}: {len(expected & results.ok)} of {len(expected)}, {results.seconds:.0f} s")
        for name, why in differ.items():
            print(f"  {name}\t{why}")
        if way != "plain":
            same = "\n  ".join(["not the same on all nodes:", *results.unequal])
            print(same if results.unequal else "data and logs of all nodes: the same after every unit")
        wrong = wrong or bool(differ or results.unequal)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
