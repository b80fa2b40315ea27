"""All items of one memcached to another, while a writer goes on: real servers, the real mesh, the log played by a
list."""

from __future__ import annotations

import base64
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from musidecar.mesh import Member, Mesh
from musidecar.protocols.backend import Ask, BackendError, Point, Points, Wanted, make
from musidecar.protocols.memcached import copying
from musidecar.protocols.memcached.backend import Memcached
from musidecar.protocols.memcached.comparing import contents, differences
from musidecar.protocols.memcached.connection import Connection
from musidecar.protocols.server import Address, Server
from musidecar.transfer import Source, fetch
from tests.unit.spawned_memcached import ask, spawned_memcached

SECRET = bytes(range(32))
KEYS = 3000
KEPT = 100  # records at least that no flush follows: else next to nothing would be left to compare


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    with (
        spawned_memcached(tmp_path / "a", memory_bytes=512 << 20) as a,
        spawned_memcached(tmp_path / "b", memory_bytes=512 << 20) as b,
    ):
        yield a, b


def backend_at(server: Server, home: Path) -> Memcached:
    home.mkdir(exist_ok=True)
    found = make("memcached", Wanted(server.address, home))
    assert isinstance(found, Memcached)
    found.prepare(Ask())
    return found


def carry(giver: Memcached, taker: Memcached, points: Points = lambda: Point(1, 0, 0)) -> dict[str, int]:
    """A copy from one to the other, without a mesh."""
    dump = giver.copy(0, 1.0, points)
    try:
        path = taker.wanted.home / "copy"
        path.write_bytes(b"".join(dump.chunks()))
        with path.open("rb") as file:
            count = taker.fill(file, dump.head, lambda: False)
        assert count == dump.items
        return dump.head | dump.foot()
    finally:
        dump.close()


class Log:
    """Unconditional records, each answered once, as the engine gives them to every node's server in order."""

    def __init__(self, address: Address, seed: int) -> None:
        self.records: list[bytes] = []
        self.done = 0
        self._address, self._random = address, random.Random(seed)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def points(self) -> Point:
        done = self.done
        return Point(1, done, len(self.records))

    def __enter__(self) -> Log:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with Connection(self._address, 30) as connection:
            while not self._ended.is_set() or b"flush_all" in self.records[-KEPT:]:
                self.append(connection)

    def append(self, connection: Connection) -> None:
        record = self.record()
        self.records.append(record)
        connection.ask(record)
        self.done = len(self.records)

    def record(self) -> bytes:
        r = self._random
        name, binary = self._name(r.randrange(KEYS))
        ends = r.choice([0, int(time.time()) + r.randrange(100, 100_000)])
        roll = r.random()
        if roll < 0.15:
            return b"md %b%b" % (name, binary)
        if roll < 0.25:
            return b"mg %b%b T%d" % (name, binary, ends)
        if roll < 0.25003:
            return b"flush_all"
        if roll < 0.3:
            return b"md %b%b I" % (name, binary)
        length = r.choice([0, 1, 10, 100, 1000, 1000, 10_000]) if r.random() < 0.999 else 900_000
        value = r.randbytes(length)
        return b"ms %b %d%b F%d T%d\r\n%b" % (name, length, binary, r.getrandbits(32), ends, value)

    def _name(self, i: int) -> tuple[bytes, bytes]:
        if i % 3:
            return b"key:%d" % i, b""
        return base64.b64encode(b"\0 \r\n\xff key %d" % i), b" b"


def replay(address: Address, records: list[bytes]) -> None:
    with Connection(address, 30) as connection:
        for record in records:
            connection.ask(record)


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_made_while_writes_go_on_and_the_log_from_its_beginning_are_the_same_data(
    pair: tuple[Server, Server], tmp_path: Path, seed: int
) -> None:
    a, b = pair
    log = Log(a.address, seed)
    with Connection(a.address, 30) as connection:
        for _ in range(4 * KEYS):
            log.append(connection)
    ask(b.address, b"set what-was-there-before 0 0 1\r\nx")
    tmp_path.chmod(0o700)
    meshes = [Mesh(Member("test", node, (1, 2, 3), tmp_path, SECRET)) for node in (1, 2)]
    giver, taker = backend_at(a, tmp_path / "one"), backend_at(b, tmp_path / "two")
    meshes[0].handlers["transfer"] = Source(giver, lambda _: None, points=log.points).serve
    try:
        for each in meshes:
            each.listen()
        with log:
            began = log.done
            got = fetch(meshes[1], [1], began, tmp_path)
            until = log.done
        with open(got.fd, "rb") as file:
            assert taker.fill(file, got.head, lambda: False) == got.foot["items"] > 0
    finally:
        for each in meshes:
            each.close()
    assert began <= got.offset <= got.foot["given"] <= until + 1 and got.foot["given"] > got.offset  # it was written
    replay(b.address, log.records[got.offset :])
    count, found = differences({"a": a.address, "b": b.address})
    assert not found and count > 20


