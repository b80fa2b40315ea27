"""liquibookd, the process: its socket, its lines however they are cut, its end."""

import select
import signal
import socket
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from musidecar.protocols.liquibook.driver import BackendError, Connection, Server, spawn
from musidecar.protocols.liquibook.exchange import Exchange
from tests.unit.orphans import dies_with_its_parent
from tests.unit.random_orders import SYMBOLS, Orders

TIMEOUT_S = 10.0


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    started = spawn(folder, folder / "x.sock", SYMBOLS)
    yield started
    started.stop()


@pytest.fixture
def raw(server: Server) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(TIMEOUT_S)
        connected.connect(str(server.address.path))
        yield connected


def rest(connected: socket.socket) -> bytes:
    """All until the other end closes."""
    parts = []
    while part := connected.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


def test_only_its_user_may_connect(server: Server) -> None:
    assert stat.S_IMODE(Path(server.address.path).stat().st_mode) == 0o600


def test_split_anywhere_the_answers_are_the_same(server: Server) -> None:
    lines = [b"BUY a o AAPL 5 10", b"SELL b s AAPL 5 10", b"WHAT", b"EVENTS a 0"]
    sent, exchange = b"".join(line + b"\n" for line in lines), Exchange(SYMBOLS)
    empty, wanted = exchange.snapshot(), b"".join(map(exchange.apply, lines))
    with Connection(server.address.path) as control:
        for cut in range(1, len(sent)):
            control.restore(empty)
            with socket.socket(socket.AF_UNIX) as connected:
                connected.connect(str(server.address.path))
                connected.sendall(sent[:cut])
                control.ask("PING")  # the first part has been looked at
                connected.sendall(sent[cut:])
                connected.shutdown(socket.SHUT_WR)
                assert rest(connected) == wanted


def test_many_requests_at_once_by_a_client_that_reads_late(server: Server, raw: socket.socket) -> None:
    """More replies than the socket and the server's buffer hold: it must neither stop for others nor lose any."""
    lines, exchange = list(islice(Orders(5), 20_000)), Exchange(SYMBOLS)
    wanted = b"".join(map(exchange.apply, lines))
    sent = memoryview(b"".join(line + b"\n" for line in lines))
    raw.setblocking(False)
    while sent:  # until it takes no more, as it gets rid of no replies
        if not select.select([], [raw], [], 0.2)[1]:
            break
        sent = sent[raw.send(sent) :]
    assert sent, "it took all requests although nobody took the replies"
    with Connection(server.address.path) as other:
        assert other.ask("PING") == ["PONG"]
    got = bytearray()
    while len(got) < len(wanted):
        readable, writable, _ = select.select([raw], [raw] if sent else [], [], TIMEOUT_S)
        assert readable or writable
        if readable:
            got += raw.recv(1 << 18)
        if writable:
            sent = sent[raw.send(sent) :]
    assert bytes(got) == wanted


def test_a_line_without_end_is_rejected_and_closed(server: Server, raw: socket.socket) -> None:
    raw.sendall(b"BUY a o AAPL 5 10\n" + b"x" * 2000 + b"\nBUY a p AAPL 5 10\n")
    assert rest(raw).endswith(b"END\nREJECT malformed line too long\nEND\n")
    with Connection(server.address.path) as other:
        assert other.ask("EVENTS a 0")[0] == "EVENTS 1 1"


def test_half_a_line_before_the_end_is_nothing(server: Server, raw: socket.socket) -> None:
    raw.sendall(b"PING\nBUY a o AAPL 5 10")
    raw.shutdown(socket.SHUT_WR)
    assert rest(raw) == b"PONG\nEND\n"
    with Connection(server.address.path) as other:
        assert other.ask("EVENTS a 0") == ["EVENTS 1 0"]


def test_a_state_moves_to_another(server: Server, folder: Path) -> None:
    second = spawn(folder, folder / "y.sock", ["OTHER"])
    try:
        with Connection(server.address.path) as here, Connection(second.address.path) as there:
            for line in islice(Orders(6), 2_000):
                here.ask(line.decode())
            there.restore(here.snapshot())
            assert there.ask("STATE") == here.ask("STATE")
            for line in islice(Orders(7), 500):
                assert there.ask(line.decode()) == here.ask(line.decode())
            assert there.snapshot() == here.snapshot()
    finally:
        second.stop()


def test_a_bad_snapshot_leaves_what_there_is(server: Server, raw: socket.socket) -> None:
    with Connection(server.address.path) as connection:
        connection.ask("BUY a o AAPL 5 10")
        before = connection.snapshot()
        with pytest.raises(BackendError, match="not a snapshot"):
            connection.restore(before[:-5])
        assert connection.snapshot() == before
    raw.sendall(b"RESTORE 12x\nBUY a p AAPL 5 10\n")
    assert rest(raw).startswith(b"REJECT malformed RESTORE")


def test_it_dies_with_its_parent(folder: Path) -> None:
    dies_with_its_parent("liquibook", folder, folder / "x.sock", ["A"])


def test_terminated_it_removes_its_socket(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(TIMEOUT_S) == 0
    assert not Path(server.address.path).exists()


def test_it_says_why_it_does_not_start(server: Server, folder: Path) -> None:
    with pytest.raises(BackendError, match="in use"):
        spawn(folder, Path(server.address.path), ["A"])
    assert Path(server.address.path).exists()
    for symbols in (["A", "A"], [""], ["A B"], ["A" * 65]):
        with pytest.raises(BackendError, match="symbols"):
            spawn(folder, folder / "z.sock", symbols)


def test_the_socket_of_one_that_was_killed_is_no_hindrance(server: Server, folder: Path) -> None:
    server.process.kill()
    server.process.wait(TIMEOUT_S)
    assert Path(server.address.path).exists()
    second = spawn(folder, Path(server.address.path), ["A"])
    with Connection(second.address.path) as connection:
        assert connection.ask("SYMBOLS") == ["SYMBOL A"]
    second.stop()
