"""What RDMA devices this host has, and whether the verbs fabric can work with them (`musidecar doctor`).

Asked by pyverbs (Debian's python3-pyverbs, libibverbs 44): devices, ports, GIDs, limits. Looking changes nothing.
"""

from __future__ import annotations

import importlib
import os
import re
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musidecar import pyverbs
from musidecar.protocols.backend import Check

PORT_STATES = ("nothing", "DOWN", "INIT", "ARMED", "ACTIVE", "ACTIVE_DEFER")
ACTIVE = 4
GID_TYPES = {0: "IB", 1: "RoCE v1", 2: "RoCE v2"}  # as libibverbs numbers them
IPV4_MAPPED = "0000:0000:0000:0000:0000:ffff:"
GIDS_MAX = 64
LINK_ETHERNET = 2
SEND_DEPTH_MIN = 64
SOFT_ROCE = "modprobe rdma_rxe && rdma link add rxe0 type rxe netdev ETHERNET-INTERFACE"


@dataclass(frozen=True)
class Gid:
    """One address of a port."""

    index: int
    text: str
    kind: str  # "IB", "RoCE v1", "RoCE v2"

    @property
    def is_ipv4(self) -> bool:
        return self.text.startswith(IPV4_MAPPED)

    @property
    def shown(self) -> str:
        """`1 (RoCE v2, 10.9.0.1)`"""
        address = self.text
        if self.is_ipv4:
            word = self.text.removeprefix(IPV4_MAPPED).replace(":", "")
            address = ".".join(str(byte) for byte in bytes.fromhex(word))
        return f"{self.index} ({self.kind}, {address})"


@dataclass(frozen=True)
class Port:
    """One port of a device. `mtu`: the active one, bytes of payload in a packet."""

    number: int
    state: int
    mtu: int
    lid: int
    is_ethernet: bool
    gids: tuple[Gid, ...]

    @property
    def state_name(self) -> str:
        return PORT_STATES[self.state] if 0 <= self.state < len(PORT_STATES) else str(self.state)


@dataclass(frozen=True)
class Device:
    """An opened device and its limits. `trouble`: why it could not be opened; then the rest is empty."""

    name: str
    ports: tuple[Port, ...] = ()
    queue_pairs: int = 0
    sends: int = 0  # per queue pair
    reads: int = 0  # under way per queue pair
    region_bytes: int = 0
    trouble: str = ""


@dataclass(frozen=True)
class Wanted:
    """What one node will ask of its device. Empty name, 0 and -1: whatever is found."""

    device: str = ""
    port: int = 0
    gid_index: int = -1
    mtu: int = 0
    nodes: int = 3
    locked_bytes: int = 0


def devices() -> list[Device]:
    """Every device that libibverbs shows here. Raises PyverbsMissing."""
    pyverbs.load()
    module = importlib.import_module("pyverbs.device")
    trouble = importlib.import_module("pyverbs.pyverbs_error").PyverbsRDMAError
    try:
        names = [one.name.decode() for one in module.get_device_list()]
    except trouble:  # so it says where the kernel's part is not loaded at all
        return []
    return [_device(module, name) for name in names]


def _device(module: Any, name: str) -> Device:
    try:
        context = module.Context(name=name)
    except Exception as error:  # pyverbs' own kind, which cannot be named before it is loaded
        return Device(name, trouble=str(error).strip() or type(error).__name__)
    try:
        limits, table = context.query_device(), list(context.query_gid_table(GIDS_MAX))
        ports = tuple(_port(context, number, table) for number in range(1, limits.phys_port_cnt + 1))
    except Exception as error:
        return Device(name, trouble=str(error).strip() or type(error).__name__)
    finally:
        context.close()
    reads = min(limits.max_qp_rd_atom, limits.max_qp_init_rd_atom)
    return Device(name, ports, limits.max_qp, limits.max_qp_wr, reads, limits.max_mr_size)


