"""protocols/memcached in front of a real memcached answers as a bare one does, and followers hold what the leader does.

A harness (memcached_wire.py) drives the C code with a real server behind it, as the engine does; another real server is
given what the client sent. Where the sidecar closes a connection, the bare server is given what came up to there.
"""

import base64
import random
import time
from collections.abc import Iterator

import pytest
from memcached_random import BINARY, KEYS, NO_TEXT, Numbers, Random, compare, short
from memcached_wire import Backend, Client, Sidecar, limits
from private_memcached import PrivateMemcached, private_memcached

ITEM_BYTES_MAX = 4096
CHUNKS = 400


@pytest.fixture(scope="module")
def servers() -> Iterator[list[PrivateMemcached]]:
    """A bare one, a leader's, a follower's."""
    try:
        first = PrivateMemcached(ITEM_BYTES_MAX, no_threads=True)
    except FileNotFoundError:
        pytest.skip("needs memcached")
    try:
        with private_memcached(ITEM_BYTES_MAX) as leader, private_memcached(ITEM_BYTES_MAX) as follower:
            yield [first, leader, follower]
    finally:
        first.stop()


@pytest.fixture
def sidecar(servers: list[PrivateMemcached]) -> Iterator[Sidecar]:
    backends = [Backend(server) for server in servers[1:]]
    yield Sidecar(backends, limits(item_bytes_max=ITEM_BYTES_MAX))
    for backend in backends:
        backend.close()


def flush(servers: list[PrivateMemcached]) -> None:
    names = [b" ".join([b"md", base64.b64encode(key), b"b"]) for key in KEYS + BINARY + NO_TEXT]
    for server in servers:
        server.answer(b"\r\n".join(names) + b"\r\n")


def dump(server: PrivateMemcached) -> bytes:
    keys = [base64.b64encode(key) for key in dict.fromkeys(KEYS + BINARY + NO_TEXT)]
    return server.answer(b"".join(b"mg %b b k f t v u s\r\n" % key for key in keys))


def run(servers: list[PrivateMemcached], sidecar: Sidecar, seed: int, marks: bool) -> None:
    flush(servers)
    numbers = Numbers()
    commands = Random(random.Random(seed), numbers, ITEM_BYTES_MAX, marks)
    for _ in range(CHUNKS):
        bare, own = commands.chunk()
        client = Client(sidecar)
        got = client.ask(own)
        # What is not whole is left out: the server answers nothing at all if the client is gone before it is. A line
        # too long, too: whether the server closes or answers ERROR depends on how its bytes come.
        bare = bare[: client.taken] + b"x" * client.reader.swallow + b"mn\r\n"
        got += b"MN\r\n"
        expected = servers[0].answer(bare)
        try:
            compare(expected, got, numbers)
        except (AssertionError, ValueError) as error:
            logged = b"".join(sidecar.log[-12:])
            said = f"{short(own)}\nexpected {short(expected)}\ngot {short(got)}\nlogged {short(logged)}"
            raise AssertionError(f"{error}\n{said}") from None
    answers = [dump(server) for server in servers]
    compare(answers[0], answers[1], numbers)
    compare(answers[1], answers[2], numbers, given_out=False)  # by an mg, which is the leader's alone


@pytest.mark.parametrize("seed", range(8))
def test_random_commands_are_answered_as_by_a_bare_server(
    servers: list[PrivateMemcached], sidecar: Sidecar, seed: int
) -> None:
    sidecar.bounds.exact = seed % 4 != 3
    run(servers, sidecar, seed, marks=False)


@pytest.mark.parametrize("seed", range(100, 106))
def test_stale_items_are_given_out_as_by_a_bare_server(
    servers: list[PrivateMemcached], sidecar: Sidecar, seed: int
) -> None:
    run(servers, sidecar, seed, marks=True)


# ---- time ------------------------------------------------------------------------------------------------------------


def expiry(server: PrivateMemcached, key: bytes) -> int:
    """As the server keeps it: absolute; -1: never."""
    line = next(
        line for line in server.answer(b"lru_crawler metadump hash\r\n").split(b"\n") if b"key=" + key + b" " in line
    )
    return int(line.split(b"exp=")[1].split(b" ")[0])


