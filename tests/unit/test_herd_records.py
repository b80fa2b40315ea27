"""What HERD is given, byte by byte: keys, values, request slots, registry records; its registry, as HERD uses it."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memcached_wire import Buffer

from musidecar._ffi import ffi, lib


def siphash(secret: bytes, text: bytes) -> bytes:
    out = ffi.new("uint8_t[16]")
    lib.herd_siphash(secret, text, len(text), out)
    return bytes(out)


def key_of(text: bytes) -> tuple[bytes, int]:
    key = ffi.new("struct herd_key *")
    lib.herd_key_of(text, len(text), key)
    return bytes(key.bytes), key.check


def value_of(check: int, flags: int, data: bytes) -> bytes:
    out = ffi.new("uint8_t[46]")
    lib.herd_value_write(out, check, flags, data, len(data))
    return bytes(out)


def read(value: bytes, check: int) -> tuple[int, bytes] | None:
    found = ffi.new("struct herd_value *")
    if not lib.herd_value_read(value, len(value), check, found):
        return None
    return found.flags, bytes(found.data)[: found.length]


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "wanted"),
    [(0, "a3817f04ba25a8e66df67214c7550293"), (1, "da87c1d86b99af44347659119b22fc45"),
     (15, "5493e99933b0a8117e08ec0f97cfc3d9"), (63, "5150d1772f50834a503e069a973fbd7c")],
)  # fmt: skip
def test_siphash_as_its_authors_publish_it(length: int, wanted: str) -> None:
    assert siphash(bytes(range(16)), bytes(range(length))).hex() == wanted


@pytest.mark.parametrize(
    ("text", "key", "check", "workers"),
    [(b"", "2f6b6c70b8f53e66c42942a32e3ae03b", 0x5AF4701700D10657, (0, 0, 4)),
     (b"a", "8279b64142eaf9e93457e7c809d46011", 0x8F4D9632428BE57D, (0, 1, 10)),
     (b"k" * 250, "2e0ee5e981124e31836f7de0f3b699a2", 0x3FED830FC3191707, (0, 0, 2)),
     (b"greeting", "b33010cf8d4fbf0aff655094bfa58b42", 0xB8A4E206E18E71E7, (0, 0, 0))],
)  # fmt: skip
def test_a_key_is_the_same_at_every_node_for_ever(text: bytes, key: str, check: int, workers: tuple[int, ...]) -> None:
    assert key_of(text) == (bytes.fromhex(key), check)
    assert tuple(lib.herd_worker(bytes.fromhex(key), count) for count in (1, 2, 12)) == workers


def test_keys_are_spread_over_the_workers() -> None:
    counts = [0] * 12
    for i in range(6000):
        counts[lib.herd_worker(key_of(b"%d" % i)[0], 12)] += 1
    assert min(counts) > 400 and sum(counts) == 6000


# ---- values ----------------------------------------------------------------------------------------------------------


def test_a_value_has_check_flags_length_and_data() -> None:
    wanted = "e7718ee106e2a4b8" "07000000" "05" "68656c6c6f" + "00" * 28
    assert value_of(0xB8A4E206E18E71E7, 7, b"hello").hex() == wanted
    assert len(bytes.fromhex(wanted)) == 46


def test_a_deleted_value_is_told_by_its_length() -> None:
    out = ffi.new("uint8_t[46]")
    lib.herd_value_deleted(out, 0x0102030405060708)
    assert bytes(out).hex() == "0807060504030201" "00000000" "ff" + "00" * 33
    assert read(bytes(out), 0x0102030405060708) is None and not lib.herd_value_is_whole(bytes(out), 46)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=33))
def test_what_is_written_is_read(check: int, flags: int, data: bytes) -> None:
    value = value_of(check, flags, data)
    assert read(value, check) == (flags, data)
    assert read(value, check ^ 1) is None, "another key with the same 16 bytes: a miss, never its value"
    assert read(value[:45], check) is None


def test_what_herd_fills_itself_with_is_no_value() -> None:
    for byte in range(256):
        filled = bytes([byte]) * 32
        assert read(filled, int.from_bytes(filled[:8], "little")) is None


# ---- slots -----------------------------------------------------------------------------------------------------------


def test_a_get_is_key_and_opcode() -> None:
    slot = ffi.new("uint8_t[64]")
    lib.herd_slot_get(slot, bytes(range(16)))
    assert bytes(slot)[:17] == bytes(range(16)) + b"\x79"


def test_a_put_waits_for_its_opcode() -> None:
    """The opcode, 122, is written alone, last, at 16."""
    slot = ffi.new("uint8_t[64]", b"\xff" * 64)
    lib.herd_slot_put(slot, bytes(range(16)), bytes(range(100, 146)))
    assert bytes(slot) == bytes(range(16)) + b"\0" + b"\x2e" + bytes(range(100, 146))


@pytest.mark.parametrize(
    ("worker", "clients", "client", "turn", "at"),
    [(0, 70, 0, 0, 0), (0, 70, 0, 31, 1984), (0, 70, 0, 32, 0), (0, 70, 1, 0, 2048), (1, 70, 0, 0, 143360),
     (11, 70, 69, 63, 1720256)],
)  # fmt: skip
def test_the_slots_place(worker: int, clients: int, client: int, turn: int, at: int) -> None:
    assert lib.herd_slot_at(worker, clients, client, turn) == at


# ---- the registry ----------------------------------------------------------------------------------------------------


def record(name: str, address: int = 0, bytes_: int = 0, rkey: int = 0, lid: int = 0, qpn: int = 0) -> bytes:
    return struct.pack("=200sQIIii", name.encode(), address, bytes_, rkey, lid, qpn)


def test_a_record_byte_by_byte() -> None:
    out = ffi.new("struct herd_record *")
    of = {"address": 0x1122334455667788, "bytes": 1 << 24, "rkey": 0xAABBCCDD, "lid": -2, "qpn": 17}
    lib.herd_record_write(out, ffi.new("struct herd_record *", of), b"client-conn-3")
    written = bytes(ffi.buffer(out))
    assert written == record("client-conn-3", 0x1122334455667788, 1 << 24, 0xAABBCCDD, -2, 17)
    assert len(written) == 224
    assert written[200:].hex() == "8877665544332211" "00000001" "ddccbbaa" "feffffff" "11000000"


class Registry:
    """The sidecar's, with a LID of 5 and the queue pairs 100 and 200."""

    def __init__(self, workers: int = 2) -> None:
        self.c = ffi.new("struct herd_registry *")
        lib.herd_registry_start(self.c, 5, 100, 200, workers)
        self.held, self.good = b"", True

    def say(self, data: bytes) -> bytes:
        out, good = Buffer(), ffi.new("bool *")
        self.held += data
        used = lib.herd_registry_feed(self.c, self.held, len(self.held), out.c, good)
        self.held, self.good = self.held[used:], good[0]
        return out.take()

    def set(self, name: str, value: bytes) -> bytes:
        return self.say(b"set %b 0 0 %d\r\n%b\r\n" % (name.encode(), len(value), value))

    def get(self, name: str) -> bytes | None:
        answer = self.say(b"get %b\r\n" % name.encode())
        if answer == b"END\r\n":
            return None
        head, _, rest = answer.partition(b"\r\n")
        length = int(head.split()[3])
        assert head == b"VALUE %b 0 %d" % (name.encode(), length) and rest[length:] == b"\r\nEND\r\n"
        return rest[:length]

    def publish(self, clients: int) -> None:
        for i in range(clients):
            assert self.set(f"master-0-{i}", record(f"master-0-{i}", 4096, 1 << 24, 9, 5, 300 + i)) == b"STORED\r\n"

    def connect(self, clients: int) -> None:
        for i in range(clients):
            assert self.get(f"client-conn-{i}") == record(f"client-conn-{i}", lid=5, qpn=100)
            assert self.set(f"__HRD_RESERVED_NAME_PREFIXmaster-0-{i}", b"hrd_ready") == b"STORED\r\n"

    @property
    def trouble(self) -> str:
        return ffi.string(self.c.trouble).decode()