def _port(context: Any, number: int, table: list[Any]) -> Port:
    port = context.query_port(number)
    own = [one for one in table if one.port_num == number]
    gids = tuple(Gid(one.gid_index, one.gid_str(), GID_TYPES.get(one.gid_type, str(one.gid_type))) for one in own)
    return Port(number, port.state, 128 << port.active_mtu, port.lid, port.link_layer == LINK_ETHERNET, gids)


# ---- judging -----------------------------------------------------------------------------------------------------


def judge(found: list[Device], wanted: Wanted, kernel_devices: list[str] | None = None) -> Iterator[Check]:
    """What is right and wrong about the devices of this host, for a node that wants this.

    kernel_devices: what /sys/class/infiniband lists; a device that is there and not in `found` has no driver in
    libibverbs.
    """
    for name in sorted(set(kernel_devices or []) - {device.name for device in found}):
        text = "the kernel has it and libibverbs does not show it"
        yield Check(f"RDMA device {name}", "bad", text, "apt-get install ibverbs-providers; modprobe ib_uverbs")
    names = ", ".join(device.name for device in found)
    if wanted.device and wanted.device not in [device.name for device in found]:
        remedy = f"verbs.device may be one of {names}" if found else f"make it, or soft-RoCE: {SOFT_ROCE}"
        text = f"no such device: {names or 'none'} is here"
        yield Check(f"RDMA device {wanted.device}", "bad", text, remedy)
        return
    if not found:
        yield Check("RDMA device", "bad", "none is here", f"load the card's driver, or soft-RoCE: {SOFT_ROCE}")
        return
    usable = 0
    findings: list[Check] = []
    for device in found:
        mine = list(_judge_device(device, wanted))
        usable += all(one.verdict != "bad" for one in mine)
        findings += mine
    # One that will do is enough, unless the configuration names which.
    spare = usable > 0 and not wanted.device
    yield from map(_eased, findings) if spare else findings


def _judge_device(device: Device, wanted: Wanted) -> Iterator[Check]:
    if wanted.device and device.name != wanted.device:
        return
    name = f"RDMA device {device.name}"
    if device.trouble:
        remedy = "allow this user /dev/infiniband/uverbs* (a group, or the container's devices)"
        yield Check(name, "bad", f"cannot be opened: {device.trouble}", remedy)
        return
    limits = f"{device.queue_pairs} queue pairs of {device.sends} sends and {device.reads} reads"
    needed = 4 * (wanted.nodes - 1)  # to and from each peer, one for the log and one for the background
    if device.queue_pairs < needed or device.sends < SEND_DEPTH_MIN or device.reads < 1:
        text = f"{limits}; {needed} of {SEND_DEPTH_MIN} and 1 are needed"
        yield Check(name, "bad", text, "take another device")
        return
    yield Check(name, "ok", limits)
    ports = [port for port in device.ports if wanted.port in (0, port.number)]
    if not ports:
        there = ", ".join(str(port.number) for port in device.ports)
        text = f"no such port: it has {there}"
        yield Check(f"{name} port {wanted.port}", "bad", text, "give verbs.port one of these, or leave it out")
    for port in ports:
        yield _judge_port(f"{name} port {port.number}", port, wanted)


def _judge_port(name: str, port: Port, wanted: Wanted) -> Check:
    layer = "Ethernet" if port.is_ethernet else f"InfiniBand, LID {port.lid}"
    text = f"{port.state_name}, {layer}, MTU {port.mtu}"
    if port.state != ACTIVE:
        remedy = (
            "ip link set DEV up; look at the cable" if port.is_ethernet else "is a subnet manager running?"
        )
        return Check(name, "bad", text, remedy)
    if wanted.mtu > port.mtu:
        remedy = f"verbs.mtu = {port.mtu} at most, or a larger MTU on the interface of every node"
        return Check(name, "bad", f"{text}: {wanted.mtu} is configured", remedy)
    if not port.is_ethernet:
        return Check(name, "ok", text) if port.lid else Check(name, "bad", text, "is a subnet manager running?")
    listed = ", ".join(gid.shown for gid in port.gids) or "none"
    text = f"{text}; GIDs {listed}"
    if not port.gids:
        return Check(name, "bad", text, "give its interface an IPv4 address")
    chosen = next((gid for gid in port.gids if gid.index == wanted.gid_index), None)
    good = [gid for gid in port.gids if gid.kind == "RoCE v2" and gid.is_ipv4]
    if wanted.gid_index >= 0 and chosen is None:
        remedy = "give verbs.gid_index one of these, or leave it out"
        return Check(name, "bad", f"{text}: there is no {wanted.gid_index}", remedy)
    if chosen is not None and chosen not in good:
        return Check(name, "note", f"{text}: {chosen.index} is chosen", "RoCE v2 over IPv4 crosses routers")
    if not good:
        return Check(name, "note", f"{text}: none is RoCE v2 over IPv4", "give its interface an IPv4 address")
    if port.mtu < 1024:
        return Check(name, "note", text, "an MTU of 1024 or more: at least 1500 on its interface")
    return Check(name, "ok", f"{text}; takes {(chosen or good[0]).index}")


