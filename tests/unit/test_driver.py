"""The Python side of the Redis backend against real redis-server processes."""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from musidecar.protocols.redis import driver, rdb
from musidecar.protocols.redis.admin import Address, BackendError, Connection, ReplyError, encode
from musidecar.protocols.server import log_tail
from tests.unit.orphans import dies_with_its_parent

TOKEN = "0123456789abcdef" * 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[driver.Server]:
    started = driver.spawn(tmp_path, tmp_path / "redis.sock")
    yield started
    started.stop()


def prepare(server: driver.Server, **changes: object) -> driver.Prepared:
    options: dict[str, object] = {"token": TOKEN, "backend_timeout_ms": 5000, **changes}
    return driver.prepare(server.address, **options)  # type: ignore[arg-type]


def call(server: driver.Server, *words: str | bytes | int) -> object:
    with Connection(server.address) as connection:
        return connection.call(*words)


# ---- starting --------------------------------------------------------------------------------------------------------


def test_a_spawned_server_is_in_memory_and_private(server: driver.Server, tmp_path: Path) -> None:
    with Connection(server.address) as connection:
        settings = connection.config()
    assert settings["port"] == "0" and settings["save"] == "" and settings["appendonly"] == "no"
    assert Path(settings["dir"]) == tmp_path
    assert (tmp_path / "redis.sock").stat().st_mode & 0o777 == 0o700


def test_the_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    dies_with_its_parent("redis", tmp_path, tmp_path / "redis.sock")
    # its socket file is still there: the next start takes the place over
    again = driver.spawn(tmp_path, tmp_path / "redis.sock")
    assert call(again, "PING") == b"PONG"
    again.stop()
    assert not (tmp_path / "redis.sock").exists()


