"""What `doctor` says of a memcached."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

from musidecar.protocols.backend import Address, BackendError, Check

from .connection import Connection
from .driver import VERSION_MIN, changes, objections

INSTALL = "apt-get install memcached"


def server_program(binary: str) -> Check:
    """Is there one to start?"""
    path = shutil.which(binary)
    if path is None:
        return Check("memcached", "bad", f"{binary} is not on PATH", INSTALL)
    try:
        text = subprocess.run([path, "-V"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("memcached", "bad", f"{path}: {error}", "apt-get install --reinstall memcached")
    match = re.fullmatch(r"memcached (\d+(?:\.\d+)+)", text.strip())
    if match is None:
        return Check("memcached", "bad", f"{path} does not say a version: {text.strip()!r}", "name a memcached")
    return _version("memcached", match[1], f"{path}, version {match[1]}")


def _version(name: str, version: str, text: str) -> Check:
    number = tuple(map(int, re.findall(r"\d+", version)[:3]))
    tested = ".".join(map(str, VERSION_MIN))
    if number < VERSION_MIN:
        return Check(name, "bad", text, f"use {tested} or later")
    if number != VERSION_MIN:
        return Check(name, "note", f"{text}: not tested; {tested} is")
    return Check(name, "ok", text)


def running(address: Address, answer_s: float, brings_data: bool, runs: bool, replace_line: str) -> Iterator[Check]:
    """One that runs already: its data, how it was started, what will be set on it."""
    try:
        with Connection(address, answer_s) as connection:
            stats, settings = connection.stats(), connection.stats("settings")
    except BackendError as error:
        yield Check("", "bad", str(error), "start it, or correct its address")
        return
    version = stats.get("version", "0")
    yield _version("", version, f"{address}, version {version}")
    for what, remedy in objections(stats, settings):
        yield Check("", "bad", what, remedy)
    keys = int(stats["curr_items"])
    if runs:
        yield Check("", "ok", f"{keys} keys; its node runs")
        return
    if brings_data:
        yield Check("", "ok", f"{keys} keys: the cluster starts with them (seed)")
    elif keys:
        yield Check("", "bad", f"{keys} keys of its own, where the seed's data is to go", replace_line)
    if settings.get("udpport", "0") != "0":
        yield Check("", "note", "answers over UDP too: what is written there is not replicated", "start it with -U 0")
    if settings.get("slab_reassign") == "yes":
        yield Check("", "note", "may move memory between sizes of items, and give them new CAS numbers then",
                    "start it with -o no_slab_reassign")  # fmt: skip
    for name, (_, value) in changes(settings).items():
        yield Check("", "note", f"the sidecar will set {name} to {value} (now {settings.get(name)})")
