"""protocols/memcached in front of a real memcached answers as a bare one does, and followers hold what the leader does.

A harness (memcached_wire.py) drives the C code with a real server behind it, as the engine does; another real server is
given what the client sent. Where the sidecar closes a connection, the bare server is given what came up to there.
"""

import base64
import random
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
