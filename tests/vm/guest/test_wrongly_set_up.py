"""What is set up wrongly on a host is refused, in words that name the remedy; what two nodes have to agree on, as well.

Each refusal once by the command, which ends with exit code 2 and has started nothing."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from musidecar import cli, doctor, rdma, secret
from musidecar._ffi import lib
from musidecar.config import load
from tests.unit.fabric_contract import LOG_BYTES
from tests.unit.test_verbs import attach, describe, new_verbs
from tests.vm import hosts

NO_DEVICE = (
    "no RDMA device on this host: load its driver, or put soft-RoCE on an Ethernet interface: "
    "modprobe rdma_rxe; rdma link add rxe0 type rxe netdev eth0"
)
PORT_DOWN = "port 1 of rxe0 is down: plug it in, and bring its interface up (ip link set DEV up"
MEMLOCK_BYTES = 64 << 10  # what a user without privileges has got for long
CAP_IPC_LOCK = 14


@pytest.fixture
def no_device(rxe0: str) -> Iterator[None]:
    hosts.remove_rxe(rxe0)
    yield
    hosts.add_rxe(rxe0, hosts.LONE_NETDEV)


@pytest.fixture
def config(folder: Path) -> Callable[..., Path]:
    """Writes the configuration of three nodes here."""

    def write(verbs: str = "") -> Path:
        lines = ["[cluster]", 'name = "x"', 'secret_file = "secret"', 'directory = "run"', 'fabric = "verbs"']
        for i in (1, 2, 3):
            lines += ["[[nodes]]", f"id = {i}", f'client = "127.0.0.1:700{i}"', f'mesh = "127.0.0.1:710{i}"']
            lines += [f'backend = {{ socket = "{i}.sock", spawn = true }}']
        path = folder / "cluster.toml"
        path.write_text("\n".join([*lines, "[verbs]", verbs, ""]))
        secret.create(folder / "secret")
        return path

    return write


def refusal(**changes: Any) -> str:
    with pytest.raises(LookupError) as error:
        lib.verbs_free(new_verbs(0, **changes))
    return str(error.value)


def command(*words: str | Path, prepare: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """`musidecar WORDS...` in a child of this process, as an interpreter takes this machine seconds to start; its exit
    code and all it said. prepare: done in the child before."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status: Any = 70
        try:
            for fd, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(writer, fd)
                setattr(sys, name, os.fdopen(fd, "w", buffering=1))
            prepare()
            cli.main([str(word) for word in words])
        except SystemExit as end:
            status = end.code
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def check_run_refuses(path: Path, words: str, prepare: Callable[[], None] = lambda: None) -> None:
    code, said = command("run", "--config", path, "--node", "1", prepare=prepare)
    assert code == 2 and words in said, said
    assert not (path.parent / "run" / "redis-1").exists(), "its server was started all the same"


def check_doctor(path: Path, finding: str, remedy: str) -> None:
    """Asked in this process: an interpreter takes this machine long to start."""
    bad = [check for check in doctor.check_cluster(load(path)) if check.verdict == "bad"]
    assert [remedy in check.remedy for check in bad if finding in f"{check.name}: {check.text}"] == [True], bad


# ---- of one host -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_device")
def test_no_device_at_all(config: Callable[..., Path], folder: Path, free_port: int) -> None:
    assert refusal() == refusal(device=b"rxe0") == NO_DEVICE
    path = config()
    check_run_refuses(path, NO_DEVICE)
    check_doctor(path, "RDMA device: none is here", rdma.SOFT_ROCE)
    code, said = command("local", "--fabric", "verbs", "--port", str(free_port), "--dir", folder / "local")
    assert code == 2 and NO_DEVICE in said and "starting" not in said, said
    code, said = command("bench", "replicate", "--fabric", "verbs")
    assert code == 1 and NO_DEVICE in said, said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": b"mlx5_0"}, "no RDMA device mlx5_0: verbs.device may be one of rxe0"),
        ({"port": 2}, "rxe0 has no port 2: verbs.port may be 1 to 1"),
        (
            {"gid_index": 9},
            "verbs.gid_index 9: port 1 of rxe0 has no GID there; 1 is one (`musidecar doctor` lists them): "
            "correct it, or leave it out",
        ),
        (
            {"mtu": 4096},
            "verbs.mtu 4096 is more than the 1024 that port 1 of rxe0 carries: "
            "lower it, or raise the MTU of its interface",
        ),
        ({"mtu": 1500}, "verbs.mtu 1500 is not one of 256, 512, 1024, 2048, 4096"),
    ],
)
def test_no_such_device_port_gid_or_mtu(rxe0: str, changes: dict[str, Any], words: str) -> None:
    assert refusal(**{"device": rxe0.encode(), **changes}) == words


@pytest.mark.usefixtures("rxe0")
def test_a_wrong_gid_index(config: Callable[..., Path]) -> None:
    path = config("gid_index = 9")
    check_run_refuses(path, "has no GID there; 1 is one (`musidecar doctor` lists them): correct it")
    check_doctor(path, "there is no 9", "give verbs.gid_index one of these, or leave it out")


@pytest.mark.usefixtures("port_down")
def test_a_port_that_is_down(config: Callable[..., Path]) -> None:
    assert PORT_DOWN in refusal()
    path = config()
    check_run_refuses(path, PORT_DOWN)
    check_doctor(path, "port 1: DOWN", "ip link set DEV up; look at the cable")


@pytest.mark.usefixtures("rxe0")
def test_too_little_memory_may_be_locked(config: Callable[..., Path]) -> None:
    remedy = "ulimit -l unlimited, or LimitMEMLOCK=infinity in the systemd unit"
    check_run_refuses(config(), f"the limit is 64 KiB: {remedy}", prepare=limit_memory)


def limit_memory() -> None:
    """CAP_IPC_LOCK exempts from the limit: root gives it up (capset of the effective set)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    data[0] &= ~(1 << CAP_IPC_LOCK)
    assert libc.capset(header, data) == 0
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (MEMLOCK_BYTES, MEMLOCK_BYTES))


# ---- of two nodes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mtu": 512}, "set verbs.mtu = 512 for all, or give the interfaces the same MTU"),
        (
            {"log_bytes": 2 * LOG_BYTES},
            "give all nodes the same limits.ring_bytes and piece_bytes_max, in one configuration file",
        ),
    ],
)
def test_two_nodes_that_differ_refuse_each_other(rxe0: str, changes: dict[str, Any], words: str) -> None:
    one, other = new_verbs(0, device=rxe0.encode()), new_verbs(1, device=rxe0.encode(), **changes)
    try:
        to_one, to_other = describe(other, 0), describe(one, 1)
        assert words in attach(one, 1, to_one) and words in attach(other, 0, to_other)
    finally:
        lib.verbs_free(one)
        lib.verbs_free(other)