def test_an_expiry_that_is_kept_does_not_move(servers: list[PrivateMemcached], sidecar: Sidecar) -> None:
    """The server's clock ticks when it likes: whoever added what remains to another clock would be a second late now
    and then, and each time anew."""
    client = Client(sidecar)
    client.ask(b"set kept 0 1000 1\r\n1\r\nset list 0 1000 0\r\n\r\nset for_ever 0 0 1\r\n1\r\n")
    before = [expiry(server, key) for key in (b"kept", b"list", b"for_ever") for server in servers[1:]]
    until, requests = time.monotonic() + 2.5, 0  # ticks of all three clocks
    while time.monotonic() < until:
        assert client.ask(b"incr kept 1\r\nappend list 0 0 1\r\nx\r\nincr for_ever 1\r\n").count(b"\r\n") == 3
        requests += 1
        if requests % 1000 == 0:
            client.ask(b"delete list\r\nset list 0 %d 0\r\n\r\n" % before[2])
    assert requests > 100
    assert [expiry(server, key) for key in (b"kept", b"list", b"for_ever") for server in servers[1:]] == before
    assert before[0] == before[1] and before[4] == -1


@pytest.mark.parametrize("command", [b"touch short 900", b"gat 900 short", b"mg short T900"])
def test_a_follower_that_comes_late_has_what_was_prolonged(
    servers: list[PrivateMemcached], sidecar: Sidecar, command: bytes
) -> None:
    client = Client(sidecar)
    follower = sidecar.backends[1]
    client.ask(b"set short 3 2 5\r\nvalue\r\n")
    sidecar.backends = sidecar.backends[:1]  # it hangs
    sidecar.log.clear()
    assert client.ask(command + b"\r\n") != b""
    while follower.ask(b"get short\r\n") != b"END\r\n":
        time.sleep(0.02)
    for logged in sidecar.log:
        follower.ask(logged)
    assert follower.ask(b"get short\r\n") == b"VALUE short 3 5\r\nvalue\r\nEND\r\n"
    assert expiry(servers[1], b"short") == expiry(servers[2], b"short")


# ---- sizes, and what one node says of itself ------------------------------------------------------------------------


def test_the_largest_items_of_a_server_as_it_is_installed() -> None:
    room = (1 << 20) - 48 - 8 - 2 - 2
    with private_memcached() as bare, private_memcached() as leader:
        backend = Backend(leader)
        client, numbers = Client(Sidecar([backend])), Numbers()
        for sent in (
            b"set a 0 0 %d\r\n%b\r\n" % (room, b"v" * room),
            b"append a 0 0 1\r\nx\r\n",
            b"set a 0 0 %d\r\n%b\r\n" % (room + 1, b"v" * (room + 1)),
            b"get a\r\n",
            b"set a 1 0 %d\r\n%b\r\n" % (room - 4, b"v" * (room - 4)),
            b"ms a %d q\r\n%b\r\n" % (room + 1, b"v" * (room + 1)),
            b"set b 0 0 600000\r\n7%b\r\n" % (b" " * 599_999),  # kept in pieces, so no number
            b"incr b 1\r\n",
            b"set b 0 0 500000\r\n7%b\r\n" % (b" " * 499_999),
            b"incr b 1\r\n",
            b"get b\r\n",
            b"set c 0 0 700000 noreply\r\n%b\r\nprepend c 0 0 400000\r\n%b\r\n" % (b"c" * 700_000, b"d" * 400_000),
            b"mg a s\r\nmg b s\r\nmg c s\r\n",
        ):
            compare(bare.answer(sent), client.ask(sent), numbers)
        backend.close()


def test_what_a_node_says_of_itself_is_framed(sidecar: Sidecar) -> None:
    client = Client(sidecar)
    client.ask(b"set here 0 0 1\r\nx\r\n")
    for line in (
        b"stats",
        b"stats items",
        b"stats slabs",
        b"stats settings",
        b"stats conns",
        b"stats sizes",
        b"stats detail on",
        b"stats detail dump",
        b"stats detail off",
        b"stats cachedump 1 10",
        b"stats reset",
        b"stats nothing",
        b"version",
        b"verbosity 0",
        b"slabs automove 0",
        b"slabs reassign 1 2",
        b"lru tune 10 25 0.1 2.0",
        b"lru mode segmented",
        b"lru_crawler enable",
        b"lru_crawler sleep 100",
        b"lru_crawler crawl all",
        b"cache_memlimit 64",
        b"extstore item_size 1",
        b"refresh_certs",
    ):
        said = client.ask(line + b"\r\nmn\r\n")
        assert said.endswith(b"\r\nMN\r\n") and len(said) >= 8, (line, said)
    assert client.ask(b"verbosity 0 noreply\r\nlru noreply\r\nmn\r\n") == b"MN\r\n"
    for backend in sidecar.backends:
        assert backend.held == b""
