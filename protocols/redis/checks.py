"""What `doctor` says of a Redis."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

from musidecar.protocols.backend import Address, BackendError, Check

from .admin import Connection
from .driver import count_keys, mode_of, wanted_settings

REDIS_TESTED = (7, 0)  # older ones are refused by the driver too


def server_program(binary: str) -> Check:
    path = shutil.which(binary)
    if path is None:
        return Check("redis-server", "bad", f"{binary} is not on PATH", "apt-get install redis-server")
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("redis-server", "bad", f"{path}: {error}", "apt-get install --reinstall redis-server")
    match = re.search(r"v=(\d+(?:\.\d+)+)", text)
    if match is None:
        return Check("redis-server", "bad", f"{path} does not say a version: {text.strip()!r}", "name a redis-server")
    return _version("redis-server", match[1], f"{path}, version {match[1]}")


def _version(name: str, version: str, text: str) -> Check:
    number = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if number < REDIS_TESTED:
        return Check(name, "bad", text, f"use {'.'.join(map(str, REDIS_TESTED))} or later")
    if number != REDIS_TESTED:
        return Check(name, "note", f"{text}: not tested; {'.'.join(map(str, REDIS_TESTED))} is")
    return Check(name, "ok", text)


def running(
    address: Address, answer_s: float, timeout_ms: int, brings_data: bool, runs: bool, replace_line: str
) -> Iterator[Check]:
    """One that runs already: its data, its role, what will be set on it."""
    try:
        with Connection(address, answer_s) as connection:
            info = connection.info("server")
            version = info.get("redis_version", "0")
            yield _version("", version, f"{address}, version {version}")
            yield from _attached(connection, info, timeout_ms, brings_data, runs, replace_line)
    except BackendError as error:
        yield Check("", "bad", str(error), "start it, or correct its address, user and password_file")


def _attached(
    connection: Connection, info: dict[str, str], timeout_ms: int, brings_data: bool, runs: bool, replace_line: str
) -> Iterator[Check]:
    keys = count_keys(connection)
    if runs:
        yield Check("", "ok", f"{keys} keys; its node runs")
        return
    if brings_data:
        yield Check("", "ok", f"{keys} keys: the cluster starts with them (seed)")
    elif keys:
        yield Check("", "bad", f"{keys} keys of its own, where the seed's data is to go", replace_line)
    if (mode := mode_of(info)) != "standalone":
        yield Check("", "bad", f"runs in {mode} mode", "restart it with cluster-enabled no")
    if connection.call("ROLE")[0] != b"master":
        yield Check("", "bad", "is a replica of another server", "REPLICAOF NO ONE, or take that server instead")
    settings = connection.config()
    changes = wanted_settings(settings, timeout_ms, "(a token)")
    for key, value in changes.items():
        text = f"the sidecar will CONFIG SET {key} {value or repr('')} (now {_shown(settings, key)})"
        yield Check("", "note", text)
    if not changes:
        yield Check("", "ok", "no setting needs to be changed")


def _shown(settings: dict[str, str], key: str) -> str:
    return "hidden" if key == "masterauth" and settings.get(key) else settings.get(key) or "empty"
