"""Checks whether this host is fit for a cluster. Nothing is changed; every finding says what to do about it."""

from __future__ import annotations

import os
import platform
import re
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musidecar.config import Cluster, ConfigError, Limits, Node, split_address
from musidecar.directory import ensure_private, is_held, node_lock
from musidecar.protocols import kind
from musidecar.protocols.backend import Check

if TYPE_CHECKING:
    from musidecar import rdma

FILES_SPARE = 64  # descriptors of a node that are not clients
BACKEND_ANSWER_S = 3.0


def check_host(port: int, nodes: int, backend: str) -> list[Check]:
    """What `musidecar local --port PORT --nodes N --backend NAME` needs."""
    from musidecar.protocols.backend import backend_class

    checks = [*_system(Limits(), nodes), backend_class(backend).check_binary(kind(backend).binary)]
    checks += _rdma(None)
    checks += [_port_free(f"127.0.0.1:{port + i}", "choose other ports with --port") for i in range(nodes)]
    return checks


def check_cluster(config: Cluster) -> list[Check]:
    """What the nodes of a configuration need, and what will be changed on the servers they attach to."""
    checks = [Check("configuration", "ok", str(config.path)), _secret(config), _directory(config)]
    checks += _system(config.limits, len(config.nodes))
    checks += _rdma(config)
    for node in config.nodes:
        checks.append(_node_port(config, node))
        checks += _fix_port(config, node)
        checks += _backend(config, node)
    return checks


