"""The session layer of FIX 4.4, as an acceptor, without I/O and without a clock: bytes and times in, bytes out.

A `Ledger` is what outlives a connection: both sequence numbers, and what was sent, to be sent again. It is kept by
one process and is no part of the replicated state. So a client that logs on to a process that does not know its
session, in the middle of its own numbers, is taken at its word, and the answer's number is chosen beyond any that
the former process can have come to: the client asks for what is between, is told that there is nothing
(SequenceReset-GapFill), and gets its executions from the exchange's own events, marked PossResend.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from .fix_wire import BEGIN, Frames, Message, Pairs, encode, timestamp

SENT_KEPT = 10_000  # messages of the application, to be sent again
HEARTBEAT_S_MAX = 3600
LATE = 1.2  # times the heartbeat's interval: a silent client is asked
GONE = 2.4  # ... and given up
WEEK_US, SUNDAY_US = 7 * 24 * 3600 * 1_000_000, 3 * 24 * 3600 * 1_000_000  # 1970 began on a Thursday

HEARTBEAT, TEST, RESEND, REJECT, SEQUENCE, LOGOUT, LOGON = "0", "1", "2", "3", "4", "5", "A"


def beyond(events: int, sequence: int, now_us: int) -> int:
    """A number that no other process can have come to in a session that it has taken up: each begins at that of its
    time, and sends no more than a message a millisecond for long. They are below 2^31, so they begin anew each Sunday
    (UTC). events: of the trader; sequence: the client's own number."""
    this_week_ms = (now_us - SUNDAY_US) % WEEK_US // 1000
    return this_week_ms + events + 2 * sequence


@dataclass(slots=True)
class Sent:
    kind: str
    sending: str
    header: list[tuple[int, str | int]]
    body: list[tuple[int, str | int]]


@dataclass
class Ledger:
    """Of one client (its SenderCompID). `told`: the last of the trader's events that it was sent."""

    client: str
    next_in: int = 1
    next_out: int = 1
    told: int = 0
    retold_up_to: int = 0  # events up to here may have been told before this ledger was begun
    is_new: bool = True
    sent: OrderedDict[int, Sent] = field(default_factory=OrderedDict)

    def reset(self) -> None:
        self.next_in = self.next_out = 1
        self.is_new = True
        self.sent.clear()


