"""RDBs between nodes: real redis-servers, the real mesh, and what happens when either end breaks off."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from musidecar import transfer
from musidecar.mesh import Connection, Member, Mesh
from musidecar.protocols.backend import Wanted
from musidecar.protocols.redis import backlog, driver
from musidecar.protocols.redis.admin import Address, encode
from musidecar.protocols.redis.admin import Connection as Redis
from musidecar.protocols.redis.backend import Redis as Backend
from musidecar.transfer import Cancelled, Source, TransferFailed, fetch, fetch_tail

SECRET = bytes(range(32))
TOKEN = "t" * 64
WAIT_S = 20.0


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def server(home: Path) -> Iterator[driver.Server]:
    (home / "redis").mkdir()
    started = driver.spawn(home / "redis", home / "redis.sock", arguments=["--enable-debug-command", "yes"])
    driver.prepare(started.address, token=TOKEN, backend_timeout_ms=5000)
    yield started
    started.stop()


@pytest.fixture
def node(home: Path) -> Iterator[Callable[..., Mesh]]:
    with contextlib.ExitStack() as stack:

        def node(number: int, serve: Callable[[Connection], None] | None = None) -> Mesh:
            mesh = Mesh(Member("test", number, (1, 2, 3), home, SECRET))
            if serve is not None:
                mesh.handlers["transfer"] = serve
            mesh.listen()
            stack.callback(mesh.close)
            return mesh

        yield node


def redis_at(address: Address) -> Backend:
    return Backend(Wanted(address, Path("unused")))


def call(address: Address, *words: str | bytes | int) -> Any:
    with Redis(address) as connection:
        return connection.call(*words)


def fill(address: Address, count: int, length: int = 1000) -> None:
    with Redis(address, 30) as connection:
        for i in range(count):
            connection.call("SET", f"key:{i}", secrets.token_bytes(length))
        connection.call("FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function() return 1 end)")
        connection.call("XADD", "stream", "1-1", "a", "b")
        connection.call("XGROUP", "CREATE", "stream", "group", "0")


def contents(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def nameless_files() -> list[str]:
    """RDBs that this process still holds open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if "transfer-" in name and name.endswith(".rdb (deleted)")]


def test_the_data_arrives_whole(home: Path, server: driver.Server, node: Callable[..., Mesh]) -> None:
    fill(server.address, 2000)
    node(1, Source(redis_at(server.address), lambda _: None).serve)
    into = home / "into"
    into.mkdir()
    got = fetch(node(2), [1], 0, into)
    assert list(into.iterdir()) == [] and os.fstat(got.fd).st_mode & 0o777 == 0o600
    assert os.fstat(got.fd).st_size == got.bytes and got.node == 1 and len(got.head["replid"]) == 40
    copy = home / "copy"
    copy.mkdir()
    (copy / "dump.rdb").write_bytes(contents(got.fd))
    loaded = driver.spawn(copy, home / "copy.sock", arguments=["--enable-debug-command", "yes"])
    try:
        for words in (("DEBUG", "DIGEST"), ("FUNCTION", "DUMP"), ("XINFO", "STREAM", "stream", "FULL")):
            assert call(loaded.address, *words) == call(server.address, *words)
    finally:
        loaded.stop()


def stream(address: Address, offset: int) -> bytes:
    """What it sends to a replica that is at this offset, up to now."""
    with Redis(address) as connection:
        replid = connection.info("replication")["master_replid"]
        length = connection.offset() - offset
        piece = backlog.Piece(length, connection.sock.dup())
        connection.sock.sendall(encode("PSYNC", replid, offset + 1))
        try:
            assert piece.line().startswith(b"+CONTINUE")
            return b"".join(piece.chunks())
        finally:
            piece.close()


