"""The load generator in C (load.c), compiled when it is first needed, and one run of it."""

from __future__ import annotations

import functools
import json
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("load.c")
VALUE_BYTES = 64
KEYS = 10_000


class GeneratorError(Exception):
    """It could not be built, or a server closed its connections."""


@dataclass(frozen=True)
class Shape:
    """Connections, and requests each keeps under way."""

    connections: int
    pipeline: int

    def __str__(self) -> str:
        return f"{self.connections}x{self.pipeline}"


@dataclass(frozen=True)
class Sample:
    """What one run of the generator measured: completed requests (SET+WAIT pairs when waiting) a second, latency of a
    batch of `pipeline` requests, and error replies."""

    rps: float
    p50_us: float
    p99_us: float
    errors: int
    seconds: float


@functools.cache
def program() -> Path:
    """The compiled generator. It stays in a temporary folder until the process ends. Raises GeneratorError."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise GeneratorError("the load generator needs a C compiler: apt-get install gcc")
    folder = _folder()
    path = Path(folder.name) / "load"
    done = subprocess.run([compiler, "-O2", "-std=c11", "-D_GNU_SOURCE", "-o", str(path), str(SOURCE)],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise GeneratorError(done.stderr)
    return path


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="musidecar-load-")


def command(host: str, port: int, shape: Shape, seconds: float, mode: str, wait: int = 0, warm_s: float = 0.2,
            seed: int = 0, backend: str = "redis") -> list[str]:
    """Arguments for one run; `mode` is set, get, stale (READONLY, then get) or fill (every key once), `wait` the
    replicas to WAIT for."""
    words = [str(program()), host, port, shape.connections, shape.pipeline, seconds, mode, VALUE_BYTES, KEYS, wait,
             warm_s, seed or secrets.randbits(32) | 1, backend]
    return [str(word) for word in words]


def parse(text: str) -> Sample:
    """The generator's line of JSON. Raises GeneratorError when it tells of a broken connection or an error reply."""
    try:
        raw = json.loads(text)
    except ValueError:
        raise GeneratorError(f"the load generator said {text!r}") from None
    if "error" in raw or raw["errors"]:
        raise GeneratorError(raw.get("error") or f"{raw['errors']} error replies, the first: {raw['first_error']}")
    return Sample(raw["rps"], raw["p50_us"], raw["p99_us"], raw["errors"], raw["seconds"])


def run(host: str, port: int, shape: Shape, seconds: float, mode: str, wait: int = 0, warm_s: float = 0.2,
        backend: str = "redis") -> Sample:
    """Loads a server and returns what was measured. Raises GeneratorError."""
    done = subprocess.run(command(host, port, shape, seconds, mode, wait, warm_s, backend=backend), capture_output=True,
                          text=True, timeout=seconds + warm_s + 60, check=False)
    return parse(done.stdout)


def fill(host: str, port: int, backend: str = "redis") -> None:
    """Writes every key once, so that GETs find something."""
    run(host, port, Shape(1, 64), 30, "fill", warm_s=0, backend=backend)
