"""flush_all with a delay: at one place of the log for all, whatever the clocks, the lag and who leads by then."""

from __future__ import annotations

import threading

from musidecar.protocols.memcached.connection import Connection
from musidecar.protocols.server import Address
from musidecar.testbed import Testbed, musidecar, wait_until
from tests.fault.memcached_load import assert_same, client_of, read
from tests.fault.test_memcached import leader_of


class Writer:
    """Sets one key after another, through one node, until it is told to end."""

    def __init__(self, address: Address) -> None:
        self.count = 0
        self._address, self._ended = address, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with Connection(self._address, 30) as connection:
            while not self._ended.is_set():
                assert connection.ask(b"set w%d 0 0 1\r\nx" % self.count) == b"STORED"
                self.count += 1

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def test_a_follower_that_is_behind_when_it_comes_due_flushes_the_same() -> None:
    with Testbed(backend="memcached") as bed:
        status = bed.status()
        leader, late = client_of(leader_of(status)), status.followers[0]
        with Connection(leader) as connection:
            assert connection.ask(b"set old 0 0 1\r\nx") == b"STORED"
            assert connection.ask(b"flush_all 2") == b"OK"
            assert connection.ask(b"mg old") == b"HD"
            with Writer(leader) as writer:
                bed.stop(late)
                wait_until("it is flushed", lambda: connection.ask(b"mg old") == b"EN", 30)
                behind = writer.count
                wait_until("it goes on", lambda: writer.count > behind + 50, 30)
            bed.cont(late)
        bed.wait_status("the late one is back", lambda s: s[late.id].is_well, 60)
        assert 0 < assert_same(bed) < writer.count
        assert read(leader, [b"w0", b"w%d" % (writer.count - 1)]).keys() == {b"w%d" % (writer.count - 1)}


def test_it_comes_under_a_leader_that_was_filled_meanwhile() -> None:
    with Testbed(backend="memcached") as bed:
        status = bed.status()
        first = leader_of(status)
        others = [client_of(node) for node in status.followers]
        with Connection(others[0], 30) as connection:
            assert connection.ask(b"set old 0 0 1\r\nx") == b"STORED"
            assert connection.ask(b"flush_all 8") == b"OK"
        bed.kill(first)
        second = leader_of(bed.wait_status("another leads", lambda s: s.leader not in (None, first.id)))
        bed.start_again(first)
        bed.wait_status("the first is filled", lambda s: s[first.id].is_well, 60)
        assert musidecar("switchover", "--dir", str(bed.dir), "--to", first.id).returncode == 0
        bed.wait_status("it leads again", lambda s: s.leader == first.id and s[second.id].is_well, 30)
        reader = client_of(first)
        assert read(reader, [b"old"]), "this took too long to show anything"
        wait_until("it is flushed", lambda: not read(reader, [b"old"]), 30)
        assert assert_same(bed) == 0


def test_another_flush_takes_its_place() -> None:
    with Testbed(backend="memcached") as bed, Connection(client_of(leader_of(bed.status()))) as connection:
        assert connection.ask(b"flush_all 1") == b"OK"
        assert connection.ask(b"flush_all") == b"OK"
        assert connection.ask(b"set kept 0 0 1\r\nx") == b"STORED"
        assert connection.ask(b"flush_all 1") == b"OK"
        assert connection.ask(b"flush_all 2000000000") == b"OK"
        assert connection.ask(b"ms until 1 T3\r\nx") == b"HD"
        wait_until("three seconds pass", lambda: connection.ask(b"mg until") == b"EN", 30)
        assert connection.ask(b"mg kept") == b"HD"