def test_a_copy_alone_is_not_the_data_of_its_end(pair: tuple[Server, Server], tmp_path: Path) -> None:
    """What the test above would not notice if nothing were written meanwhile."""
    a, b = pair
    log = Log(a.address, 7)
    with Connection(a.address, 30) as connection:
        for _ in range(KEYS):
            log.append(connection)
    with log:
        carry(backend_at(a, tmp_path / "one"), backend_at(b, tmp_path / "two"))
        end = log.done + 500
        while log.done < end:
            time.sleep(0.001)
    assert differences({"a": a.address, "b": b.address})[1]


def test_every_kind_of_item_arrives_as_it_was(pair: tuple[Server, Server], tmp_path: Path) -> None:
    a, b = pair
    now = int(time.time())
    binary = base64.b64encode(bytes(range(128, 256)) + b"\r\n \0")
    longest = b"k" * 250
    for request in (
        b"ms plain 5 F0 T0\r\nhello", b"ms empty 0 F1 T0\r\n", b"ms flags 1 F4294967295 T0\r\nx",
        b"ms ends 3 T%d\r\nabc" % (now + 1000), b"ms %b 2 b F7 T%d\r\nhi" % (binary, now + 2000),
        b"ms crlf 11 T0\r\nEND\r\nHD\r\nMN", b"ms %b 1 T0\r\nx" % longest,
        b"ms large %d T0\r\n%b" % (900_000, b"\r\n" * 450_000), b"ms per%%20cent=&key 1 T0\r\nx",
        b"ms \x01\x7f\r\xff 1 T0\r\nx",
        b"ms stale 1 T0\r\nx", b"md stale I", b"ms taken 1 T%d\r\nx" % (now + 1000), b"md taken I", b"mg taken",
        b"ms won 1 T%d\r\nx" % (now + 3000), b"mg won R%d" % (now + 4000),
        b"mg vivified N0",
    ):  # fmt: skip
        assert not ask(a.address, request).startswith((b"CLIENT", b"ERR")), request
    ask(b.address, b"ms old 1 T0\r\nx")
    facts = carry(backend_at(a, tmp_path / "one"), backend_at(b, tmp_path / "two"))
    assert facts["items"] == 14
    assert contents(a.address) == contents(b.address) and len(contents(b.address)) == 14
    for name in (b"stale", b"taken", b"won", b"vivified"):  # who recaches it is the same question there
        here, there = (ask(server.address, b"mg %b t f" % name) for server in pair)
        assert (b" W" in here, b" Z" in here, b" X" in here) == (b" W" in there, b" Z" in there, b" X" in there), name
    assert ask(b.address, b"mg %b b k f" % binary).endswith(b"k%b b f7" % binary)
    assert ask(b.address, b"mg old") == b"EN"


def test_an_item_that_is_set_while_it_is_looked_at_is_not_marked_stale(pair: tuple[Server, Server]) -> None:
    """Asking takes its token; giving it back marks it stale, which must not happen to what has come since."""
    a, _ = pair
    ask(a.address, b"ms k 1 T0\r\nx")
    ask(a.address, b"md k I")
    dump = copying.Dump(a.address, 0, 1.0, lambda: Point(1, 0, 0), Path("/tmp"))
    pieces = dump._fetch([(b"k", 0)])
    assert next(pieces).endswith(b"k")
    ask(a.address, b"ms k 3 T0\r\nnew")
    assert b"".join(pieces) == b"x"
    dump.close()
    assert ask(a.address, b"mg k v", 2) == b"VA 3\nnew"


def test_it_waits_for_the_record_that_is_wanted(pair: tuple[Server, Server], tmp_path: Path) -> None:
    a, _ = pair
    giver = backend_at(a, tmp_path / "one")
    with pytest.raises(BackendError, match="has done the log up to record 4, 5 is wanted"):
        giver.copy(5, 0.05, lambda: Point(1, 4, 9))
    with pytest.raises(BackendError, match="does not hold the data"):
        giver.copy(0, 0.05, lambda: Point(0, 9, 9))
    counts = iter(range(100))
    dump = giver.copy(50, 5.0, lambda: Point(1, next(counts), 99))
    assert dump.head["offset"] == 50
    dump.close()


def test_two_dumps_at_a_time_wait_for_each_other(pair: tuple[Server, Server], tmp_path: Path) -> None:
    a, _ = pair
    with Connection(a.address) as connection:
        for i in range(20_000):
            connection.send(b"ms k%d 1 T0 q\r\nx\r\n" % i)
        connection.ask(b"mn")
    giver = backend_at(a, tmp_path / "one")
    found: list[int] = []

    def take() -> None:
        dump = giver.copy(0, 1.0, lambda: Point(1, 0, 0))
        found.append(sum(map(len, dump.chunks())))
        dump.close()

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(set(found)) == 1


