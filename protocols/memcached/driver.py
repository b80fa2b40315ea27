"""The memcached behind one node: started here or already running, looked at, and set up for being replicated.

What it holds dies with its process; nothing of it is kept for another start.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musidecar.protocols import backend, server
from musidecar.protocols.backend import Ask, HoldsData
from musidecar.protocols.server import START_TIMEOUT_S, Address, BackendError, Server

from . import MEMORY_BYTES
from .connection import Connection

VERSION_MIN = (1, 6, 18)
ITEM_BYTES_MAX = 1 << 20  # memcached's own default
LEFTOVER_S = 5.0


@dataclass(frozen=True)
class Prepared(backend.Prepared):
    """And of a memcached. started_s: when, Unix time, to the second."""

    item_bytes_max: int
    started_s: int


# ---- a memcached of the sidecar's own --------------------------------------------------------------------------------


def spawn(
    directory: Path,
    socket_path: Path,
    *,
    binary: str = "memcached",
    options: Mapping[str, Any] | None = None,
    arguments: Sequence[str] = (),
    timeout_s: float = START_TIMEOUT_S,
) -> Server:
    """Start a memcached on `socket_path`, and nowhere else, and wait until it answers. As with server.start().

    options: memory_bytes, item_bytes_max, threads.
    """
    server.check_thread()
    command = server.programs(binary, "memcached")
    _remove_leftover(Address(path=str(socket_path)), directory)
    # Relative: of a path of 26 bytes and more `stats conns` prints what happens to lie behind it, too.
    words = ["-s", os.path.relpath(socket_path, directory), "-a", "0700", "-U", "0", *_words(options or {}), *arguments]
    return server.start(command, words, directory, Address(path=str(socket_path)), _answers, timeout_s)


def _words(options: Mapping[str, Any]) -> list[str]:
    memory, item = int(options.get("memory_bytes", MEMORY_BYTES)), int(options.get("item_bytes_max", ITEM_BYTES_MAX))
    # No page moves between slab classes: it would give items new CAS numbers behind everybody's back.
    words = ["-m", str(memory >> 20), "-I", str(item), "-o", "slab_automove=0,no_slab_reassign"]
    if "threads" in options:
        words += ["-t", str(options["threads"])]
    if os.geteuid() == 0:  # it refuses to run as root unless told so
        words += ["-u", pwd.getpwuid(0).pw_name]
    return words


def _answers(address: Address) -> bool:
    with Connection(address, 1.0) as connection:
        return connection.ask(b"version").startswith(b"VERSION ")


def _remove_leftover(address: Address, directory: Path) -> None:
    """A server of ours that outlived its sidecar by a hair still holds the socket: end it. Another's is an error."""
    try:
        with Connection(address, 1.0) as connection:
            pid = int(connection.stats()["pid"])
            pidfd = os.pidfd_open(pid)
            if Path(f"/proc/{pid}/cwd").resolve() != directory.resolve():
                raise BackendError(f"another memcached listens on {address}: stop it, or give this node another socket")
    except BackendError as error:
        if not any(sign in str(error) for sign in ("cannot connect", " lost: ", "closed the connection")):
            raise  # else it has just died
        return
    except OSError:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        deadline = time.monotonic() + LEFTOVER_S
        while Path(f"/proc/{pid}/cwd").exists() and time.monotonic() < deadline:
            time.sleep(server.POLL_S)
    finally:
        os.close(pidfd)


# ---- any memcached ---------------------------------------------------------------------------------------------------


def attach(address: Address, timeout_s: float = 5.0) -> int:
    """Check that a memcached answers at `address`; its process id as it tells it itself."""
    with Connection(address, timeout_s) as connection:
        return int(connection.stats()["pid"])


def count(address: Address) -> int:
    """Items that it holds, some of which may have expired."""
    with Connection(address) as connection:
        return int(connection.stats()["curr_items"])


def objections(stats: Mapping[str, str], settings: Mapping[str, str]) -> list[tuple[str, str]]:
    """(what is wrong, what to do) with a memcached that is to be replicated."""
    found = []
    version = tuple(map(int, re.findall(r"\d+", stats.get("version", ""))[:3]))
    if version < VERSION_MIN:
        needed = ".".join(map(str, VERSION_MIN))
        found.append((f"is version {stats.get('version', 'unknown')}", f"use {needed} or later"))
    for name, wanted, what in (
        ("cas_enabled", "yes", "was started with -C: its items have no CAS numbers"),
        ("dump_enabled", "yes", "was started with -X: its items cannot be listed for another node"),
        ("flush_enabled", "yes", "was started with -F: it cannot be emptied to be filled"),
        ("auth_enabled_ascii", "no", "wants a login (-Y)"),
        ("auth_enabled_sasl", "no", "wants a login (-S)"),
    ):
        if settings.get(name, wanted) != wanted:
            found.append((what, "start it without that"))
    return found


def changes(settings: Mapping[str, str]) -> dict[str, tuple[bytes, str]]:
    """What will be set on it: setting -> (the command, the new value)."""
    wanted = {}
    if settings.get("slab_automove", "0") != "0":
        wanted["slab_automove"] = (b"slabs automove 0", "0")
    if settings.get("lru_crawler", "yes") != "yes":
        wanted["lru_crawler"] = (b"lru_crawler enable", "yes")
    return wanted


def prepare(address: Address, ask: Ask) -> Prepared:
    """Check a memcached and set it up. HoldsData, BackendError."""
    with Connection(address) as connection:
        stats, settings = connection.stats(), connection.stats("settings")
        for what, remedy in objections(stats, settings):
            raise BackendError(f"memcached at {address} {what}: {remedy}")
        keys = int(stats["curr_items"])
        if ask.joining and not ask.replace_data and keys:
            raise HoldsData(
                f"the memcached of this node ({address}) already holds {keys} key{'' if keys == 1 else 's'}, which"
                f" joining the cluster would replace by the cluster's data; if that is wanted:"
                f" {ask.replace_line or '--replace-data'}"
            )
        wanted = changes(settings)
        for command, _ in wanted.values():
            connection.ask(command)
        return Prepared(
            version=stats["version"],
            keys=keys,
            pid=int(stats["pid"]),
            changed={name: value for name, (_, value) in wanted.items()},
            item_bytes_max=int(settings["item_size_max"]),
            started_s=int(stats["time"]) - int(stats["uptime"]),
        )


def evictions(address: Address, timeout_s: float) -> dict[str, int]:
    """What it gave up of its own accord for want of memory, and how full it is."""
    with Connection(address, timeout_s) as connection:
        stats = connection.stats()
    names = ("evictions", "store_no_memory", "curr_items", "bytes", "limit_maxbytes")
    with contextlib.suppress(KeyError, ValueError):
        return {name: int(stats[name]) for name in names}
    raise BackendError(f"memcached at {address} does not tell its evictions")
