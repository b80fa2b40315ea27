"""The thread that serves a machine, over its real socket: bytes that come one by one, peers that do not read."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musidecar.protocols.own import wire
from musidecar.protocols.own.proposals import Proposals
from musidecar.protocols.own.replicated import MachineFailed, Replicated
from musidecar.protocols.own.server import Server
from musidecar.protocols.own.wire import Malformed

WAIT_S = 20.0


class Echo:
    """Says what it is told, `times` times."""

    def __init__(self, times: int = 1) -> None:
        self.times = times
        self.threads: set[int] = set()

    def apply(self, index: int, record: bytes) -> bytes:
        if record == b"raise":
            raise RuntimeError("planted")
        self.threads.add(threading.get_ident())
        return record * self.times

    def snapshot(self) -> bytes:
        return b"%d" % self.times

    def restore(self, data: bytes) -> None:
        self.times = int(data)


@pytest.fixture
def failed() -> list[MachineFailed]:
    return []


@pytest.fixture
def server(folder: Path, failed: list[MachineFailed]) -> Iterator[Server]:
    made = Server(folder / "machine.sock", Replicated(Echo(times=50)), failed.append)
    made.start()
    yield made
    made.stop()
    made.close()


def connect(server: Server) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(WAIT_S)
    made.connect(str(server.path))
    return made


def stamped(number: int, frame: bytes) -> bytes:
    return wire.STAMP_HEAD.pack(wire.STAMP, number) + frame


def propose(number: int, *records: bytes) -> bytes:
    return stamped(number + 1, wire.request(wire.PROPOSE, 7, number, 0, wire.batch(records)))


OPENED = stamped(1, wire.request(wire.OPEN, 7, 0, 0))


def receive(connection: socket.socket, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        part = connection.recv(min(length - len(found), 1 << 20))
        assert part, f"closed after {len(found)} of {length} bytes"
        found += part
    return bytes(found)


def test_its_socket_is_private_and_the_umask_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The umask is that of all threads: two servers that begin at once would leave each other's behind."""
    changes: list[int] = []
    monkeypatch.setattr(os, "umask", changes.append)
    made = Server(folder / "own.sock", Replicated(Echo()), lambda _: None)
    made.start()
    try:
        assert changes == [] and stat.S_IMODE((folder / "own.sock").stat().st_mode) == 0o600
    finally:
        made.stop()
        made.close()


def test_bytes_that_come_one_by_one(server: Server) -> None:
    sent = OPENED + propose(1, b"a", b"bc") + b"." + wire.request(wire.READ, 7, 2, 0) + propose(3, b"")
    wanted, used = Replicated(Echo(times=50)).feed(sent)
    assert used == len(sent)
    with connect(server) as connection:
        for byte in sent:
            connection.send(bytes([byte]))
        assert receive(connection, len(wanted)) == wanted
    machine = server.call(lambda state: state.machine)
    assert len(machine.threads) == 1 and threading.get_ident() not in machine.threads


def test_a_frame_that_takes_many_turns(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(OPENED)
        receive(connection, wire.REPLY_HEAD.size)
        record = bytes(range(256)) * 8192  # 2 MiB
        sender = threading.Thread(target=connection.sendall, args=(propose(1, record),))
        sender.start()
        reply = receive(connection, wire.REPLY_HEAD.size + 8 + 50 * len(record))
        sender.join()
        assert list(wire.parts(reply, wire.REPLY_HEAD.size, len(reply))) == [record * 50]


def test_one_that_does_not_read_holds_up_nobody_else(server: Server) -> None:
    record, count = b"x" * 1000, 300
    with connect(server) as lazy, connect(server) as other:
        lazy.sendall(OPENED + b"".join(propose(number, record) for number in range(1, count + 1)))
        other.sendall(b".")
        assert receive(other, 1) == b"."
        receive(lazy, wire.REPLY_HEAD.size)
        for number in range(1, count + 1):  # 15 MB
            reply = receive(lazy, wire.REPLY_HEAD.size + 8 + 50 * len(record))
            assert wire.REPLY_HEAD.unpack_from(reply)[2] == number
        assert server.applied == count


def test_a_connection_that_says_nonsense_is_closed_and_no_other(server: Server) -> None:
    with connect(server) as wrong, connect(server) as right:
        wrong.sendall(wire.request(wire.PROPOSE, 7, 1, 0, wire.batch([b"without a stamp"])))
        assert wrong.recv(1) == b""
        right.sendall(b".")
        assert receive(right, 1) == b"."
    assert server.alive and server.applied == 0


def test_a_machine_that_fails_ends_its_thread_once(server: Server, failed: list[MachineFailed]) -> None:
    with connect(server) as connection:
        connection.sendall(OPENED + propose(1, b"raise"))
        assert connection.recv(1) == b""
    server.stop()
    assert not server.alive and [str(error) for error in failed] == [
        "apply(1, b'raise') raised RuntimeError('planted')"]  # fmt: skip


class Waits(Echo):
    """At its first record, until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.came, self.gate = threading.Event(), threading.Event()

    def apply(self, index: int, record: bytes) -> bytes:
        self.came.set()
        assert self.gate.wait(WAIT_S)
        return super().apply(index, record)


def test_what_a_closed_connection_had_sent_never_comes_behind_a_snapshot(folder: Path) -> None:
    """A machine that hung is filled; what had been given to it before is in that already."""
    machine, filled = Waits(), Replicated(Echo())
    filled.stamp, filled.applied = 1 << 40, 500
    snapshot = filled.snapshot()
    server = Server(folder / "machine.sock", Replicated(machine), lambda error: None)
    server._buffer = bytearray(4096)  # it takes many turns to read what is there
    server.start()
    with connect(server) as lost:
        lost.sendall(OPENED + propose(1, b"x"))
        assert machine.came.wait(WAIT_S)
        lost.setblocking(False)
        number, sent = 2, 0
        with contextlib.suppress(BlockingIOError):
            while sent < 1 << 20:
                sent += lost.send(propose(number, bytes(1000)))
                number += 1
        assert sent > 10 * len(server._buffer)
    fills = threading.Thread(target=server.call, args=(lambda state: state.restore(snapshot),))
    fills.start()
    machine.gate.set()
    fills.join(WAIT_S)
    for _ in range(20):  # turns of its loop
        assert server.call(lambda state: (state.applied, state.stamp)) == (500, 1 << 40)
    server.stop()
    server.close()


def test_what_is_logged_comes_once_and_in_order() -> None:
    state = Replicated(Echo())
    state.feed(OPENED + propose(5, b"a"))
    for number in (5, 4):
        with pytest.raises(Malformed, match="has been given before"):
            state.feed(propose(number, b"b"))
    assert state.applied == 1


# ---- whatever comes --------------------------------------------------------------------------------------------------

KINDS = st.sampled_from(b"OPCRS.pocrf!\0")
heads = st.builds(
    lambda kind, length, a, b, body: bytes([kind, 0, 0, 0]) + length.to_bytes(4, "little") + a + b + body,
    KINDS, st.integers(0, 80), st.binary(max_size=24), st.binary(max_size=8), st.binary(max_size=40),
)  # fmt: skip
streams = st.lists(
    st.one_of(heads, st.binary(max_size=20), st.sampled_from([OPENED, propose(1, b"a"), b"."])), max_size=6
)


@settings(max_examples=600, deadline=None)
@given(streams)
def test_no_bytes_do_more_than_to_be_malformed(parts: list[bytes]) -> None:
    for feed in (Replicated(Echo()).feed, Proposals().feed):
        try:
            feed(b"".join(parts))
        except Malformed:
            pass
