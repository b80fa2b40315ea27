"""A leader that stood still with a request proposed learns in one step that it was deposed, and what the next one has
committed in the same places of the log: its machine does what was committed, and nobody is told otherwise.
"""

from __future__ import annotations

import contextlib
import signal

import pytest

from musidecar._ffi import ffi, lib
from musidecar.protocols.memcached.connection import Connection
from musidecar.protocols.server import BackendError
from musidecar.testbed import Testbed, TestbedError, wait_until
from tests.fault import plants
from tests.fault.log_view import COMMAND, NOOP, LogView, Record, committed_point, permission_requests
from tests.fault.memcached_load import assert_same, backends, client_of, read
from tests.fault.test_memcached import leader_of

LONG_S, SHORT_S = 30.0, 1.0
TRIES = 20


def all_serve(bed: Testbed) -> None:
    bed.wait_status("all serve", lambda s: all(node.is_well for node in s.nodes), LONG_S)


def deposed_in_one_step(bed: Testbed) -> bool:
    """False when it came otherwise: what the leader wrote as it stopped itself was no request, the successor had asked
    again by the time it was answered, or it found that request here and goes on with it."""
    status = bed.status()
    leader = leader_of(status)
    point, asked = committed_point(leader), permission_requests(leader)

    def logged() -> list[Record]:
        with LogView(bed, leader, point) as log:
            return log.read()

    own = LogView(bed, leader, point)
    with own, Connection(client_of(leader), LONG_S) as client, contextlib.ExitStack() as last:
        last.callback(bed.signal_all, signal.SIGCONT)
        plants.arm(leader.pid, "before-store")
        client.send(b"set own 0 0 3\r\nold\r\n")
        plants.await_stop(leader.pid)
        kinds = [record.kind for record in own.read()]
        wait_until("another one wants to lead", lambda: permission_requests(leader) != asked, LONG_S)
        plants.arm(leader.pid, "answered")
        plants.resume(leader.pid)
        plants.await_stop(leader.pid)
        if kinds != [COMMAND]:
            return False
        with Connection(client_of(status.followers[0]), LONG_S) as other:
            assert other.ask(b"set new 0 0 3\r\nnew") == b"STORED"
        try:
            wait_until("what it committed is here", lambda: len(logged()) > 2, SHORT_S)
        except TestbedError:
            return False
        if logged()[0].kind != NOOP:
            return False
        plants.resume(leader.pid)
        with pytest.raises(BackendError):
            client.line()
    return True


def test_its_machine_does_what_was_committed_and_its_clients_are_told_nothing() -> None:
    if not lib.shm_fence_check(ffi.NULL, 0):
        pytest.skip("no userfaultfd here")
    with Testbed(backend="memcached", env=plants.environment()) as bed:
        for _ in range(TRIES):
            all_serve(bed)
            with Connection(client_of(leader_of(bed.status())), LONG_S) as client:
                assert client.ask(b"flush_all") == b"OK"
            found = deposed_in_one_step(bed)
            all_serve(bed)
            assert_same(bed)
            if found:
                break
        else:
            raise AssertionError("it never learned both in one step")
        for server in backends(bed.status()).values():
            assert read(server, [b"own", b"new"]) == {b"new": b"new"}