class Session:
    """One connection. `ledger_of` gives a client's ledger, None to refuse it, when it logs on; `events_of` how many
    events its trader has had.

    After `receive()`, `send()` and `tick()`: `take()` the bytes for the client, and close the connection once `closed`.
    """

    def __init__(
        self, name: str, ledger_of: Callable[[str], Ledger | None], events_of: Callable[[str], int], now_us: int
    ) -> None:
        self.name = name
        self.ledger: Ledger | None = None
        self.closed = False
        self.why = ""
        self.heartbeat_us = 10_000_000  # until the client's Logon has said; it must come within that time
        self._ledger_of = ledger_of
        self._events_of = events_of
        self._frames = Frames()
        self._out = bytearray()
        self._now_us = self._heard_us = self._spoke_us = now_us
        self._asked = False  # a TestRequest is open
        self._gap_to = 0  # the client was asked to send again all before this number

    @property
    def logged_on(self) -> bool:
        return self.ledger is not None and not self.closed

    @property
    def garbled(self) -> int:
        return self._frames.garbled

    def take(self) -> bytes:
        out = bytes(self._out)
        self._out.clear()
        return out

    # ---- in --------------------------------------------------------------------------------------------------------

    def receive(self, data: bytes, now_us: int) -> list[Message]:
        """The application's messages among these bytes, in order and each once."""
        self._now_us = self._heard_us = now_us
        self._asked = False
        found = []
        for message in self._frames.feed(data):
            if self.closed:
                break
            if self.ledger is None:
                self._logon(message)
            elif self._is_next(self.ledger, message) and self._is_application(self.ledger, message):
                found.append(message)
        return found

    def _logon(self, message: Message) -> None:
        sequence, interval, client = message.number(34), message.number(108), message.get(49)
        if message.type != LOGON or message.get(8) != BEGIN or message.get(56) != self.name or not client:
            return self._close("the first message is no Logon to this acceptor")
        ledger = self._ledger_of(client)
        if ledger is None:
            return self._close(f"{client} is not a name that can trade")
        self.ledger = ledger
        if not sequence or interval is None or interval > HEARTBEAT_S_MAX or message.get(98, "0") != "0":
            return self._logout("Logon without MsgSeqNum or HeartBtInt, or with encryption")
        self.heartbeat_us = interval * 1_000_000
        answer: list[tuple[int, str | int]] = [(98, 0), (108, interval)]
        if message.flag(141):
            if sequence != 1:
                return self._logout("ResetSeqNumFlag with a MsgSeqNum other than 1")
            ledger.reset()
            answer.append((141, "Y"))
        elif sequence > (1 if ledger.is_new else ledger.next_in):
            self._take_up(ledger, sequence, message.number(789))
        if ledger.is_new:
            ledger.told, ledger.retold_up_to, ledger.is_new = 0, self._events_of(client), False
        if sequence < ledger.next_in and not message.flag(43):
            return self._too_low(ledger, sequence)
        self._session(LOGON, answer)
        if sequence > ledger.next_in:
            self._ask_again(ledger, sequence)
        elif sequence == ledger.next_in:
            ledger.next_in += 1
        return None

    def _take_up(self, ledger: Ledger, sequence: int, expected: int | None) -> None:
        """The client has been elsewhere, or something that it said was lost: what it has heard may be beyond what was
        said here. expected: what it says that it waits for."""
        events = self._events_of(ledger.client)
        ledger.next_out = max(ledger.next_out, expected or beyond(events, sequence, self._now_us))
        ledger.retold_up_to = events
        if ledger.is_new:
            ledger.next_in = sequence

    def _is_next(self, ledger: Ledger, message: Message) -> bool:
        """Whether it is to be looked at now; else it is seen to here."""
        if message.get(8) != BEGIN or message.get(49) != ledger.client or message.get(56) != self.name:
            self._reject(message, 9, "BeginString, SenderCompID or TargetCompID is not the session's")
            self._logout("wrong counterparty")
            return False
        sequence = message.number(34)
        if not sequence:
            self._logout("MsgSeqNum is missing")
            return False
        if message.type == SEQUENCE and not message.flag(123):
            self._reset_to(ledger, message)
            return False
        if sequence < ledger.next_in:
            if not message.flag(43):
                self._too_low(ledger, sequence)
            return False
        if sequence > ledger.next_in:
            if message.type == RESEND:
                self._resend(ledger, message)
            if message.type == LOGOUT:
                self._logout("")
            elif self._gap_to <= ledger.next_in:
                self._ask_again(ledger, sequence)
            return False
        ledger.next_in += 1
        return True

    def _is_application(self, ledger: Ledger, message: Message) -> bool:
        match message.type:
            case "0" | "3":
                pass
            case "1":
                self._session(HEARTBEAT, [(112, message.get(112))])
            case "2":
                self._resend(ledger, message)
            case "4":
                new = message.number(36)
                if new is None or new < ledger.next_in:
                    self._reject(message, 5, "NewSeqNo is missing, or too low")
                else:
                    ledger.next_in = new
            case "5":
                self._logout("")
            case "A":
                self._reject(message, 11, "logged on already")
            case _:
                return True
        return False

    def _reset_to(self, ledger: Ledger, message: Message) -> None:
        """SequenceReset without GapFillFlag: its own number does not matter."""
        new = message.number(36)
        if new is None or new < ledger.next_in:
            self._reject(message, 5, "NewSeqNo is missing, or too low")
        else:
            ledger.next_in = new

    def _ask_again(self, ledger: Ledger, sequence: int) -> None:
        self._gap_to = sequence + 1
        self._session(RESEND, [(7, ledger.next_in), (16, 0)])

    def _too_low(self, ledger: Ledger, sequence: int) -> None:
        self._logout(f"MsgSeqNum too low, expecting {ledger.next_in} but received {sequence}")

    # ---- out -------------------------------------------------------------------------------------------------------

    def send(self, kind: str, body: Pairs, *, possibly_sent: bool = False) -> None:
        """A message of the application; `possibly_sent` marks it PossResend."""
        assert self.ledger is not None
        header: list[tuple[int, str | int]] = [(97, "Y")] if possibly_sent else []
        sent = Sent(kind, timestamp(self._now_us), header, list(body))
        self.ledger.sent[self.ledger.next_out] = sent
        if len(self.ledger.sent) > SENT_KEPT:
            self.ledger.sent.popitem(last=False)
        self._put(self.ledger, kind, sent.header, sent.body)

    def _session(self, kind: str, body: Pairs) -> None:
        assert self.ledger is not None
        self._put(self.ledger, kind, [], body)

    def _put(self, ledger: Ledger, kind: str, header: Pairs, body: Pairs) -> None:
        self._write(ledger, kind, ledger.next_out, header, body)
        ledger.next_out += 1

    def _write(self, ledger: Ledger, kind: str, sequence: int, header: Pairs, body: Pairs) -> None:
        self._spoke_us = self._now_us
        self._out += encode(kind, self.name, ledger.client, sequence, timestamp(self._now_us), header, body)

    def _resend(self, ledger: Ledger, message: Message) -> None:
        """What was sent, with its number; runs of what belongs to the session, or is not kept, as one gap."""
        first, last = message.number(7), message.number(16)
        if not first or last is None or (last and last < first):
            return self._reject(message, 5, "BeginSeqNo or EndSeqNo is missing or wrong")
        end = min(last + 1 if last else ledger.next_out, ledger.next_out)
        gap = first
        for sequence, sent in ledger.sent.items():  # in order
            if not first <= sequence < end:
                continue
            if gap < sequence:
                self._gap(ledger, gap, sequence)
            gap = sequence + 1
            header = [(43, "Y"), (122, sent.sending), *sent.header]
            self._write(ledger, sent.kind, sequence, header, sent.body)
        if gap < end:
            self._gap(ledger, gap, end)
        return None

    def _gap(self, ledger: Ledger, first: int, new: int) -> None:
        header: Pairs = [(43, "Y"), (122, timestamp(self._now_us))]
        self._write(ledger, SEQUENCE, first, header, [(123, "Y"), (36, new)])

    def reject(self, message: Message, reason: int, text: str) -> None:
        """A session-level Reject of a message of the application, e.g. for a field that is missing."""
        self._reject(message, reason, text)

    def _reject(self, message: Message, reason: int, text: str) -> None:
        self._session(REJECT, [(45, message.get(34, "0")), (372, message.type), (373, reason), (58, text)])

    def logout(self, text: str) -> None:
        """The acceptor's own wish to end."""
        self._logout(text)

    def _logout(self, text: str) -> None:
        self._session(LOGOUT, [(58, text)] if text else [])
        self._close(text or "logged out")

    def _close(self, why: str) -> None:
        self.closed = True
        self.why = why

    def tick(self, now_us: int) -> None:
        """Some time has gone by."""
        self._now_us = now_us
        if self.closed or not self.heartbeat_us:
            return
        silent = now_us - self._heard_us
        if silent > self.heartbeat_us * GONE or (self.ledger is None and silent > self.heartbeat_us):
            self._close("silent")
        elif self.ledger is None:
            return
        elif silent > self.heartbeat_us * LATE and not self._asked:
            self._asked = True
            self._session(TEST, [(112, timestamp(now_us))])
        elif now_us - self._spoke_us >= self.heartbeat_us:
            self._session(HEARTBEAT, [])