def test_a_piece_of_the_stream_arrives_whole(home: Path, server: driver.Server, node: Callable[..., Mesh]) -> None:
    node(1, Source(redis_at(server.address), lambda _: None).serve)
    two = node(2)
    os.close(fetch(two, [1], 0, home).fd)  # its backlog begins with the first replica
    with Redis(server.address) as connection:
        connection.call("SET", "a", 1)
        offset = connection.offset()
        fill(server.address, 500)
        now = connection.offset()
        whole = stream(server.address, offset)
        assert len(whole) == now - offset and b"key:499" in whole
        assert fetch_tail(two, [1], offset, now) == whole
        assert fetch_tail(two, [1], offset + 7, now - 7) == whole[7:-7]
        assert fetch_tail(two, [3, 1], now - 1, now) == whole[-1:]
        connection.call("CONFIG", "SET", "repl-backlog-size", 1 << 14)
        with pytest.raises(TransferFailed, match="keeps the changes from offset"):
            fetch_tail(two, [1], offset, now)
        assert fetch_tail(two, [1], now - 1000, now) == whole[-1000:]


def test_rule_17_a_piece_of_what_turns_dirty_under_way_is_not_handed_over(
    home: Path, server: driver.Server, node: Callable[..., Mesh], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BACKEND_WAIT_S", 0.1)
    answers: list[str | None] = []
    node(1, Source(redis_at(server.address), lambda _: answers.pop(0)).serve)
    two = node(2)
    answers[:] = [None, None]
    os.close(fetch(two, [1], 0, home).fd)
    with Redis(server.address) as connection:
        before = connection.offset()
        connection.call("SET", "a", 1)
        offset = connection.offset()
    for said in (["its backend is dirty"], [None, "its backend is dirty"]):
        answers[:] = said
        with pytest.raises(TransferFailed, match="its backend is dirty"):
            fetch_tail(two, [1], before, offset)
    answers[:] = [None]
    with pytest.raises(TransferFailed, match="is wanted"):  # an offset that it has not got to
        fetch_tail(two, [1], before, offset + 1000)


@pytest.mark.parametrize("piece", [b"ab", b"abcd"])
def test_a_piece_of_another_length_is_thrown_away(home: Path, node: Callable[..., Mesh], piece: bytes) -> None:
    def serve(connection: Connection) -> None:
        with connection:
            asked = connection.recv(5)
            connection.send({"offset": asked["at_least"], "after": asked["after"]})
            connection.send_bytes(piece)
            connection.send({"bytes": len(piece), "sha256": hashlib.sha256(piece).hexdigest()})

    node(1, serve)
    with pytest.raises(TransferFailed, match="than was asked for"):
        fetch_tail(node(2), [1], 10, 13)


def test_writes_meanwhile_do_not_disturb_it(home: Path, server: driver.Server, node: Callable[..., Mesh]) -> None:
    fill(server.address, 500)
    node(1, Source(redis_at(server.address), lambda _: None).serve)
    two, stop, offset = node(2), threading.Event(), -1

    def write() -> None:
        with Redis(server.address) as connection:
            while not stop.is_set():
                connection.call("INCR", "counter")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            got = fetch(two, [1], offset + 1, home)
            assert contents(got.fd).startswith(b"REDIS") and got.offset > offset
            offset = got.offset
    finally:
        stop.set()
        writer.join()


def test_it_is_no_faster_than_allowed_and_its_progress_is_told(
    home: Path, server: driver.Server, node: Callable[..., Mesh]
) -> None:
    fill(server.address, 1500)
    node(1, Source(redis_at(server.address), lambda _: None, bytes_per_s=2 << 20).serve)
    told: list[tuple[int, int]] = []
    began = time.monotonic()
    got = fetch(node(2), [1], 0, home, progress=lambda node, count: told.append((node, count)))
    took = time.monotonic() - began
    os.close(got.fd)
    assert got.bytes > 1 << 20 and took > 0.8 * got.bytes / (2 << 20)
    assert told[-1] == (1, got.bytes) and [count for _, count in told] == sorted(count for _, count in told)


def test_nodes_that_cannot_are_passed_over_in_order(
    home: Path, server: driver.Server, node: Callable[..., Mesh]
) -> None:
    node(1, Source(redis_at(server.address), lambda _: None).serve)
    node(2, Source(redis_at(server.address), lambda _: "its data is not clean").serve)
    three = node(3)
    got = fetch(three, [2, 1], 0, home)
    assert got.node == 1
    os.close(got.fd)
    with pytest.raises(TransferFailed, match=r"node 2: its data is not clean"):
        fetch(three, [2], 0, home)
    with pytest.raises(TransferFailed, match="no other node"):
        fetch(three, [], 0, home)


def test_rule_17_a_node_of_an_earlier_term_is_passed_over(
    home: Path, server: driver.Server, node: Callable[..., Mesh]
) -> None:
    node(1, Source(redis_at(server.address), lambda term: "it is in term 4 still" if term > 4 else None).serve)
    two = node(2)
    os.close(fetch(two, [1], 0, home, term=4).fd)
    with pytest.raises(TransferFailed, match="term 4 still"):
        fetch(two, [1], 0, home, term=5)


def test_rule_17_an_offset_nobody_has_is_told(
    home: Path, server: driver.Server, node: Callable[..., Mesh], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "BACKEND_WAIT_S", 0.1)
    node(1, Source(redis_at(server.address), lambda _: None).serve)
    with pytest.raises(TransferFailed, match=r"stands at offset \d+, 1000000 is wanted"):
        fetch(node(2), [1, 3], 1_000_000, home)


def test_rule_17_data_that_turns_dirty_under_way_is_not_handed_over(
    home: Path, server: driver.Server, node: Callable[..., Mesh]
) -> None:
    answers = iter([None, "its data is not clean any more"])
    node(1, Source(redis_at(server.address), lambda _: next(answers)).serve)
    with pytest.raises(TransferFailed, match="not clean any more"):
        fetch(node(2), [1], 0, home)
    assert not list(home.glob("transfer-*")) and not nameless_files()


def test_a_backend_that_dies_under_way(home: Path, server: driver.Server, node: Callable[..., Mesh]) -> None:
    fill(server.address, 200, 100_000)
    call(server.address, "CONFIG", "SET", "rdb-key-save-delay", "20000")
    node(1, Source(redis_at(server.address), lambda _: None).serve)

    def kill() -> None:
        child = threading.Event()
        while not child.is_set():
            found = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
            if found:
                child.set()
                for pid in (int(found[0]), server.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, 9)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(TransferFailed, match="node 1"):
        fetch(node(2), [1], 0, home)
    killer.join()


def test_the_serving_node_is_killed_under_way(home: Path, server: driver.Server, node: Callable[..., Mesh]) -> None:
    fill(server.address, 200, 100_000)
    script = f"""
        import os, signal
        from pathlib import Path
        from musidecar.mesh import Connection, Member, Mesh
        from musidecar.protocols.backend import Wanted
        from musidecar.protocols.redis.admin import Address
        from musidecar.protocols.redis.backend import Redis
        from musidecar.transfer import Source

        class Doomed(Connection):
            sent = 0
            def send_bytes(self, chunk):
                super().send_bytes(chunk)
                self.sent += len(chunk)
                if self.sent > 1_000_000:
                    os.kill(os.getpid(), signal.SIGKILL)

        source = Source(Redis(Wanted(Address(path={server.address.path!r}), Path('x'))), lambda _: None)
        mesh = Mesh(Member("test", 3, (1, 2, 3), Path({str(home)!r}), {SECRET!r}))
        mesh.handlers["transfer"] = lambda connection: source.serve(Doomed(connection.sock, connection.peer))
        mesh.listen()
        print("listening", flush=True)
        signal.pause()
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline() == b"listening\n"
        node(1, Source(redis_at(server.address), lambda _: None).serve)
        two = node(2)
        with pytest.raises(TransferFailed, match="node 3"):
            fetch(two, [3], 0, home)
        assert process.wait(WAIT_S) == -9
        got = fetch(two, [3, 1], 0, home)
        assert got.node == 1 and got.bytes > 20_000_000
        os.close(got.fd)
        assert not list(home.glob("transfer-*"))
    finally:
        process.kill()
        process.wait()
        process.stdout.close() if process.stdout else None


def test_silence_is_bounded(home: Path, node: Callable[..., Mesh]) -> None:
    done = threading.Event()

    def silent(connection: Connection) -> None:
        with connection:
            connection.recv(WAIT_S)
            connection.send({"offset": 5, "replid": "r" * 40})
            connection.send_bytes(b"REDIS")
            done.wait(WAIT_S)

    node(1, silent)
    with pytest.raises(TransferFailed, match="did not answer in time"):
        fetch(node(2), [1], 0, home, silence_s=0.2)
    done.set()


@pytest.mark.parametrize(
    ("offer", "end", "reason"),
    [
        ({"offset": 5, "replid": "r"}, {"bytes": 5, "sha256": hashlib.sha256(b"REDIX").hexdigest()}, "not what was"),
        ({"offset": 5, "replid": "r"}, {"bytes": 6, "sha256": hashlib.sha256(b"REDIS").hexdigest()}, "not what was"),
        ({"offset": 5, "replid": "r"}, {}, "not what was"),
        ({"offset": 4, "replid": "r"}, {}, "another offset"),
        ({"offset": "x"}, {}, "another offset"),
    ],
)
def test_what_is_damaged_or_not_what_was_asked_for_is_thrown_away(
    home: Path, node: Callable[..., Mesh], offer: dict[str, Any], end: dict[str, Any], reason: str
) -> None:
    def damaged(connection: Connection) -> None:
        with connection:
            connection.recv(WAIT_S)
            connection.send(offer)
            connection.send_bytes(b"REDIS")
            connection.send(end)

    node(1, damaged)
    with pytest.raises(TransferFailed, match=reason):
        fetch(node(2), [1], 5, home)


def test_a_transfer_can_be_cancelled(home: Path, server: driver.Server, node: Callable[..., Mesh]) -> None:
    fill(server.address, 500)
    node(1, Source(redis_at(server.address), lambda _: None).serve)
    asked = iter([False, False, True])
    with pytest.raises(Cancelled):
        fetch(node(2), [1], 0, home, cancelled=lambda: next(asked))
    assert not nameless_files()


def test_a_folder_that_cannot_be_written_is_told(home: Path, server: driver.Server, node: Callable[..., Mesh]) -> None:
    node(1, Source(redis_at(server.address), lambda _: None).serve)
    with pytest.raises(TransferFailed, match="cannot write"):
        fetch(node(2), [1], 0, home / "missing")


def test_no_more_than_so_many_at_a_time(home: Path, node: Callable[..., Mesh], server: driver.Server) -> None:
    inside, go = threading.Semaphore(0), threading.Event()

    def objection(_: int) -> None:
        inside.release()
        go.wait(WAIT_S)

    node(1, Source(redis_at(server.address), objection).serve)
    two = node(2)
    with contextlib.ExitStack() as stack:
        for _ in range(transfer.SERVE_MAX):
            connection = stack.enter_context(two.dial(1, "transfer"))
            connection.send({"at_least": 0, "term": 0})
        for _ in range(transfer.SERVE_MAX):
            assert inside.acquire(timeout=WAIT_S)
        with pytest.raises(TransferFailed, match="under way already"):
            fetch(two, [1], 0, home)
        go.set()


def test_leftovers_are_removed(home: Path) -> None:
    (home / "transfer-abc.rdb").write_bytes(b"half")
    (home / "other.rdb").write_bytes(b"")
    transfer.remove_leftovers(home)
    assert [path.name for path in home.glob("*.rdb")] == ["other.rdb"]


@pytest.mark.parametrize(("count", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1 << 20, "1.0 MiB")])
def test_sizes_for_people(count: int, text: str) -> None:
    assert transfer.size(count) == text
