"""What `doctor` says of a host on which HERD is to run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from musidecar._ffi import ffi, lib
from musidecar.protocols.backend import Check

from . import leftovers
from .driver import DEFAULTS

HUGE_PAGE_KB = 2048
REGION_PAGES, WORKER_PAGES = 8, 576  # of 2 MiB: the request region; index and log of a worker, as HERD comes


def gate_program() -> Check:
    """Can a gate be started here: is there RDMA?"""
    why = ffi.new("char[400]")
    if not lib.verbs_usable(why, 400):
        return Check("RDMA", "bad", ffi.string(why).decode(), "HERD is spoken to by RDMA")
    if not os.path.isdir("/sys/class/infiniband") or not os.listdir("/sys/class/infiniband"):
        return Check(
            "RDMA",
            "bad",
            "no RDMA device on this host",
            "HERD is spoken to by RDMA: load a card's driver, or put soft-RoCE on an Ethernet interface:"
            " modprobe rdma_rxe; rdma link add rxe0 type rxe netdev eth0",
        )
    return Check("RDMA", "ok", "there is a device")


def herd(options: Mapping[str, Any]) -> Iterator[Check]:
    """Can HERD be started here with these options?"""
    given = {**DEFAULTS, **options}
    main = given.get("herd_main")
    if main is None:
        yield Check("program", "note", "no herd_main: HERD is to be started by hand, whenever the node is")
    elif not os.access(main, os.X_OK):
        yield Check("program", "bad", f"{main} is no program", "build HERD, and name its `main` as herd_main")
    yield _huge_pages(int(given["workers"]))
    yield _segments()
    yield _registry(str(given["registry"]))


def _huge_pages(workers: int) -> Check:
    """HERD's shared memory is in huge pages, all of it taken at its start."""
    needed = REGION_PAGES + workers * WORKER_PAGES
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    found = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    free, size = found.get("HugePages_Free", 0), found.get("Hugepagesize", 0)
    text = f"{free} free huge pages of {size} KiB; a HERD as it comes takes {needed} of 2048 KiB ({workers} workers)"
    if size == HUGE_PAGE_KB and free >= needed:
        return Check("huge pages", "ok", text)
    return Check("huge pages", "note" if free else "bad", text, f"sysctl vm.nr_hugepages={needed}, for each HERD here")


def _segments() -> Check:
    """Shared memory of an earlier HERD keeps another from beginning, unless it has a place of its own for it."""
    left = leftovers.keys()
    if not left:
        return Check("shared memory", "ok", "none of an earlier HERD")
    if os.geteuid() == 0:
        return Check("shared memory", "note", f"{len(left)} segments of a HERD: another one is not disturbed by them")
    return Check("shared memory", "bad", f"{len(left)} segments of an earlier HERD", leftovers.remedy(left))


def _registry(host: str) -> Check:
    """HERD finds its client at port 11211, and nowhere else."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, lib.HERD_REGISTRY_PORT))
        except OSError as error:
            where = f"{host}:{lib.HERD_REGISTRY_PORT}"
            remedy = "stop what listens there (a memcached?), or give another address of this host as `registry`"
            return Check("registry", "bad", f"{where}: {error.strerror}", remedy)
    return Check("registry", "ok", f"{host}:{lib.HERD_REGISTRY_PORT} is free")