def test_a_leftover_of_the_same_directory_is_replaced_and_another_server_is_not(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    leftover = driver.spawn(one, tmp_path / "redis.sock")
    try:
        with pytest.raises(BackendError, match="another Redis listens"):
            driver.spawn(two, tmp_path / "redis.sock")
        again = driver.spawn(one, tmp_path / "redis.sock")
        assert leftover.process.wait(10) == 0 and again.pid != leftover.pid
        again.stop()
    finally:
        leftover.stop()


def test_a_leftover_that_dies_while_it_is_looked_at_is_no_obstacle(tmp_path: Path) -> None:
    """A node started again at once meets the server of its former life in its last moment."""
    dying = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    dying.bind(str(tmp_path / "redis.sock"))
    dying.listen()

    def die() -> None:
        accepted, _ = dying.accept()
        dying.close()
        accepted.close()

    thread = threading.Thread(target=die)
    thread.start()
    started = driver.spawn(tmp_path, tmp_path / "redis.sock")
    thread.join()
    assert call(started, "PING") == b"PONG"
    started.stop()


def test_only_the_main_thread_may_spawn(tmp_path: Path) -> None:
    seen: list[Exception] = []

    def run() -> None:
        try:
            driver.spawn(tmp_path, tmp_path / "redis.sock")
        except RuntimeError as error:
            seen.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(seen) == 1


def test_no_redis_server_on_path(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no redis-server-not-here on PATH"):
        driver.spawn(tmp_path, tmp_path / "redis.sock", binary="redis-server-not-here")


def test_a_server_that_ends_at_once_tells_why(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"exit code 1.*no-such-setting"):
        driver.spawn(tmp_path, tmp_path / "redis.sock", arguments=["--no-such-setting", "1"])
    assert log_tail(tmp_path / "missing").startswith("(no log")


def test_how_a_server_ended(server: driver.Server) -> None:
    assert server.gone() is None
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()
    assert server.gone() == "killed by SIGKILL"


# ---- preparing -------------------------------------------------------------------------------------------------------


def test_rule_08_settings_that_replication_needs_are_made(server: driver.Server) -> None:
    call(server, "SET", "k", "v")
    call(server, "CONFIG", "SET", "client-output-buffer-limit", "pubsub 7mb 6mb 55", "timeout", "9")
    found = prepare(server)
    with Connection(server.address) as connection:
        settings = connection.config()
    assert settings["client-output-buffer-limit"] == "normal 0 0 0 slave 0 0 0 pubsub 7340032 6291456 55"
    assert settings["masterauth"] == TOKEN and settings["timeout"] == "0"
    assert settings["repl-diskless-sync-delay"] == "0" and settings["repl-backlog-ttl"] == "0"
    assert settings["replica-ignore-disk-write-errors"] == "yes"
    assert int(settings["repl-backlog-size"]) == driver.BACKLOG_BYTES_MIN
    assert 0 < int(settings["busy-reply-threshold"]) < 5000
    assert (found.keys, found.functions, found.databases, found.password_needed) == (1, 0, 16, False)
    assert found.version.startswith("7.") and found.pid == server.pid and found.bulk_bytes_max == 512 << 20
    assert any(row[0] == b"get" for row in found.commands)
    assert found.changed["timeout"] == "0" and TOKEN not in str(found.changed)
    assert not prepare(server).changed, "a second look finds nothing left to change"


def test_settings_that_do_already_are_left_alone() -> None:
    current = {"repl-backlog-size": str(1 << 30), "repl-timeout": "600", "busy-reply-threshold": "10"}
    wanted = driver.wanted_settings(current, 5000, TOKEN)
    assert not {"repl-backlog-size", "repl-timeout", "busy-reply-threshold"} & wanted.keys()
    assert (
        driver.wanted_settings({**current, "busy-reply-threshold": "900"}, 200, TOKEN)["busy-reply-threshold"] == "100"
    )


def test_a_joining_node_with_data_is_refused_unless_told_otherwise(server: driver.Server) -> None:
    assert prepare(server, joining=True).keys == 0
    call(server, "SET", "a", "1")
    call(server, "EVAL", "redis.call('select', 5); redis.call('set', 'b', 1)", 0)
    call(server, "FUNCTION", "LOAD", "#!lua name=lib\nredis.register_function('f', function() return 1 end)")
    with pytest.raises(driver.HoldsData, match=r"holds 2 keys and 1 function library.*run --replace-data"):
        prepare(server, joining=True, replace_line="musidecar run --replace-data")
    assert prepare(server, joining=True, replace_data=True).keys == 2
    assert prepare(server).keys == 2, "the seed brings its data"


def test_a_replica_and_a_master_with_replicas_are_refused(server: driver.Server, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    call(server, "CONFIG", "SET", "port", str(port), "repl-diskless-sync-delay", "0")
    other = driver.spawn(tmp_path / "other", tmp_path / "other.sock", arguments=["--replicaof", "127.0.0.1", str(port)])
    try:
        rdb.wait_offset(other.address, 0, 10)  # 0 or more: its link is up
        with pytest.raises(BackendError, match=f"replica of 127.0.0.1:{port}.*REPLICAOF NO ONE"):
            prepare(other)
        with pytest.raises(BackendError, match="already has replicas"):
            prepare(server)
    finally:
        other.stop()


def test_what_a_dead_sidecar_left_is_detached_where_it_joins_and_told_where_it_is_the_seed(
    server: driver.Server,
) -> None:
    call(server, "SET", "k", "v")
    prepare(server)
    call(server, "REPLICAOF", "127.0.0.1", 1)
    with pytest.raises(BackendError, match=r"may lack its last writes.*REPLICAOF NO ONE"):
        prepare(server)
    with pytest.raises(driver.HoldsData, match="1 key"):
        prepare(server, joining=True)
    assert prepare(server, joining=True, replace_data=True).keys == 1
    call(server, "REPLICAOF", "127.0.0.1", 1)
    call(server, "CONFIG", "SET", "masterauth", "mine")
    with pytest.raises(BackendError, match=r"replica of 127\.0\.0\.1:1"):
        prepare(server, joining=True, replace_data=True)


def test_the_process_behind_an_address(server: driver.Server) -> None:
    assert driver.local_pid(server.address, 1) == server.pid
    assert driver.local_pid(Address(path="/nowhere"), server.pid) is None
    assert driver.local_pid(Address(host="127.0.0.1", port=1), server.pid) == server.pid
    assert driver.local_pid(Address(host="127.0.0.1", port=1), os.getpid()) is None
    assert driver.local_pid(Address(host="192.0.2.1", port=1), server.pid) is None


def test_cluster_mode_is_refused(tmp_path: Path) -> None:
    server = driver.spawn(tmp_path, tmp_path / "redis.sock", arguments=["--cluster-enabled", "yes", "--port", "0"])
    try:
        with pytest.raises(BackendError, match="cluster mode"):
            prepare(server)
    finally:
        server.stop()


def test_passwords(server: driver.Server) -> None:
    call(server, "CONFIG", "SET", "requirepass", "sesame")
    path = server.address.path
    with pytest.raises(BackendError, match=r"NOAUTH.*password_file"):
        driver.attach(Address(path=path))
    with pytest.raises(BackendError, match="refuses the password"):
        driver.attach(Address(path=path, password="wrong"))
    login = Address(path=path, password="sesame")
    assert driver.attach(login) == server.pid
    assert driver.prepare(login, token=TOKEN, backend_timeout_ms=5000).password_needed
    with Connection(login) as connection:
        connection.call("ACL", "SETUSER", "poor", "on", ">p", "~*", "+info", "+role")
    with pytest.raises(BackendError, match=r"NOPERM.*all rights"):
        driver.prepare(Address(path=path, user="poor", password="p"), token=TOKEN, backend_timeout_ms=5000)
    assert "sesame" not in repr(login)


def test_an_old_version_is_refused() -> None:
    address = Address(path="/x")
    for version in ("6.2.14", "", "beta"):
        with pytest.raises(BackendError, match=r"7\.0 or newer"):
            driver._check_version(address, {"redis_version": version, "redis_mode": "standalone"})
    driver._check_version(address, {"redis_version": "10.1.0", "redis_mode": "standalone"})
    driver._check_version(address, {"redis_version": "7.2.4", "server_name": "valkey", "server_mode": "standalone"})
    with pytest.raises(driver.BackendError, match="cluster mode"):
        driver._check_version(address, {"redis_version": "7.2.4", "server_mode": "cluster"})


def test_what_is_no_redis(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot connect"):
        driver.attach(Address(path=str(tmp_path / "nobody.sock")))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = Address(host="127.0.0.1", port=listener.getsockname()[1])
        connection = Connection(address, 0.2)
        peer, _ = listener.accept()
        with peer, connection:
            with pytest.raises(BackendError, match="did not answer within"):
                connection.call("PING")
            peer.sendall(b"HTTP/1.1 400 Bad Request\r\n")
            with pytest.raises(BackendError, match="does not speak Redis"):
                connection.call("PING")


# ---- taking an RDB ---------------------------------------------------------------------------------------------------


def fill(server: driver.Server, count: int = 200) -> None:
    with Connection(server.address) as connection:
        for i in range(count):
            connection.call("SET", f"key:{i}", secrets.token_bytes(2000))


def digest_after_loading(directory: Path, data: bytes) -> object:
    directory.mkdir()
    (directory / "dump.rdb").write_bytes(data)
    loaded = driver.spawn(directory, directory / "redis.sock", arguments=["--enable-debug-command", "yes"])
    try:
        return call(loaded, "DEBUG", "DIGEST")
    finally:
        loaded.stop()


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_rule_17_the_rdb_is_the_data_at_its_offset(tmp_path: Path, diskless: str) -> None:
    arguments = ["--repl-diskless-sync", diskless, "--repl-diskless-sync-delay", "0", "--enable-debug-command", "yes"]
    server = driver.spawn(tmp_path, tmp_path / "redis.sock", arguments=arguments)
    try:
        fill(server)
        taking = rdb.capture(server.address)
        data = b"".join(taking.chunks())
        taking.close()
        assert data.startswith(b"REDIS") and len(taking.replid) == 40
        assert taking.offset == int(
            call(server, "INFO", "replication").decode().split("master_repl_offset:")[1].split()[0]
        )  # type: ignore[attr-defined]
        assert digest_after_loading(tmp_path / "copy", data) == call(server, "DEBUG", "DIGEST")
    finally:
        server.stop()


def test_rule_17_an_offset_not_reached_yet_is_waited_for_in_bounded_time(server: driver.Server) -> None:
    prepare(server)
    first = rdb.capture(server.address)  # gives the master a backlog: from here on its offset grows
    hashlib.sha256(b"".join(first.chunks())).digest()
    with pytest.raises(rdb.NotReady, match="is wanted"):
        rdb.capture(server.address, first.offset + 1000, wait_s=0.1)
    writer = threading.Timer(0.2, lambda: call(server, "SET", "k", "x" * 2000))
    writer.start()
    second = rdb.capture(server.address, first.offset + 1000, wait_s=10)
    writer.join()
    assert second.offset >= first.offset + 1000
    first.close(), second.close()


def test_a_replica_without_its_master_is_not_ready(server: driver.Server) -> None:
    call(server, "REPLICAOF", "127.0.0.1", 1)
    with pytest.raises(rdb.NotReady):
        rdb.capture(server.address, wait_s=0.1)


class Fake:
    """A stand-in for the far end of a PSYNC, for what a real Redis does too rarely to be waited for."""

    def __init__(self, answer: bytes, piece: int) -> None:
        near, self.far = socket.socketpair()
        self.capture = rdb.Capture("r", 1, near, b"", 5.0)
        self.thread = threading.Thread(target=self._send, args=(answer, piece))
        self.thread.start()

    def _send(self, answer: bytes, piece: int) -> None:
        with self.far:
            for at in range(0, len(answer), piece):
                self.far.sendall(answer[at : at + piece])

    def read(self) -> bytes:
        try:
            return b"".join(self.capture.chunks())
        finally:
            self.capture.close()
            self.thread.join()


@pytest.mark.parametrize("piece", [1, 7, 39, 40, 41, 1 << 20])
def test_both_forms_split_anywhere(piece: int) -> None:
    body, mark = os.urandom(3000), secrets.token_hex(20).encode()
    assert Fake(b"\n\n$EOF:" + mark + b"\r\n" + body + mark, piece).read() == body
    assert Fake(b"\n$3000\r\n" + body, piece).read() == body
    assert Fake(b"$EOF:" + mark + b"\r\n" + b"ab" + mark, piece).read() == b"ab"
    assert Fake(b"$0\r\n", piece).read() == b""


@pytest.mark.parametrize(
    "answer",
    [b"-ERR no\r\n", b"$EOF:short\r\n", b"$10\r\nfive", b"$EOF:" + b"m" * 40 + b"\r\nbody" + b"m" * 39, b"x" * 4000],
)
def test_what_breaks_off_or_is_no_rdb_is_an_error(answer: bytes) -> None:
    with pytest.raises(BackendError):
        Fake(answer, 1 << 20).read()


def test_requests_are_encoded_as_bulk_strings() -> None:
    assert encode("SET", b"\r\n", 12) == b"*3\r\n$3\r\nSET\r\n$2\r\n\r\n\r\n$2\r\n12\r\n"
    assert ReplyError("NOAUTH x").code == "NOAUTH"
