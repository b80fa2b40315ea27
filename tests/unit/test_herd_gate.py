"""The gate without a device: requests in, slots out, replies in, answers out; the table of keys."""

import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_herd_records import key_of, value_of

from musidecar._ffi import ffi, lib
from musidecar.protocols.herd.connection import END, HEAD, Status

CLIENTS, WORKERS, ANSWER_US = 70, 2, 1000
GET, PUT = 121, 122


class Herd:
    """One that keeps everything; its workers serve the slots in turn, when they are told to."""

    def __init__(self, gate: "Gate") -> None:
        self.gate = gate
        self.region = bytearray(1 << 24)
        self.kept: list[dict[bytes, bytes]] = [{} for _ in range(WORKERS)]
        self.turn = [0] * WORKERS
        self.evicts: set[bytes] = set()
        self.loses = 0  # 1: the next reply; 0: none
        self.out_of_step = False  # the gate has noticed

    def take_steps(self) -> int:
        """What the gate writes stands in the region; how many writes."""
        step, count = ffi.new("struct gate_step *"), 0
        while lib.gate_next(self.gate.c, self.gate.now_ns, step):
            slot = bytearray(bytes(step.slot)[: step.length])
            if step.is_put:
                assert slot[16] == 0 and slot[17] == 46
                slot[16] = PUT
            assert self.region[step.at + 16] < GET, "a slot is not written before it was served"
            self.region[step.at : step.at + len(slot)] = slot
            count += 1
        return count

    def serve(self, worker: int) -> bool:
        """One request of a worker, if there is one."""
        at = lib.herd_slot_at(worker, CLIENTS, 0, self.turn[worker])
        slot = self.region[at : at + 64]
        if slot[16] < GET:
            return False
        self.region[at + 16] -= 10
        self.turn[worker] += 1
        key, reply = bytes(slot[:16]), b""
        if slot[16] == PUT:
            self.kept[worker][key] = bytes(slot[18 : 18 + slot[17]])
        elif key not in self.evicts:
            reply = self.kept[worker].get(key, b"")
        self.loses -= 1
        if self.loses == 0:
            return True
        good = lib.gate_reply(self.gate.c, worker, reply or ffi.NULL, len(reply), self.gate.now_ns)
        assert good or self.loses < 0
        self.out_of_step = self.out_of_step or not good
        return not self.out_of_step

    def serve_all(self) -> None:
        """In any order of the workers."""
        busy = True
        while busy:
            busy = self.take_steps() > 0
            for worker in random.sample(range(WORKERS), WORKERS):
                busy = self.serve(worker) or busy


class Gate:
    def __init__(self, keys_max: int = 1000) -> None:
        config = {"workers": WORKERS, "keys_max": keys_max, "answer_us": ANSWER_US}
        self.c = ffi.gc(lib.gate_new(ffi.new("struct gate_config *", config)), lib.gate_free)
        self.now_ns = 1_000_000_000
        self.herd = Herd(self)

    def serve(self) -> "Gate":
        lib.gate_serve(self.c, CLIENTS)
        return self