def started(clients: int = 70, workers: int = 2) -> Registry:
    registry = Registry(workers)
    registry.publish(clients)
    registry.connect(clients)
    for _ in range(workers):
        for i in range(clients):
            assert registry.get(f"client-dgram-{i}") == record(f"client-dgram-{i}", lid=5, qpn=200)
    return registry


def test_herd_meets_its_client() -> None:
    registry = Registry()
    assert registry.get("client-conn-0") is None and registry.get("client-dgram-0") is None
    registry.publish(70)
    assert registry.get("client-dgram-0") is None, "not before the number of clients is known"
    registry.connect(70)
    assert registry.c.clients == 70 and lib.herd_registry_connected(registry.c)
    assert not lib.herd_registry_whole(registry.c)
    assert lib.herd_registry_whole(started().c) and not started().trouble
    assert started().get("client-conn-70") is None


@pytest.mark.parametrize(
    ("what", "says"),
    [(lambda r: r.publish(1), "another HERD has begun"),
     (lambda r: r.get("client-dgram-0"), "more workers"),
     (lambda r: r.set("client-conn-0", record("client-conn-0")), "another client"),
     (lambda r: r.set("master-1-0", record("master-1-0")), "--num-server-ports"),
     (lambda r: r.set("__HRD_RESERVED_NAME_PREFIXmaster-0-0", b"hrd_ready"), "a client that there is not")],
)  # fmt: skip
def test_what_does_not_belong_to_this_life_of_herd_is_told(what: Callable[[Registry], object], says: str) -> None:
    registry = started()
    what(registry)
    assert says in registry.trouble


def test_published_queue_pairs_have_no_gap() -> None:
    registry = Registry()
    registry.publish(3)
    registry.set("master-0-5", record("master-0-5"))
    registry.get("client-conn-0")
    assert "some clients only" in registry.trouble


CONVERSATION = b"version\r\nset master-0-0 0 0 224\r\n" + record("master-0-0")
CONVERSATION += b"\r\nget client-conn-0 master-0-0 other\r\nnonsense\r\n"


def test_requests_may_be_cut_anywhere() -> None:
    whole = Registry().say(CONVERSATION)
    assert whole.count(b"VALUE ") == 2 and whole.endswith(b"END\r\nERROR\r\n")
    for cut in range(1, len(CONVERSATION)):
        registry = Registry()
        assert registry.say(CONVERSATION[:cut]) + registry.say(CONVERSATION[cut:]) == whole


@pytest.mark.parametrize(
    "data",
    [b"set a 0 0 -1\r\n", b"set a 0 0 99999999999\r\n", b"set a 0 0 2000\r\n", b"set a 0 0 3\r\nabcd\r\n",
     b"x" * 600, b"set\r\n", b"quit\r\n"],
)  # fmt: skip
def test_what_is_no_request_ends_the_connection(data: bytes) -> None:
    registry = Registry()
    registry.say(data)
    assert not registry.good


@given(st.binary(max_size=300))
def test_any_bytes_do_no_harm(data: bytes) -> None:
    Registry().say(b"set master-0-1023 0 0 224\r\n" + data)
    Registry().say(data)
