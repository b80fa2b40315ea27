"""A machine with its table of outcomes: what it makes of frames, cut anywhere, sent again, restored elsewhere; and the
client's side of them, over connections that end anywhere."""

from __future__ import annotations

import random
from typing import Any

import pytest

from musidecar.protocols.own import outcomes, wire
from musidecar.protocols.own.outcomes import Outcomes
from musidecar.protocols.own.proposals import Proposals, Unknown
from musidecar.protocols.own.replicated import Machine, MachineFailed, Rejected, Replicated, stamp_of
from musidecar.protocols.own.wire import Malformed


class Ledger:
    """All records; one that begins with a minus is rejected."""

    def __init__(self) -> None:
        self.records: list[tuple[int, bytes]] = []

    def apply(self, index: int, record: bytes) -> bytes:
        if record.startswith(b"-"):
            raise Rejected("it is négative")
        self.records.append((index, record))
        return b"%d" % len(self.records)

    def snapshot(self) -> bytes:
        return repr(self.records).encode()

    def restore(self, data: bytes) -> None:
        self.records = eval(data)


def ledger(state: Replicated) -> list[bytes]:
    machine: Any = state.machine
    return [record for _, record in machine.records]


class Log:
    """Puts stamps in front of what is logged, as the engine does."""

    def __init__(self) -> None:
        self.stamp = 0

    def put(self, frames: bytes) -> bytes:
        out, at = b"", 0
        while at < len(frames):
            length = 1 if frames[at] == wire.PING else wire.HEAD.unpack_from(frames, at)[1]
            if frames[at] not in (wire.READ, wire.PING):
                self.stamp += 1
                out += wire.STAMP_HEAD.pack(wire.STAMP, self.stamp)
            out += frames[at : at + length]
            at += length
        return out


def opened(state: Replicated, log: Log, client: int = 7) -> None:
    state.feed(log.put(wire.request(wire.OPEN, client, 0, 0)))


def propose(number: int, *records: bytes, client: int = 7, received: int = 0) -> bytes:
    return wire.request(wire.PROPOSE, client, number, received, wire.batch(records))


def taken(reply: bytes) -> tuple[int, int, list[bytes]]:
    """Kind, number, results."""
    kind, length, number = wire.REPLY_HEAD.unpack_from(reply)
    assert length == len(reply)
    return kind, number, list(wire.parts(reply, wire.REPLY_HEAD.size, length)) if kind == wire.RESULTS else []


@pytest.fixture
def state() -> Replicated:
    return Replicated(Ledger())


@pytest.fixture
def log() -> Log:
    return Log()


# ---- frames ----


def test_it_is_a_machine() -> None:
    assert isinstance(Ledger(), Machine) and not isinstance(object(), Machine)


def test_cut_at_every_byte(log: Log) -> None:
    frames = [wire.request(wire.OPEN, 7, 0, 0), propose(1, b"a", b"", b"ccc"), b".", wire.request(wire.READ, 7, 2, 1)]
    frames += [propose(2, b"-", b"e"), propose(1, b"a", b"", b"ccc"), wire.request(wire.CLOSE, 7, 0, 0)]
    stream = b"".join(map(log.put, frames))
    whole = Replicated(Ledger())
    wanted, used = whole.feed(stream)
    assert used == len(stream) and ledger(whole) == [b"a", b"", b"ccc", b"e"]
    for cut in range(len(stream)):
        parted = Replicated(Ledger())
        first, used = parted.feed(stream[:cut])
        second, rest = parted.feed(stream[used:])
        assert (first + second, used + rest, parted.snapshot()) == (wanted, len(stream), whole.snapshot())
    bytewise, replies, held = Replicated(Ledger()), b"", b""
    for byte in stream:
        held += bytes([byte])
        more, used = bytewise.feed(held)
        replies, held = replies + more, held[used:]
    assert (replies, held, bytewise.snapshot()) == (wanted, b"", whole.snapshot())


def test_the_index_counts_records_and_rejected_ones_too(state: Replicated, log: Log) -> None:
    opened(state, log)
    state.feed(log.put(propose(1, b"a", b"-", b"b") + propose(2, b"c")))
    machine: Any = state.machine
    assert machine.records == [(1, b"a"), (3, b"b"), (4, b"c")]


def test_a_rejected_record_has_its_reason_in_its_place(state: Replicated, log: Log) -> None:
    opened(state, log)
    reply, _ = state.feed(log.put(propose(1, b"a", b"-", b"b")))
    assert taken(reply) == (wire.RESULTS, 1, [b"1", "it is négative".encode(), b"2"])
    lengths = wire.lengths(reply, wire.REPLY_HEAD.size, len(reply))
    assert [length >= wire.REJECTED for length in lengths] == [False, True, False]