def report(checks: list[Check]) -> bool:
    """Print the findings, one a line. True when nothing stands in the way."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    colours = {"ok": "green", "note": "yellow", "bad": "bold red"}
    for check in checks:
        line = Text.assemble((f"{check.verdict:<5}", colours[check.verdict]), f"{check.name}: {check.text}")
        console.print(line)
        if check.remedy:
            console.print(Text(f"     → {check.remedy}"))
    bad = sum(check.verdict == "bad" for check in checks)
    console.print(Text("This host is fit." if not bad else f"{bad} in the way.", style="bold"))
    return not bad


# ---- the host ----------------------------------------------------------------------------------------------------


def _system(limits: Limits, nodes: int) -> Iterator[Check]:
    yield Check("system", "ok", f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs")
    yield _shared_memory()
    yield _fence()
    yield _priority()
    yield _memory(limits, nodes)
    yield _open_files(limits)
    yield from _kernel_settings()


def _shared_memory() -> Check:
    try:
        os.close(os.memfd_create("musidecar-doctor", os.MFD_CLOEXEC))
    except OSError as error:
        return Check("shared memory", "bad", f"memfd_create: {error.strerror}", "allow memfd_create in this container")
    return Check("shared memory", "ok", "memfd works")


def _fence() -> Check:
    """How a writer that is stopped in the middle of a write is kept from finishing it."""
    name = "fence"
    try:
        from musidecar._ffi import ffi, lib

        check = lib.shm_fence_check
    except (ImportError, AttributeError) as error:
        return Check(name, "bad", f"the C part is not there: {error}", "install musidecar again")
    why: Any = ffi.new("char[256]")
    if check(why, 256):
        return Check(name, "ok", "userfaultfd write protection")
    reason = bytes(ffi.buffer(why)).split(b"\0", 1)[0].decode(errors="replace")
    return Check(
        name,
        "note",
        f"userfaultfd is not usable here ({reason}): a writer stopped in mid-write is killed instead",
        "allow userfaultfd in the container's seccomp profile, or: sysctl vm.unprivileged_userfaultfd=1",
    )


def _priority() -> Check:
    """Whether a take-over may run in front of all else (ffi/prompt.h)."""
    with ThreadPoolExecutor(1) as thread:  # what is tried is tried on one that ends
        may = thread.submit(_hurries).result()
    if may:
        return Check("priority", "ok", "a take-over runs in front of all else")
    return Check(
        "priority",
        "note",
        "no right to SCHED_RR: on a busy host a take-over waits for its turn, mostly a millisecond or two",
        "LimitRTPRIO=1 in the service's unit, or CAP_SYS_NICE",
    )


def _hurries() -> bool:
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        return False
    return True


def _memory(limits: Limits, nodes: int) -> Check:
    rings = nodes * limits.ring_bytes
    available = _meminfo_bytes("MemAvailable")
    text = f"{rings >> 20} MiB for {nodes} logs, {available >> 20} MiB available; the data is held {nodes} times"
    if available < 2 * rings:
        return Check("memory", "bad", text, "free memory, or lower limits.ring_bytes")
    return Check("memory", "ok", text)


def _meminfo_bytes(key: str) -> int:
    match = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(match[1]) << 10 if match else 0


def _open_files(limits: Limits) -> Check:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.clients_max + FILES_SPARE
    text = f"{hard} open files for {limits.clients_max} clients"
    if hard != resource.RLIM_INFINITY and hard < wanted:
        return Check("descriptors", "bad", text, f"ulimit -n {wanted}, or lower limits.clients_max")
    return Check("descriptors", "ok", text if hard != resource.RLIM_INFINITY else "open files are not limited")


def _kernel_settings() -> Iterator[Check]:
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if huge.exists() and "[always]" in huge.read_text():
        remedy = f"echo madvise > {huge}"
        yield Check("huge pages", "note", "always on: Redis pauses longer when it copies its data", remedy)
    overcommit = Path("/proc/sys/vm/overcommit_memory")
    if overcommit.exists() and overcommit.read_text().strip() == "2":
        yield Check("overcommit", "note", "strict: Redis may fail to fork", "sysctl vm.overcommit_memory=1")


def _rdma(config: Cluster | None) -> Iterator[Check]:
    """What the verbs fabric finds here. A cluster on shared memory does without."""
    from musidecar import rdma

    if config is None or config.fabric != "verbs":
        yield from rdma.survey([rdma.Wanted()], is_needed=False)
    else:
        yield from rdma.survey(list(dict.fromkeys(_wanted(config, node) for node in config.nodes)), is_needed=True)


def _wanted(config: Cluster, node: Node) -> rdma.Wanted:
    from musidecar import rdma
    from musidecar.fabrics import staging_bytes

    own = config.node_verbs(node.id)
    staging = 2 * (len(config.nodes) - 1) * staging_bytes(config)
    return rdma.Wanted(
        device=own.device or "",
        port=own.port or 0,
        gid_index=-1 if own.gid_index is None else own.gid_index,
        mtu=own.mtu or 0,
        nodes=len(config.nodes),
        locked_bytes=config.limits.ring_bytes + staging,
    )


def _port_free(address: str, remedy: str) -> Check:
    host, port = split_address(address)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Check(f"clients {address}", "bad", str(error.strerror), remedy)
    return Check(f"clients {address}", "ok", "free")


# ---- a configured cluster ----------------------------------------------------------------------------------------


def _secret(config: Cluster) -> Check:
    from musidecar import secret

    try:
        secret.load(config.secret_file)
    except ConfigError as error:
        return Check("secret", "bad", str(error))
    return Check("secret", "ok", f"{config.secret_file}, its owner's only")


def _directory(config: Cluster) -> Check:
    if not config.directory.exists():
        return Check("directory", "ok", f"{config.directory} will be made")
    try:
        ensure_private(config.directory)
    except ConfigError as error:
        return Check("directory", "bad", str(error))
    return Check("directory", "ok", f"{config.directory}, its owner's only")


def _node_port(config: Cluster, node: Node) -> Check:
    if is_held(node_lock(config.directory, node.id)):
        return Check(f"node {node.id}", "ok", f"runs, clients at {node.client}")
    free = _port_free(node.client, f"choose another nodes[{node.index}].client")
    return Check(f"node {node.id}", free.verdict, f"clients at {node.client}: {free.text}", free.remedy)


def _fix_port(config: Cluster, node: Node) -> Iterator[Check]:
    address, name = node.backend.fix_port, f"node {node.id} FIX"
    if address is None:
        return
    if is_held(node_lock(config.directory, node.id)):
        yield Check(name, "ok", f"clients at {address}")
        return
    free = _port_free(address, f"choose another nodes[{node.index}].backend.fix_port")
    yield Check(name, free.verdict, f"clients at {address}: {free.text}", free.remedy)


def _backend(config: Cluster, node: Node) -> Iterator[Check]:
    from musidecar.places import wanted_backend
    from musidecar.protocols.backend import backend_class, make

    name = f"node {node.id} backend"
    if node.backend.spawn:
        found = backend_class(node.backend.kind).check_binary(node.backend.program)
        yield Check(name, found.verdict, f"{found.text}, started with the node", found.remedy)
    try:
        backend = make(node.backend.kind, wanted_backend(config, node, "(a token)"))
    except ConfigError as error:
        yield Check(name, "bad", str(error))
        return
    runs = is_held(node_lock(config.directory, node.id))
    if node.backend.spawn:
        for found in backend.check_start() if not runs else ():
            yield Check(f"{name}: {found.name}", found.verdict, found.text, found.remedy)
        return
    line = f"musidecar run --config {config.path} --node {node.id} --replace-data (and these keys are gone)"
    for found in backend.check_running(BACKEND_ANSWER_S, node.id == config.seed, runs, line):
        yield Check(name, found.verdict, found.text, found.remedy)
