"""check=True: machines that do what they must not are found out, each by the first batch in which it shows."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest

from musidecar.protocols.own import wire
from musidecar.protocols.own.checked import Checked, check_copies
from musidecar.protocols.own.replicated import MachineFailed


class Sum:
    """Right."""

    def __init__(self) -> None:
        self.value = 0

    def apply(self, index: int, record: bytes) -> bytes:
        self.value += int(record)
        return b"%d" % self.value

    def snapshot(self) -> bytes:
        return b"%d" % self.value

    def restore(self, data: bytes) -> None:
        self.value = int(data)


class Clock(Sum):
    def apply(self, index: int, record: bytes) -> bytes:
        return b"%.9f" % time.time()


class Dice(Sum):
    def apply(self, index: int, record: bytes) -> bytes:
        self.value += random.getrandbits(64)
        return b""


class Order(Sum):
    """The order of a set of texts is the hash's."""

    def apply(self, index: int, record: bytes) -> bytes:
        return " ".join({f"word {i}" for i in range(20)}).encode()


class Address(Sum):
    def apply(self, index: int, record: bytes) -> bytes:
        return b"%d" % id(self)


class Process(Sum):
    def apply(self, index: int, record: bytes) -> bytes:
        return b"%d" % os.getpid()


class Forgets(Sum):
    """A part of the state is not in the snapshot."""

    seen = 0

    def apply(self, index: int, record: bytes) -> bytes:
        self.seen += 1
        return b"%d" % self.seen


class RaisesLater(Sum):
    """Only where it has applied something else before."""

    used = False

    def apply(self, index: int, record: bytes) -> bytes:
        if not self.used and index > 1:
            raise KeyError("there is nothing here")
        self.used = True
        return b""


def frame(number: int, kind: int, *records: bytes, stamp: int = 0) -> bytes:
    body = wire.batch(records) if kind == wire.PROPOSE else b""
    return wire.STAMP_HEAD.pack(wire.STAMP, stamp or number) + wire.request(kind, 7, number, 0, body)


@pytest.fixture
def checked(request: pytest.FixtureRequest) -> Iterator[Checked]:
    made = Checked(request.param())
    made.feed(frame(1, wire.OPEN))
    yield made
    made.close()


@pytest.mark.parametrize("checked", [Sum], indirect=True)
def test_nothing_is_said_of_one_that_is_right(checked: Checked) -> None:
    for number in range(2, 6):
        replies, _ = checked.feed(frame(number, wire.PROPOSE, b"1", b"2"))
        assert replies.endswith(b"%d" % ((number - 1) * 3))
    assert checked.feed(wire.request(wire.READ, 7, 1, 0))[0]
    assert checked.feed(frame(3, wire.PROPOSE, b"1", b"2", stamp=9))[0].endswith(
        b"6"
    )  # it is answered, and not done again
    assert checked.applied == 8


@pytest.mark.parametrize(
    ("checked", "said"),
    [
        (Clock, r"apply\(\) said b'\d+.\d+' to b'1' here, and b'\d+.\d+' in another process"),
        (Dice, "the same results and another state"),
        (Order, r"apply\(\) said b'word"),
        (Address, r"apply\(\) said b'\d+' to b'1' here"),
        (Process, rf"apply\(\) said b'{os.getpid()}' to b'1' here"),
        (Forgets, r"apply\(\) said b'3' to b'3' here, and b'1' in another process"),
        (RaisesLater, "it went well here, and not a second time.*there is nothing here"),
    ],
    indirect=["checked"],
)
def test_what_a_machine_must_not_do(checked: Checked, said: str) -> None:
    with pytest.raises(MachineFailed, match=said):
        checked.feed(frame(2, wire.PROPOSE, b"1", b"2"))
        checked.feed(frame(3, wire.PROPOSE, b"3", b"4"))


def test_one_that_cannot_be_copied() -> None:
    class Inner(Sum):
        pass

    with pytest.raises(TypeError, match=r"check=True has pickle copy it .*Inner"):
        check_copies(Inner())