class Asker:
    """A connection."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.number = lib.gate_open(gate.c)
        assert self.number >= 0
        self.held = b""

    def say(self, data: bytes) -> bool:
        return bool(lib.gate_input(self.gate.c, self.number, data or ffi.NULL, len(data)))

    def hear(self) -> list[tuple[str, int, bytes]]:
        """The whole answers that there are."""
        length = ffi.new("size_t *")
        data = lib.gate_output(self.gate.c, self.number, length)
        if length[0]:
            self.held += bytes(ffi.buffer(data, length[0]))
            lib.gate_sent(self.gate.c, self.number, length[0])
        answers = []
        while len(self.held) >= 8:
            kind, items, length_ = HEAD.unpack_from(self.held)
            answers.append((chr(kind), items, self.held[8 : 8 + length_]))
            self.held = self.held[8 + length_ :]
        return answers

    def ask(self, data: bytes) -> tuple[str, int, bytes]:
        assert self.say(data)
        self.gate.herd.serve_all()
        (answer,) = self.hear()
        return answer


def message(kind: str, items: int, payload: bytes = b"") -> bytes:
    return HEAD.pack(ord(kind), items, len(payload)) + payload


def keyed(kind: str, *keys: bytes) -> bytes:
    return message(kind, len(keys), b"".join(bytes([len(key)]) + key for key in keys))


def put(key: bytes, value: bytes, flags: int = 0) -> bytes:
    return message("S", 1, struct.pack("=IB", flags, len(key)) + key + value)


def values(answer: tuple[str, int, bytes]) -> list[bytes | None]:
    """Of an answer to a get."""
    kind, items, data = answer
    assert kind == "G"
    found: list[bytes | None] = []
    for _ in range(items):
        is_found, key_length, length, _flags = struct.unpack_from("=BBBxI", data)
        start = 8 + key_length
        found.append(data[start : start + length] if is_found else None)
        data = data[start + length :]
    assert not data
    return found


def status(asker: Asker) -> Status:
    return Status(*struct.unpack("=13Q", asker.ask(message("X", 0))[2]))


def entries(asker: Asker) -> dict[bytes, bytes]:
    found, cursor = {}, 0
    while cursor != END:
        _, items, data = asker.ask(message("K", 0, struct.pack("=QI", cursor, 100)))
        (cursor,) = struct.unpack_from("=Q", data)
        for i in range(items):
            entry = data[8 + 62 * i : 70 + 62 * i]
            found[entry[:16]] = entry[16:]
    return found


# ---- requests --------------------------------------------------------------------------------------------------------


def test_before_herd_is_there_only_a_ping_is_answered() -> None:
    gate = Gate()
    lib.gate_waits_for(gate.c, b"the workers")
    asker = Asker(gate)
    assert asker.ask(b"P") == ("P", 0, b"the workers")
    assert asker.say(keyed("G", b"a")) and not asker.hear() and not gate.herd.take_steps()
    gate.serve()
    gate.herd.serve_all()
    assert values(asker.hear()[0]) == [None]
    assert asker.ask(b"P") == ("P", 0, b"")


def test_what_is_put_is_got_until_it_is_deleted() -> None:
    asker = Asker(Gate().serve())
    names = [b"key %d" % i for i in range(50)]
    for name in names:
        assert asker.ask(put(name, name[::-1], 7)) == ("S", 0, b"")
    assert values(asker.ask(keyed("G", *names, b"no"))) == [*(name[::-1] for name in names), None]
    assert asker.ask(keyed("D", names[3], b"no", names[3])) == ("D", 3, b"\1\0\0")
    assert values(asker.ask(keyed("G", names[3], names[4]))) == [None, names[4][::-1]]
    counted = status(asker)
    assert counted.keys == 49 and counted.requests == counted.replies


def test_answers_come_in_order_whichever_worker_is_first() -> None:
    gate = Gate().serve()
    asker = Asker(gate)
    names = [b"%d" % i for i in range(20)]
    here = [lib.herd_worker(key_of(name)[0], WORKERS) for name in names]
    assert set(here) == {0, 1}
    for name in names:
        assert asker.say(put(name, name))
    gate.herd.take_steps()
    while gate.herd.serve(1 - here[0]):
        pass
    assert asker.hear() == [], "the first request's worker has not answered"
    gate.herd.serve_all()
    assert asker.hear() == [("S", 0, b"")] * 20


def test_no_more_than_a_window_is_under_way() -> None:
    gate = Gate().serve()
    asker = Asker(gate)
    for i in range(200):
        asker.say(put(b"%d" % i, b""))
    assert gate.herd.take_steps() == 32 * WORKERS
    assert gate.herd.serve(0) and gate.herd.take_steps() == 1


def test_one_key_is_served_in_the_order_of_asking_over_all_connections() -> None:
    gate = Gate().serve()
    askers = [Asker(gate) for _ in range(5)]
    for i, asker in enumerate(askers):
        asker.say(put(b"k", b"%d" % i) + keyed("G", b"k"))
    gate.herd.serve_all()
    assert [values(asker.hear()[1]) for asker in askers] == [[b"%d" % i] for i in range(5)]


def test_requests_may_be_cut_anywhere() -> None:
    stream = put(b"a", b"1") + b"P" + keyed("G", b"a", b"b") + keyed("D", b"a") + keyed("G", b"a") + message("X", 0)
    for cut in range(len(stream)):
        asker = Asker(Gate().serve())
        assert asker.say(stream[:cut]) and asker.say(stream[cut:])
        asker.gate.herd.serve_all()
        answers = asker.hear()
        assert [kind for kind, *_ in answers] == list("SPGDGX")
        assert values(answers[2]) == [b"1", None] and values(answers[4]) == [None]


def test_who_leaves_gets_nothing_and_holds_nobody_up() -> None:
    gate = Gate().serve()
    leaver, stayer = Asker(gate), Asker(gate)
    for i in range(100):
        leaver.say(put(b"%d" % i, b"left"))
    stayer.say(keyed("G", b"5"))
    gate.herd.take_steps()
    lib.gate_close(gate.c, leaver.number)
    another = Asker(gate)
    assert another.number == leaver.number
    gate.herd.serve_all()
    assert values(stayer.hear()[0]) == [b"left"] and another.hear() == []


BAD = [
    message("?", 0), message("G", 0), message("G", 2, b"\1a"), message("G", 1, b"\2a"), message("G", 1, b"\1ab"),
    message("G", 1, b"\xfb" + b"k" * 251), message("S", 1, b"1234"), message("S", 1, struct.pack("=IB", 0, 9) + b"k"),
    put(b"k", b"v" * 34), message("S", 2, b"\0" * 9), message("L", 1, b"x" * 61), message("L", 1, b"\0" * 62),
    message("L", 1, b"k" * 16 + b"\xff" * 46), message("K", 0, b"\0" * 12), message("E", 0, b"\0" * 4),
    message("X", 0, b"1"), HEAD.pack(ord("G"), 1, 1 << 30),
]  # fmt: skip


@pytest.mark.parametrize("data", BAD, ids=range(len(BAD)))
def test_what_is_no_request_is_told(data: bytes) -> None:
    asker = Asker(Gate().serve())
    assert not asker.say(data) and not asker.gate.herd.take_steps()


@given(st.lists(st.binary(max_size=30) | st.sampled_from([*BAD, put(b"a", b"b"), keyed("D", b"a")]), max_size=5))
def test_any_bytes_do_no_harm(parts: list[bytes]) -> None:
    asker = Asker(Gate().serve())
    for part in parts:
        if not asker.say(part):
            break
        asker.gate.herd.serve_all()


# ---- HERD's ways -----------------------------------------------------------------------------------------------------


def test_what_herd_has_of_another_key_or_of_itself_is_a_miss() -> None:
    gate = Gate().serve()
    asker = Asker(gate)
    asker.ask(put(b"a", b"mine"))
    key, check = key_of(b"a")
    partition = gate.herd.kept[lib.herd_worker(key, WORKERS)]
    partition[key] = value_of(check ^ 1, 0, b"another's")
    assert values(asker.ask(keyed("G", b"a"))) == [None]
    partition[key] = key[8:9] * 32
    assert values(asker.ask(keyed("G", b"a"))) == [None]
    partition[key] = value_of(check, 0, b"mine")
    assert values(asker.ask(keyed("G", b"a"))) == [b"mine"]


def test_what_herd_gave_up_is_counted() -> None:
    gate = Gate().serve()
    asker = Asker(gate)
    asker.ask(put(b"a", b"1"))
    gate.herd.evicts.add(key_of(b"a")[0])
    assert values(asker.ask(keyed("G", b"a", b"b"))) == [None, None]
    assert status(asker).gone == 1
    assert asker.say(keyed("G", b"c") + put(b"c", b"1"))
    gate.herd.serve_all()
    asker.hear()
    assert status(asker).gone == 1, "what was put behind the question is not given up"


@given(st.integers(0, 10**6), st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_nobody_is_told_a_lie_when_a_reply_is_lost(seed: int, lost: int) -> None:
    """Each reply behind it is another request's. A request goes on all the time, so that nobody is silent."""
    dice, gate = random.Random(seed), Gate().serve()
    asker = Asker(gate)
    keys = [b"%d" % i for i in range(40)]
    for key in keys[:20]:
        asker.ask(put(key, key))
    asked: list[bytes] = []
    gate.herd.loses = lost
    for _ in range(40):
        for _ in range(dice.randint(1, 6)):
            key = dice.choice(keys)
            number = keys.index(key)
            word = keyed("G", key) if dice.random() < 0.6 or number >= 20 else put(key, key)
            asked.append(word)
            assert asker.say(word)
        gate.herd.take_steps()
        for worker in dice.sample(range(WORKERS), WORKERS):
            while dice.random() < 0.9 and not gate.herd.out_of_step and gate.herd.serve(worker):
                gate.herd.take_steps()
        for answer in asker.hear():
            word = asked.pop(0)
            if word[:1] == b"G":
                assert values(answer) == [word[9:] if keys.index(word[9:]) < 20 else None]