@pytest.mark.parametrize(
    "data",
    [
        propose(1, b"no stamp"),
        wire.STAMP_HEAD.pack(wire.STAMP, 1) + wire.request(wire.READ, 7, 1, 0),
        wire.STAMP_HEAD.pack(wire.STAMP, 1) + wire.request(0x7A, 7, 1, 0),
        wire.STAMP_HEAD.pack(wire.STAMP, 1) + b"O\0\0\0\x07\0\0\0" + bytes(24),
        wire.STAMP_HEAD.pack(wire.STAMP, 1) + wire.request(wire.PROPOSE, 7, 1, 0, b"\1\0\0"),
        wire.STAMP_HEAD.pack(wire.STAMP, 1) + wire.request(wire.PROPOSE, 7, 1, 0, b"\2\0\0\0\0\0\0\0"),
    ],
)
def test_what_the_engine_never_sends(state: Replicated, data: bytes) -> None:
    with pytest.raises(Malformed):
        state.feed(data)
    assert ledger(state) == []


class Wrong(Ledger):
    def apply(self, index: int, record: bytes) -> Any:
        if record == b"raise":
            raise ZeroDivisionError("planted")
        return {b"none": None, b"number": 5, b"text": "5", b"list": [b"5"]}[record]

    def snapshot(self) -> Any:
        return "text"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (b"raise", r"apply\(1, b'raise'\) raised ZeroDivisionError\('planted'\)"),
        (b"none", r"apply\(1, ...\) returned NoneType, not bytes"),
        (b"number", "returned int, not bytes"),
        (b"text", "returned str, not bytes"),
        (b"list", "returned list, not bytes"),
    ],
)
def test_a_machine_that_does_what_it_must_not(log: Log, record: bytes, said: str) -> None:
    state = Replicated(Wrong())
    opened(state, log)
    with pytest.raises(MachineFailed, match=said):
        state.feed(log.put(propose(1, record)))
    with pytest.raises(MachineFailed, match=r"snapshot\(\) returned str, not bytes"):
        state.snapshot()


# ---- outcomes ----


def test_what_is_sent_again_is_answered_and_not_done_again(state: Replicated, log: Log) -> None:
    opened(state, log)
    first, _ = state.feed(log.put(propose(1, b"a", b"-") + propose(2, b"b")))
    opened(state, log)
    again, _ = state.feed(log.put(propose(1, b"a", b"-") + propose(2, b"b")))
    assert again == first and ledger(state) == [b"a", b"b"]
    other, _ = state.feed(log.put(wire.request(wire.OPEN, 8, 0, 0) + propose(1, b"a", client=8)))
    assert taken(other[wire.REPLY_HEAD.size :]) == (wire.RESULTS, 1, [b"3"])


def test_what_was_received_is_kept_no_longer(state: Replicated, log: Log) -> None:
    opened(state, log)
    state.feed(log.put(propose(1, b"a") + propose(2, b"b") + propose(3, b"c", received=2)))
    assert state.outcomes.bytes == len(wire.batch([b"3"]))
    for number in (1, 2):  # nobody waits for these
        assert taken(state.feed(log.put(propose(number, b"again")))[0])[:2] == (wire.FORGOTTEN, number)
    assert taken(state.feed(log.put(propose(3, b"c", received=2)))[0]) == (wire.RESULTS, 3, [b"3"])
    assert ledger(state) == [b"a", b"b", b"c"]


def test_nothing_is_applied_of_a_client_that_is_not_known(state: Replicated, log: Log) -> None:
    assert taken(state.feed(log.put(propose(1, b"a")))[0])[:2] == (wire.FORGOTTEN, 1)
    opened(state, log)
    state.feed(log.put(propose(1, b"a") + wire.request(wire.CLOSE, 7, 0, 0)))
    assert taken(state.feed(log.put(propose(1, b"a")))[0])[:2] == (wire.FORGOTTEN, 1)
    assert ledger(state) == [b"a"] and state.outcomes.bytes == len(state.outcomes) == 0


def test_the_client_that_was_silent_longest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "CLIENTS_MAX", 3)
    table = Outcomes()
    for client in (1, 2, 3):
        table.open(client)
    assert table.spoke(1, 0) is not None
    table.open(4)
    assert len(table) == 3
    assert [table.spoke(client, 0) is not None for client in (1, 2, 3, 4)] == [True, False, True, True]


def test_outcomes_have_a_bound_and_the_one_that_speaks_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "BYTES_MAX", 100)
    table = Outcomes()
    for client in (1, 2):
        table.open(client)
        found = table.spoke(client, 0)
        assert found is not None
        for number in range(1, 5):
            table.keep(found, number, bytes(40))
    assert len(table) == 1 and table.bytes == 160
    found = table.spoke(2, 0)
    assert found is not None and list(found.outcomes) == [1, 2, 3, 4]