def judge_memlock(wanted: Wanted, limit: int, is_privileged: bool) -> Check:
    """Will registering the regions be allowed? limit: RLIMIT_MEMLOCK, bytes."""
    name = "locked memory"
    need = f"{-(-wanted.locked_bytes >> 10)} KiB to be registered"
    if is_privileged or limit == resource.RLIM_INFINITY:
        return Check(name, "ok", f"{need}, not limited")
    text = f"{need}, {limit >> 10} KiB allowed"
    if limit < wanted.locked_bytes:
        return Check(name, "bad", text, "ulimit -l unlimited; LimitMEMLOCK=infinity in a systemd unit")
    return Check(name, "ok", text)


def may_lock() -> bool:
    """Is this process above RLIMIT_MEMLOCK (CAP_IPC_LOCK)?"""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(match and int(match[1], 16) >> 14 & 1)


def survey(wants: list[Wanted], is_needed: bool) -> Iterator[Check]:
    """All findings on this host. is_needed: the configuration asks for verbs; otherwise nothing here is in the way.

    wants: what the nodes ask for, each kind once. Which node is to run here is not known: one kind that this host can
    serve is enough, and what it lacks for the others is worth a note.
    """
    checks = [_library()]
    kernel = Path("/sys/class/infiniband")
    names = sorted(os.listdir(kernel)) if kernel.is_dir() else []
    try:
        found = devices()
    except pyverbs.PyverbsMissing as error:
        text = f"{', '.join(names) or 'none'} in the kernel; not looked into: {str(error).partition(': ')[0]}"
        checks.append(Check("RDMA devices", "note" if names else "bad", text, pyverbs.REMEDY))
    else:
        judged = [list(judge(found, wanted, names)) for wanted in wants]
        is_served = [all(one.verdict != "bad" for one in group) for group in judged]
        for group, good in zip(judged, is_served, strict=True):
            checks += group if good or not any(is_served) else [_eased(one) for one in group]
    if is_needed:
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        checks.append(judge_memlock(max(wants, key=lambda one: one.locked_bytes), limit, may_lock()))
    yield from dict.fromkeys(checks if is_needed else map(_eased, checks))


def _eased(check: Check) -> Check:
    return Check(check.name, "note", check.text, check.remedy) if check.verdict == "bad" else check


def _library() -> Check:
    built, why = fabric_state()
    if not built:
        remedy = "apt-get install libibverbs-dev, then install musidecar again"
        return Check("verbs fabric", "bad", "not built in", remedy)
    if why:
        return Check("verbs fabric", "bad", f"built in, but {why}", "apt-get install libibverbs1 ibverbs-providers")
    return Check("verbs fabric", "ok", "built in, libibverbs loads")


def fabric_state() -> tuple[bool, str]:
    """(is the verbs fabric built into the C part?, why libibverbs cannot be loaded; empty when it can)."""
    from musidecar._ffi import ffi, lib

    if not hasattr(lib, "verbs_built") or not lib.verbs_built():
        return False, ""
    why: Any = ffi.new("char[400]")
    if lib.verbs_usable(why, 400):
        return True, ""
    return True, bytes(ffi.buffer(why)).split(b"\0", 1)[0].decode(errors="replace")