def test_a_reply_nobody_asked_for_is_told() -> None:
    gate = Gate().serve()
    assert not lib.gate_reply(gate.c, 0, ffi.NULL, 0, 0) and not lib.gate_reply(gate.c, WORKERS, ffi.NULL, 0, 0)
    asker = Asker(gate)
    asker.say(put(b"a", b"1"))
    gate.herd.take_steps()
    worker = lib.herd_worker(key_of(b"a")[0], WORKERS)
    assert not lib.gate_reply(gate.c, worker, b"x" * 46, 46, 0), "a put has no value for an answer"


def test_silence_is_told_but_not_of_a_worker_nobody_asks_or_while_nobody_listened() -> None:
    gate = Gate().serve()
    asker = Asker(gate)

    def silent_after(us: int) -> int:
        gate.now_ns += us * 1000
        return int(lib.gate_silent(gate.c, gate.now_ns))

    assert silent_after(0) == -1 and silent_after(10 * ANSWER_US) == -1
    asker.say(put(b"a", b"1"))
    gate.herd.take_steps()
    worker = lib.herd_worker(key_of(b"a")[0], WORKERS)
    assert silent_after(ANSWER_US // 2) == -1
    assert silent_after(ANSWER_US) == worker
    gate.herd.serve_all()
    assert silent_after(10 * ANSWER_US) == -1, "it has answered"
    long = Gate()
    config = {"workers": WORKERS, "keys_max": 10, "answer_us": 1_000_000}
    long.c = ffi.gc(lib.gate_new(ffi.new("struct gate_config *", config)), lib.gate_free)
    other = Asker(long.serve())
    other.say(put(b"a", b"1"))
    long.herd.take_steps()
    lib.gate_silent(long.c, 10**9)
    assert lib.gate_silent(long.c, 100 * 10**9) == -1, "one look after a long absence proves nothing"


# ---- copies ----------------------------------------------------------------------------------------------------------


def test_all_that_herd_still_has_is_listed_and_loaded_elsewhere() -> None:
    donor, taker = Asker(Gate().serve()), Asker(Gate().serve())
    names = [b"key %d" % i for i in range(400)]
    for name in names:
        donor.ask(put(name, name, 3))
    donor.ask(keyed("D", *names[:50]))
    donor.gate.herd.evicts.add(key_of(names[60])[0])
    found = entries(donor)
    assert len(found) == 349
    taker.ask(put(b"of its own", b"x"))
    while struct.unpack("=Q", taker.ask(message("E", 0, struct.pack("=I", 1)))[2]) != (0,):
        pass
    everything = list(found.items())
    for at in range(0, len(everything), 100):
        page = everything[at : at + 100]
        assert taker.ask(message("L", len(page), b"".join(key + value for key, value in page))) == ("L", 0, b"")
    wanted = [None if i < 50 or i == 60 else name for i, name in enumerate(names)]
    assert values(taker.ask(keyed("G", *names, b"of its own"))) == [*wanted, None]
    assert entries(taker) == found


def test_a_table_that_is_full_forgets_and_says_so() -> None:
    asker = Asker(Gate(keys_max=10).serve())
    for i in range(15):
        asker.ask(put(b"%d" % i, b"x"))
    counted = status(asker)
    assert (counted.keys, counted.forgotten) == (10, 5) and len(entries(asker)) == 10
    assert values(asker.ask(keyed("G", b"0"))) == [b"x"], "HERD has it still"


class Table:
    def __init__(self, keys_max: int) -> None:
        self.c: Any = ffi.new("struct table *")
        assert lib.table_init(self.c, keys_max)

    def keys(self) -> list[bytes]:
        places = (lib.table_at(self.c, place) for place in range(self.c.used))
        return [bytes(ffi.buffer(key, 16)) for key in places if key != ffi.NULL]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=300))
def test_the_table_is_a_set(steps: list[tuple[bool, int]]) -> None:
    table, model = Table(64), set()
    for adds, number in steps:
        key = struct.pack("=QQ", 1 + number % 7 * 128, number)  # seven homes in the index for all of them
        (lib.table_add if adds else lib.table_remove)(table.c, key)
        (model.add if adds else model.discard)(key)
        assert lib.table_has(table.c, key) == adds
    assert sorted(table.keys()) == sorted(model) and table.c.keys == len(model) and not table.c.forgotten
    lib.table_free(table.c)
