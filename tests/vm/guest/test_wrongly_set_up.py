"""What is set up wrongly is refused, in words that name the remedy."""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Any

import pytest

from musidecar._ffi import lib
from tests.unit.fabric_contract import LOG_BYTES
from tests.unit.test_verbs import attach, describe, new_verbs
from tests.vm import hosts

_CAP_IPC_LOCK = 14


def refusal(**changes: Any) -> str:
    with pytest.raises(LookupError) as error:
        lib.verbs_free(new_verbs(0, **changes))
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"device": b"mlx5_0"}, ("no RDMA device mlx5_0", "verbs.device may be one of", "rxe0")),
        ({"port": 2}, ("rxe0 has no port 2", "verbs.port may be 1 to 1")),
        ({"gid_index": 9}, ("verbs.gid_index 9", "has no GID there", "doctor")),
        ({"mtu": 4096}, ("verbs.mtu 4096 is more than the 1024", "lower it")),
    ],
)
def test_no_such_device_port_gid_or_mtu(rxe0: str, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    said = refusal(**{"device": rxe0.encode(), **changes})
    assert all(word in said for word in words), said


def test_a_port_that_is_down(rxe0: str) -> None:
    hosts.ip("link set d0 down")
    try:
        said = refusal(device=rxe0.encode())
    finally:
        hosts.ip("link set d0 up")
    assert "port 1 of rxe0 is down" in said and "ip link set" in said


def test_too_little_memory_may_be_locked(rxe0: str) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # what a user without privileges has
        try:
            _drop_ipc_lock()
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))
            os.write(writer, refusal(device=rxe0.encode(), log_bytes=1 << 20).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert "cannot pin" in said and "ulimit -l unlimited" in said


def _drop_ipc_lock() -> None:
    """CAP_IPC_LOCK exempts from the limit: this process gives it up (capset of the effective set)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, data) == 0
    data[0] &= ~(1 << _CAP_IPC_LOCK)
    assert libc.capset(header, data) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mtu": 512}, ("512", "1024", "mtu")),
        ({"log_bytes": 2 * LOG_BYTES}, ("ring_bytes",)),
    ],
)
def test_two_nodes_that_differ_refuse_each_other(rxe0: str, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    one, other = new_verbs(0, device=rxe0.encode()), new_verbs(1, device=rxe0.encode(), **changes)
    try:
        to_one, to_other = describe(other, 0), describe(one, 1)
        for said in (attach(one, 1, to_one), attach(other, 0, to_other)):
            assert all(word in said for word in words), said
    finally:
        lib.verbs_free(one)
        lib.verbs_free(other)
