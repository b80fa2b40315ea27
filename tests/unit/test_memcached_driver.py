"""The Python side of the memcached backend against real memcached processes."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from musidecar.protocols import kind
from musidecar.protocols.backend import Ask, Backend, BackendError, HoldsData, Wanted, make
from musidecar.protocols.memcached import checks, driver
from musidecar.protocols.memcached.connection import Connection, ReplyError
from musidecar.protocols.server import Address, Server
from tests.unit.orphans import dies_with_its_parent
from tests.unit.spawned_memcached import ask, spawned_memcached


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with spawned_memcached(tmp_path / "home") as started:
        yield started


def backend_at(address: Address, home: Path, spawn: bool = False) -> Backend:
    home.mkdir(exist_ok=True)
    return make("memcached", Wanted(address, home, spawn, kind("memcached").binary))


def settings_of(server: Server) -> dict[str, str]:
    with Connection(server.address) as connection:
        return connection.stats("settings")


def test_a_spawned_server_listens_on_its_socket_only_and_moves_no_pages(server: Server, tmp_path: Path) -> None:
    settings = settings_of(server)
    assert (settings["udpport"], settings["slab_automove"], settings["slab_reassign"]) == ("0", "0", "no")
    assert settings["domain_socket"] == "socket"  # in its folder
    listening = Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines()[1:]
    inodes = {os.readlink(f"/proc/{server.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{server.pid}/fd")}
    assert not [line for line in listening if f"socket:[{line.split()[9]}]" in inodes]
    assert (tmp_path / "home/socket").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("item_bytes", [512 << 10, 1 << 20, 8 << 20])
def test_items_may_be_as_long_as_was_said(tmp_path: Path, item_bytes: int) -> None:
    with spawned_memcached(tmp_path / "home", item_bytes_max=item_bytes, memory_bytes=64 << 20, threads=1) as server:
        prepared = driver.prepare(server.address, Ask())
        assert prepared.item_bytes_max == item_bytes and settings_of(server)["num_threads"] == "1"
        fits, too_long = b"x" * (item_bytes - 1024), b"x" * item_bytes
        with Connection(server.address) as connection:
            assert connection.ask(b"set a 0 0 %d\r\n%b" % (len(fits), fits)) == b"STORED"
            with pytest.raises(ReplyError, match="too large"):
                connection.ask(b"set a 0 0 %d\r\n%b" % (len(too_long), too_long))


def test_the_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    dies_with_its_parent("memcached", tmp_path, tmp_path / "socket")
    again = driver.spawn(tmp_path, tmp_path / "socket")  # its socket is still there
    assert ask(again.address, b"version") == b"VERSION 1.6.18"
    again.stop()
    assert not (tmp_path / "socket").exists()


def test_a_leftover_of_the_same_folder_is_replaced_and_another_server_is_not(tmp_path: Path) -> None:
    one, two, place = tmp_path / "one", tmp_path / "two", tmp_path / "socket"
    one.mkdir(), two.mkdir()
    leftover = driver.spawn(one, place)
    try:
        with pytest.raises(BackendError, match="another memcached listens"):
            driver.spawn(two, place)
        again = driver.spawn(one, place)
        assert leftover.process.wait(10) == -signal.SIGKILL and again.pid != leftover.pid
        assert ask(again.address, b"version").startswith(b"VERSION")
        again.stop()
    finally:
        leftover.stop()


def test_what_is_not_installed_or_ends_at_once_says_why(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no memcached-not-here on PATH: install it .Debian: apt install memcached"):
        driver.spawn(tmp_path, tmp_path / "socket", binary="memcached-not-here")
    with pytest.raises(BackendError, match=r"memcached ended at its start.*item"):
        driver.spawn(tmp_path, tmp_path / "socket", options={"item_bytes_max": 1 << 30, "memory_bytes": 64 << 20})


def test_a_joining_server_that_holds_keys_is_refused_with_their_number_and_the_line_to_type(server: Server) -> None:
    assert driver.prepare(server.address, Ask(joining=True)).keys == 0
    for i in range(3):
        assert ask(server.address, b"set k%d 0 0 1\r\nx" % i) == b"STORED"
    with pytest.raises(HoldsData, match=r"already holds 3 keys.*if that is wanted: musidecar run --replace-data"):
        driver.prepare(server.address, Ask(joining=True, replace_line="musidecar run --replace-data"))
    assert driver.prepare(server.address, Ask(joining=True, replace_data=True)).keys == 3
    assert driver.prepare(server.address, Ask()).keys == 3  # the seed


@pytest.mark.parametrize(
    ("argument", "expected"), [("-C", "no CAS numbers"), ("-X", "cannot be listed"), ("-F", "cannot be emptied")]
)
def test_a_server_that_cannot_be_replicated_is_refused(tmp_path: Path, argument: str, expected: str) -> None:
    with spawned_memcached(tmp_path / "home", argument) as server:
        with pytest.raises(BackendError, match=expected):
            driver.prepare(server.address, Ask())
        found = list(checks.running(server.address, 3.0, True, False, ""))
        assert [check for check in found if check.verdict == "bad" and expected in check.text]


def test_one_that_runs_already_is_attached_to_and_its_pages_stay_where_they_are(tmp_path: Path) -> None:
    with spawned_memcached(tmp_path / "home", "-o", "slab_reassign,slab_automove=1") as server:
        assert settings_of(server)["slab_automove"] == "1"
        found = backend_at(server.address, tmp_path / "node")
        found.start()
        prepared = found.prepare(Ask())
        assert found.server is None and prepared.pid == server.pid == found.local_pid(prepared.pid)
        assert prepared.changed == {"slab_automove": "0"} and settings_of(server)["slab_automove"] == "0"
        assert found.prepare(Ask()).changed == {}


def test_a_server_that_outlived_its_sidecar_is_known_again_and_another_is_not(tmp_path: Path) -> None:
    home = tmp_path / "node"
    with spawned_memcached(tmp_path / "a") as server:
        assert not backend_at(server.address, home).outlived()
        backend_at(server.address, home).prepare(Ask())
        assert backend_at(server.address, home).outlived()
        with spawned_memcached(tmp_path / "b") as other:
            assert not backend_at(other.address, home).outlived()
        again = backend_at(server.address, home)
        again.disown()
        assert not again.outlived()


def test_a_spawned_one_is_started_again_after_its_end(tmp_path: Path) -> None:
    backend = backend_at(Address(path=str(tmp_path / "socket")), tmp_path / "node", spawn=True)
    backend.start()
    assert backend.server is not None
    try:
        first = backend.prepare(Ask()).pid
        os.kill(first, signal.SIGKILL)
        backend.server.process.wait(10)
        assert backend.server.gone() == "killed by SIGKILL"
        with pytest.raises(BackendError, match="cannot connect"):
            backend.look(1.0)
        backend.start()
        backend.look(1.0)
        assert backend.prepare(Ask(joining=True)).pid not in (first, 0)
    finally:
        backend.server.stop()


def test_who_does_not_speak_memcached_is_told_so(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        with Connection(Address(path=str(tmp_path / "socket")), 0.2) as connection:
            accepted, _ = listener.accept()
            with pytest.raises(BackendError, match="did not answer in time"):
                connection.ask(b"version")
            accepted.close()


def test_evictions_raise_an_alarm_once(tmp_path: Path) -> None:
    with spawned_memcached(tmp_path / "home", memory_bytes=8 << 20) as server:
        backend = backend_at(server.address, tmp_path / "node")
        backend.prepare(Ask())
        vitals = backend.vitals()
        assert vitals.alarm == "" and vitals.facts["evictions"] == 0
        with Connection(server.address) as connection:
            for i in range(400):
                assert connection.ask(b"set k%d 0 0 100000\r\n%b" % (i, b"x" * 100_000)) == b"STORED"
        vitals = backend.vitals()
        assert vitals.facts["evictions"] > 0
        assert f"gave up {vitals.facts['evictions']} items" in vitals.alarm and "memory_bytes" in vitals.alarm
        again = backend.vitals()
        assert again.alarm == ""


def test_doctor_names_the_line_to_type(tmp_path: Path) -> None:
    missing = checks.server_program("memcached-not-here")
    assert (missing.verdict, missing.remedy) == ("bad", "apt-get install memcached")
    assert checks.server_program("memcached").verdict == "ok"
    with spawned_memcached(tmp_path / "home") as server:
        ask(server.address, b"set k 0 0 1\r\nx")
        found = list(checks.running(server.address, 3.0, False, False, "the line"))
        assert [(check.text, check.remedy) for check in found if check.verdict == "bad"] == [
            ("1 keys of its own, where the seed's data is to go", "the line")
        ]
    gone = list(checks.running(Address(path=str(tmp_path / "gone")), 1.0, False, False, ""))
    assert [check.verdict for check in gone] == ["bad"]
