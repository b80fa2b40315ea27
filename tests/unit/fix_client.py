"""The other end of a FIX session, as bytes: what the tests say and what they are told."""

from __future__ import annotations

from musidecar.protocols.liquibook.fix_wire import Frames, Message, encode

US = "EXCHANGE"
SENDING = "20260101-00:00:00.000"


class Peer:
    """Numbers its messages; `say()` gives their bytes, `hear()` reads the other end's and checks their numbers.

    next_in: 0 where any will do."""

    def __init__(self, name: str = "alice") -> None:
        self.name = name
        self.next_out = self.next_in = 1
        self._frames = Frames()

    def say(self, kind: str, *body: tuple[int, str | int], sequence: int | None = None, **header: str) -> bytes:
        if sequence is None:
            sequence, self.next_out = self.next_out, self.next_out + 1
        more = [(int(tag[1:]), value) for tag, value in header.items()]
        return encode(kind, self.name, US, sequence, SENDING, more, body)

    def logon(self, *more: tuple[int, str | int], sequence: int | None = None, interval: int = 30) -> bytes:
        return self.say("A", (98, 0), (108, interval), *more, sequence=sequence)

    def order(self, name: str, side: str, quantity: int | str, price: str, *more: tuple[int, str]) -> bytes:
        return self.say(
            "D", (11, name), (55, "AAPL"), (54, side), (38, quantity), (40, "2"), (44, price), (60, SENDING), *more
        )

    def hear(self, data: bytes) -> list[Message]:
        """New ones must be the next in line; those sent again need not."""
        told = self._frames.feed(data)
        assert self._frames.garbled == 0
        for message in told:
            assert (message.get(49), message.get(56), message.get(8)) == (US, self.name, "FIX.4.4")
            if not message.flag(43):
                number = message.number(34)
                assert number is not None and self.next_in in (0, number), "a number is missing, or came twice"
                self.next_in = number + 1
        return told


def summary(messages: list[Message]) -> list[str]:
    return [message.type for message in messages]