def test_a_server_that_lost_its_data_meanwhile_gives_none(pair: tuple[Server, Server], tmp_path: Path) -> None:
    lives = iter([1, 2])
    with pytest.raises(BackendError, match="did not hold the data all the time"):
        one, two = backend_at(pair[0], tmp_path / "1"), backend_at(pair[1], tmp_path / "2")
        carry(one, two, lambda: Point(next(lives), 0, 0))


@pytest.mark.parametrize(
    ("copy", "expected"),
    [
        (b"\x05", "ends within an item"),
        (copying.HEAD.pack(5, 0, 0, 10, 0) + b"abc", "ends within an item"),
        (copying.HEAD.pack(0, 0, 0, 0, 0), "a key of 0"),
        (copying.HEAD.pack(1, 0, 0, 2**31, 0) + b"k", "a value of 2147483648"),
        (copying.HEAD.pack(9, 0, 0, 0, 0) + b"a\r\nquit\r\n", "no text command can have stored"),
        (copying.HEAD.pack(1, 0, 0, 2 << 20, 0) + b"k" + bytes(2 << 20), "does not take the data: SERVER_ERROR"),
    ],
)
def test_a_copy_that_is_none_is_refused(
    pair: tuple[Server, Server], tmp_path: Path, copy: bytes, expected: str
) -> None:
    (tmp_path / "copy").write_bytes(copy)
    with (tmp_path / "copy").open("rb") as file, pytest.raises(BackendError, match=expected):
        copying.load(pair[1].address, file, lambda: False)


def test_nodes_whose_items_may_differ_in_length_do_not_copy(pair: tuple[Server, Server], tmp_path: Path) -> None:
    with spawned_memcached(tmp_path / "c", item_bytes_max=2 << 20) as c:
        with pytest.raises(BackendError, match="start all with the same"):
            carry(backend_at(pair[0], tmp_path / "one"), backend_at(c, tmp_path / "three"))


def test_a_server_that_dies_meanwhile_is_named(pair: tuple[Server, Server], tmp_path: Path) -> None:
    a, b = pair
    with Connection(a.address) as connection:
        for i in range(2000):
            connection.send(b"ms k%d 10000 T0 q\r\n%b\r\n" % (i, bytes(10_000)))
        connection.ask(b"mn")
    dump = backend_at(a, tmp_path / "one").copy(0, 1.0, lambda: Point(1, 0, 0))
    pieces = dump.chunks()
    next(pieces)
    a.process.kill()
    with pytest.raises(BackendError, match=r"memcached at .*(lost|closed)"):
        for _ in pieces:
            pass
    dump.close()
    with pytest.raises(BackendError, match="cannot connect"):
        backend_at(b, tmp_path / "two").__class__(Wanted(a.address, tmp_path)).copy(0, 1.0, lambda: Point(1, 0, 0))


def test_differences_are_found(pair: tuple[Server, Server]) -> None:
    a, b = pair
    for server, requests in (
        (a, (b"ms same 1 T0\r\nx", b"ms value 1 T0\r\nx", b"ms flags 1 F1 T0\r\nx", b"ms ends 1 T9000\r\nx",
             b"ms only 1 T0\r\nx", b"ms soon 1 T1\r\nx")),
        (b, (b"ms same 1 T0\r\nx", b"ms value 1 T0\r\ny", b"ms flags 1 F2 T0\r\nx", b"ms ends 1 T8000\r\nx")),
    ):  # fmt: skip
        for request in requests:
            ask(server.address, request)
    count, found = differences({"a": a.address, "b": b.address})
    assert count == 5
    told = "\n".join(found)
    assert "b lacks 1 keys that a has, e.g. b'only'" in told and len(found) == 4
    assert all(f"key b'{name}'" in told for name in ("value", "flags", "ends")) and "same" not in told


def test_a_slow_taker_loses_nothing(pair: tuple[Server, Server], tmp_path: Path) -> None:
    """The crawler gives up on who does not read: the listing is whole before the first item is asked for."""
    a, _ = pair
    with Connection(a.address) as connection:
        for i in range(60_000):
            connection.send(b"ms %b%d 1 T0 q\r\nx\r\n" % (b"k" * 100, i))
        connection.ask(b"mn")
    dump = backend_at(a, tmp_path / "one").copy(0, 1.0, lambda: Point(1, 0, 0))
    dump._lister.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    total = 0
    for i, piece in enumerate(dump.chunks()):
        total += len(piece)
        if i == 0:
            time.sleep(2.5)
    dump.close()
    assert dump.items == 60_000
