"""The session layer of FIX: numbers, gaps, what is garbled, what is silent."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musidecar.protocols.liquibook.fix_session import Ledger, Session, beyond
from musidecar.protocols.liquibook.fix_wire import Frames, Message
from tests.unit.fix_client import US, Peer, summary

S = 1_000_000  # a second


class Pair:
    """A client and an acceptor, and the time."""

    def __init__(self, ledger: Ledger | None = None, peer: Peer | None = None, events: int = 0) -> None:
        self.now = 100 * S
        self.peer = peer or Peer()
        self.ledger = ledger or Ledger(self.peer.name)
        self.session = Session(
            US, lambda name: self.ledger if name == self.peer.name else None, lambda _: events, self.now
        )
        self.application: list[Message] = []

    def send(self, *parts: bytes) -> list[Message]:
        self.application += self.session.receive(b"".join(parts), self.now)
        return self.peer.hear(self.session.take())

    def wait(self, seconds: float) -> list[Message]:
        self.now += int(seconds * S)
        self.session.tick(self.now)
        return self.peer.hear(self.session.take())

    def executions(self, count: int) -> list[Message]:
        for i in range(count):
            self.session.send("8", [(17, f"e{i}")])
        return self.peer.hear(self.session.take())


@pytest.fixture
def pair() -> Pair:
    made = Pair()
    (answer,) = made.send(made.peer.logon())
    assert (answer.type, answer.get(108), answer.get(98)) == ("A", "30", "0")
    return made


def sealed(begin: bytes, message: bytes) -> bytes:
    """The message with another BeginString, and a CheckSum that is right."""
    head = begin + message[message.index(b"\x01") : -7]
    return head + b"10=%03d\x01" % (sum(head) % 256)


def texts(messages: list[Message]) -> list[str]:
    return [message.get(58) for message in messages]


# ---- what is sound -------------------------------------------------------------------------------------------------


def test_split_at_every_byte() -> None:
    peer = Peer()
    whole = peer.logon() + peer.say("0") + peer.order("o", "1", 5, "10.25")
    for cut in range(len(whole) + 1):
        frames = Frames()
        assert summary(frames.feed(whole[:cut]) + frames.feed(whole[cut:])) == ["A", "0", "D"]
        assert frames.garbled == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m.replace(b"\x0110=", b"\x0110=9"),
        lambda m: m[:-4] + b"%03d\x01" % ((int(m[-4:-1]) + 1) % 256),
        lambda m: m.replace(b"\x019=", b"\x019=1"),
        lambda m: m.replace(b"\x0138=5\x01", b"\x0138=6\x01"),
        lambda m: m[:-30],
        lambda m: m[20:],
        lambda m: b"GET / HTTP/1.1\r\n\r\n",
        lambda m: b"8=FIX.4.4\x019=99999999\x01",
        lambda m: b"8=FIX.4.4\x019=-1\x01" + m[12:],
        lambda m: b"8=8=FIX8=FI",
    ],
)
def test_a_garbled_message_is_passed_over_and_asked_for(pair: Pair, damage: object) -> None:
    order = pair.peer.order("o", "1", 5, "10.25")
    assert callable(damage)
    assert damage(order) != order
    # One with a wrong length swallows what follows, until its own end would have been; then that is looked at again.
    heard = pair.send(damage(order), *(pair.peer.say("0") for _ in range(20)))
    assert summary(heard) == ["2"] and (heard[0].get(7), heard[0].get(16)) == ("2", "0")
    assert pair.application == [] and pair.session.garbled >= 1
    again = pair.peer.say("D", (11, "o"), sequence=2, _43="Y", _122="20260101-00:00:00")
    pair.send(again, pair.peer.say("4", (123, "Y"), (36, pair.peer.next_out), sequence=3, _43="Y"))
    assert [message.get(11) for message in pair.application] == ["o"]
    assert pair.ledger.next_in == pair.peer.next_out


PIECES = [
    b"8=",
    b"8=FIX",
    b"8=FIX.4.4\x01",
    b"9=",
    b"9=5\x01",
    b"9=70000\x01",
    b"35=A\x01",
    b"10=000\x01",
    b"\x01",
    b"=",
    b"8",
]


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=9))), st.integers(1, 50))
def test_it_finds_its_way_back_after_any_bytes(pieces: list[bytes], size: int) -> None:
    frames, noise, peer = Frames(), b"".join(pieces), Peer()
    for i in range(0, len(noise), size):
        frames.feed(noise[i : i + size])
    assert any(frames.feed(peer.say("0")) for _ in range(2000))
    assert summary(frames.feed(peer.say("1"))) == ["1"]


fields = st.tuples(
    st.sampled_from(["35", "34", "36", "43", "7", "16", "45", "112", "x", "", "0", "96", "95"]), st.text(max_size=6)
)


@settings(deadline=None)
@given(st.lists(fields, max_size=8), st.sampled_from("0123458ADFGHj"))
def test_no_sound_message_breaks_a_session(body: list[tuple[str, str]], kind: str) -> None:
    pair = Pair()
    pair.send(pair.peer.logon())
    inside = "".join(f"{tag}={value}\x01" for tag, value in body).encode("latin-1", "replace")
    inside = b"35=%b\x0149=alice\x0156=EXCHANGE\x01" % kind.encode() + inside
    head = b"8=FIX.4.4\x019=%d\x01" % len(inside) + inside
    pair.send(head + b"10=%03d\x01" % (sum(head) % 256), pair.peer.say("0"), pair.peer.say("0"))


# ---- logging on ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        Peer().say("0"),
        Peer().order("o", "1", 5, "1"),
        Peer("mallory").logon(),
        Peer().logon().replace(b"FIX.4.4", b"FIX.4.2"),
        sealed(b"8=FIX.4.2", Peer().logon()),
    ],
)
def test_who_does_not_log_on_is_told_nothing(first: bytes) -> None:
    pair = Pair()
    assert pair.send(first) == []
    assert pair.session.closed or pair.session.garbled
    assert pair.wait(30) == [] and pair.session.closed


@pytest.mark.parametrize("body", [[], [(98, 0)], [(98, 0), (108, "x")], [(98, 1), (108, 30)], [(98, 0), (108, 99999)]])
def test_a_logon_that_lacks_something(body: list[tuple[int, int]]) -> None:
    pair = Pair()
    assert summary(pair.send(pair.peer.say("A", *body))) == ["5"]
    assert pair.session.closed


def test_a_second_logon_is_rejected(pair: Pair) -> None:
    assert summary(pair.send(pair.peer.logon())) == ["3"]
    assert not pair.session.closed


def test_another_connection_goes_on_with_the_numbers(pair: Pair) -> None:
    pair.executions(3)
    after = Pair(pair.ledger, pair.peer)
    assert summary(after.send(after.peer.logon())) == ["A"]
    assert (after.ledger.next_in, after.ledger.next_out) == (3, 6)


def test_what_was_lost_with_a_connection_is_sent_again(pair: Pair) -> None:
    pair.executions(1)
    for i in (7, 8):  # sent, and never heard
        pair.session.send("8", [(17, f"e{i}")])
    pair.session.take()
    after = Pair(pair.ledger, pair.peer)
    # The answer's number is too high, for a client that heard less.
    (told,) = Frames().feed(_raw(after, after.peer.logon()))
    assert (told.type, told.get(34)) == ("A", "5")
    again = after.send(after.peer.say("2", (7, after.peer.next_in), (16, 0)))
    assert [(m.type, m.get(34), m.get(17), m.get(43)) for m in again[:2]] == [
        ("8", "3", "e7", "Y"),
        ("8", "4", "e8", "Y"),
    ]
    assert again[0].get(122) and (again[2].type, again[2].get(36)) == ("4", "6")


def _raw(pair: Pair, data: bytes) -> bytes:
    pair.session.receive(data, pair.now)
    return pair.session.take()


def test_reset_at_logon_begins_anew(pair: Pair) -> None:
    pair.executions(3)
    after = Pair(pair.ledger, Peer(), events=3)
    (answer,) = after.send(after.peer.logon((141, "Y")))
    assert answer.flag(141) and after.ledger.next_in == 2
    # All that its trader was ever told comes again, marked.
    assert (after.ledger.told, after.ledger.retold_up_to) == (0, 3)
    bad = Pair()
    assert summary(bad.send(bad.peer.logon((141, "Y"), sequence=7))) == ["5"]


def test_a_process_that_does_not_know_the_session_takes_it_up() -> None:
    peer = Peer()
    peer.next_out, peer.next_in = 40, 90
    pair = Pair(Ledger("alice"), peer, events=25)
    (answer,) = Frames().feed(_raw(pair, peer.logon()))
    number = answer.number(34)
    assert answer.type == "A" and number == beyond(25, 40, pair.now) > 90
    (gap,) = pair.send(peer.say("2", (7, 90), (16, 0)))
    assert (gap.type, gap.get(34), gap.get(36), gap.get(123), gap.get(43)) == ("4", "90", str(number + 1), "Y", "Y")
    assert (pair.ledger.told, pair.ledger.retold_up_to) == (0, 25)
    assert pair.ledger.next_in == 42


def take_up(pair: Pair, *more: tuple[int, str]) -> int:
    """Logs on as an engine does that knows its numbers, and asks for what is between; the number of the answer."""
    expected = pair.peer.next_in
    (answer,) = (each for each in Frames().feed(_raw(pair, pair.peer.logon(*more))) if each.type == "A")
    number = answer.number(34)
    assert number is not None and number >= expected, "MsgSeqNum too low"
    pair.peer.next_in = number + 1
    return number


def test_one_process_after_another_takes_it_up() -> None:
    """Each tells all executions again, and so has come to numbers that the next does not know."""
    peer = Peer()
    pair = Pair(Ledger("alice"), peer, events=200)
    pair.send(peer.logon())
    pair.executions(200)
    for turn in range(1, 5):
        pair = Pair(Ledger("alice"), peer, events=200)
        pair.now += turn * S
        take_up(pair)
        pair.executions(200)
        pair.send(peer.say("0"))


def test_who_was_at_another_process_comes_back() -> None:
    """That process has come to other numbers: what the first one knows is old."""
    peer = Peer()
    first = Pair(Ledger("alice"), peer, events=3)
    first.send(peer.logon())
    first.executions(3)
    second = Pair(Ledger("alice"), peer, events=5)
    second.now += S
    take_up(second)
    second.executions(5)
    second.send(peer.say("0"))
    back = Pair(first.ledger, peer, events=7)
    back.now += 2 * S
    take_up(back)
    assert (back.ledger.told, back.ledger.retold_up_to) == (first.ledger.told, 7), "what may have been told is marked"
    again, wanted = Pair(second.ledger, peer, events=7), peer.next_in
    assert take_up(again, (789, str(wanted))) == wanted


def test_numbers_stay_below_what_engines_can_count() -> None:
    week_us = 7 * 24 * 3600 * S
    assert all(0 <= beyond(10_000, 10**8, now) < 2**31 for now in range(0, 2 * week_us, week_us // 999))
    assert beyond(0, 1, 10 * S) - beyond(0, 1, 9 * S) == 1000


def test_next_expected_number_is_used_by_a_process_that_does_not_know_the_session() -> None:
    peer = Peer()
    peer.next_out, peer.next_in = 40, 90
    pair = Pair(Ledger("alice"), peer)
    assert summary(pair.send(peer.logon((789, 90)))) == ["A"]


# ---- numbers -------------------------------------------------------------------------------------------------------


def test_too_low_without_possdup_ends_it(pair: Pair) -> None:
    heard = pair.send(pair.peer.say("0", sequence=1))
    assert summary(heard) == ["5"]
    assert texts(heard) == ["MsgSeqNum too low, expecting 2 but received 1"]
    assert pair.session.closed
    assert pair.send(pair.peer.order("o", "1", 5, "1")) == [] and pair.application == []


def test_too_low_at_logon_ends_it(pair: Pair) -> None:
    pair.send(pair.peer.say("0"))
    after = Pair(pair.ledger, pair.peer)
    assert texts(after.send(after.peer.logon(sequence=1))) == ["MsgSeqNum too low, expecting 3 but received 1"]
    assert after.session.closed


def test_a_duplicate_is_passed_over(pair: Pair) -> None:
    order = pair.peer.order("o", "1", 5, "1")
    assert pair.send(order) == []
    assert pair.send(pair.peer.say("D", (11, "o"), sequence=2, _43="Y")) == []
    assert len(pair.application) == 1 and not pair.session.closed


def test_a_gap_is_asked_for_once_and_nothing_is_done_out_of_order(pair: Pair) -> None:
    lost, late = pair.peer.order("lost", "1", 5, "1"), pair.peer.order("late", "1", 5, "1")
    assert summary(pair.send(late)) == ["2"]
    assert pair.send(pair.peer.order("later", "1", 5, "1")) == []
    assert pair.application == []
    again = [
        pair.peer.say("D", (11, name), sequence=i, _43="Y") for i, name in ((2, "lost"), (3, "late"), (4, "later"))
    ]
    assert pair.send(*again) == []
    assert [message.get(11) for message in pair.application] == ["lost", "late", "later"]
    assert pair.send(pair.peer.say("1", (112, "x")))[0].get(112) == "x"
    assert lost


def test_a_gap_at_logon_is_asked_for() -> None:
    first = Pair()
    first.send(first.peer.logon())
    first.peer.next_out = 7
    after = Pair(first.ledger, first.peer)
    after.peer.next_in = 0  # the number may be beyond: see below
    heard = after.send(after.peer.logon())
    assert summary(heard) == ["A", "2"] and heard[1].get(7) == "2"
    after.send(after.peer.say("4", (123, "Y"), (36, 8), sequence=2, _43="Y"))
    assert after.ledger.next_in == 8


def test_a_resend_request_is_answered_before_the_own_gap_is_asked_for(pair: Pair) -> None:
    pair.executions(2)
    pair.peer.next_out += 1
    heard = pair.send(pair.peer.say("2", (7, 2), (16, 3)))
    assert summary(heard) == ["8", "8", "2"]


def test_what_belongs_to_the_session_is_sent_again_as_a_gap(pair: Pair) -> None:
    pair.executions(1)
    pair.wait(31)
    pair.executions(2)
    heard = pair.send(pair.peer.say("2", (7, 1), (16, 0)))
    assert [(m.type, m.get(34), m.get(36)) for m in heard] == [
        ("4", "1", "2"), ("8", "2", ""), ("4", "3", "4"), ("8", "4", ""), ("8", "5", ""),
    ]  # fmt: skip
    assert all(message.flag(43) for message in heard)


@pytest.mark.parametrize("body", [[], [(7, 5), (16, 3)], [(7, 0), (16, 0)], [(7, 1)]])
def test_a_resend_request_that_asks_for_nothing(pair: Pair, body: list[tuple[int, int]]) -> None:
    assert summary(pair.send(pair.peer.say("2", *body))) == ["3"]


def test_sequence_resets(pair: Pair) -> None:
    assert pair.send(pair.peer.say("4", (36, 50), sequence=9)) == []
    assert pair.ledger.next_in == 50
    assert summary(pair.send(pair.peer.say("4", (36, 3), sequence=51))) == ["3"]
    assert pair.ledger.next_in == 50
    assert summary(pair.send(pair.peer.say("4", (123, "Y"), (36, 50), sequence=50))) == ["3"]
    assert pair.ledger.next_in == 51


def test_a_wrong_counterparty_ends_it(pair: Pair) -> None:
    other = Peer("bob")
    assert summary(pair.send(other.say("0", sequence=2))) == ["3", "5"]
    assert pair.session.closed


# ---- time, and the end ---------------------------------------------------------------------------------------------


def test_heartbeats_and_a_silent_client(pair: Pair) -> None:
    assert pair.wait(29) == []
    assert summary(pair.wait(2)) == ["0"]
    (test,) = pair.wait(6)
    assert test.type == "1" and test.get(112)
    assert pair.send(pair.peer.say("0", (112, test.get(112)))) == []
    assert summary(pair.wait(37)) == ["1"]
    pair.wait(36)
    assert pair.session.closed and pair.session.why == "silent"


def test_a_logout_is_answered(pair: Pair) -> None:
    assert summary(pair.send(pair.peer.say("5"))) == ["5"]
    assert pair.session.closed


def test_a_message_without_number_ends_it(pair: Pair) -> None:
    raw = pair.peer.say("0")
    body = raw[raw.index(b"35=") : -7].replace(b"\x0134=2", b"")
    head = b"8=FIX.4.4\x019=%d\x01" % len(body)
    pair.send(head + body + b"10=%03d\x01" % (sum(head + body) % 256))
    assert pair.session.closed