def test_a_snapshot_is_the_same_machine_elsewhere(state: Replicated, log: Log) -> None:
    for client in (7, 2**64 - 1, 8):
        opened(state, log, client)
    state.feed(log.put(propose(1, b"a", b"-") + propose(2, b"b") + propose(5, b"c", client=8, received=4)))
    snapshot = state.snapshot()
    other = Replicated(Ledger())
    other.feed(Log().put(wire.request(wire.OPEN, 1, 0, 0) + propose(1, b"of another cluster", client=1)))
    other.restore(snapshot)
    assert (other.stamp, other.applied, stamp_of(snapshot)) == (state.stamp, 4, state.stamp)
    assert other.snapshot() == snapshot
    frames = log.put(propose(1, b"a", b"-") + propose(3, b"d", received=1) + propose(5, b"c", client=8, received=4))
    assert other.feed(frames) == state.feed(frames) and other.snapshot() == state.snapshot()
    for cut in range(len(snapshot) - len(Ledger().snapshot())):
        if not snapshot[:cut].endswith(state.machine.snapshot()):
            with pytest.raises((Malformed, MachineFailed)):
                Replicated(Ledger()).restore(snapshot[:cut])


def test_a_table_that_is_none() -> None:
    table = Outcomes()
    table.open(1)
    for wrong in (table.dump() + b"x", table.dump()[:-1], b"", b"\xff\xff\xff\xff"):
        with pytest.raises(ValueError):
            Outcomes.load(wrong)


# ---- the client's side ----


class Call:
    def __init__(self) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self.times = 0

    def __call__(self, value: Any, error: BaseException | None) -> None:
        self.value, self.error, self.times = value, error, self.times + 1


@pytest.mark.parametrize("seed", range(40))
def test_connections_that_end_anywhere(seed: int) -> None:
    """Every record once, every result the right one, and what is proposed in order stays so."""
    chance, log, state, proposals = random.Random(seed), Log(), Replicated(Ledger()), Proposals()
    calls: list[tuple[list[bytes], Call]] = []
    number = 0
    proposals.connected()
    while number < 60 or proposals.under_way:
        for _ in range(chance.randrange(4) if number < 60 else 0):
            records = [b"%d.%d" % (number, i) for i in range(chance.randrange(1, 4))]
            calls.append((records, Call()))
            proposals.propose(records, calls[-1][1])
            number += 1
        sent = bytes(proposals.output)
        proposals.output.clear()
        if chance.random() < 0.3:  # it ends: so much has been logged, and so much of that has been answered
            whole, at = [0], 0
            while at < len(sent):
                at += wire.HEAD.unpack_from(sent, at)[1]
                whole.append(at)
            replies, _ = state.feed(log.put(sent[: chance.choice(whole)]))
            proposals.feed(replies[: chance.randrange(len(replies) + 1)])
            proposals.connected()
            continue
        replies, _ = state.feed(log.put(sent))
        cut = chance.randrange(len(replies) + 1)
        proposals.feed(replies[:cut])
        proposals.feed(replies[cut:])
    place = 0
    for records, call in calls:
        assert call.times == 1 and call.error is None
        assert call.value == [b"%d" % (place + i + 1) for i in range(len(records))]
        place += len(records)
    assert ledger(state) == [record for records, _ in calls for record in records]


def test_nothing_is_proposed_before_the_client_is_known() -> None:
    state, log, proposals, call = Replicated(Ledger()), Log(), Proposals(), Call()
    proposals.propose([b"a"], call)
    proposals.connected()
    assert bytes(proposals.output)[:1] == b"O" and len(proposals.output) == wire.HEAD.size
    replies, _ = state.feed(log.put(bytes(proposals.output)))
    proposals.output.clear()
    proposals.feed(replies)
    proposals.feed(state.feed(log.put(bytes(proposals.output)))[0])
    assert call.value == [b"1"]


def test_a_client_that_was_forgotten_hears_that_nobody_knows() -> None:
    state, log, proposals, call, read = Replicated(Ledger()), Log(), Proposals(), Call(), Call()
    proposals.connected()
    proposals.feed(state.feed(log.put(bytes(proposals.output)))[0])
    proposals.output.clear()
    state.feed(log.put(wire.request(wire.CLOSE, proposals.client, 0, 0)))
    proposals.propose([b"a"], call)
    proposals.read(read)
    proposals.feed(state.feed(log.put(bytes(proposals.output)))[0])
    assert isinstance(call.error, Unknown) and ledger(state) == []
    assert read.value == log.stamp and read.error is None


@pytest.mark.parametrize("data", [b"!", b"z" + bytes(15), wire.reply(0x7A, 1), b"p\0\0\0\x05\0\0\0" + bytes(8)])
def test_what_is_no_reply(data: bytes) -> None:
    with pytest.raises(Malformed):
        Proposals().feed(data)


def test_records_are_bytes_and_have_a_bound() -> None:
    with pytest.raises(TypeError, match="a record is bytes, not str"):
        list(wire.split(["text"]))  # type: ignore[list-item]
    with pytest.raises(ValueError, match=rf"{wire.RECORD_BYTES_MAX + 1} bytes: {wire.RECORD_BYTES_MAX} are the most"):
        list(wire.split([bytes(wire.RECORD_BYTES_MAX + 1)]))
    batches = list(wire.split(bytes(64) for _ in range(2000)))
    assert sum(map(len, batches)) == 2000 and all(len(wire.batch(b)) < wire.BATCH_BYTES + 200 for b in batches)
    assert list(wire.split([])) == []
