"""FIX messages as bytes: where one ends, whether it is sound, and the writing of one. The codec is simplefix.

A message whose BodyLength or CheckSum is wrong is *garbled*: it is passed over, as if it had not been sent (FIX 4.4
volume 2), and the sequence number of the next tells that something is missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime

import simplefix

BEGIN = "FIX.4.4"
BODY_BYTES_MAX = 64 << 10
_TRAILER_BYTES = 7
_HEAD = re.compile(rb"8=FIX[^\x01]{1,8}\x019=([0-9]{1,9})\x01")
_HEAD_BYTES_MAX = 40
_START = b"8=FIX"

Pairs = Iterable[tuple[int, str | int]]


def timestamp(time_us: int) -> str:
    """UTCTimestamp with microseconds."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y%m%d-%H:%M:%S") + f".{time_us % 1_000_000:06}"


class Message:
    """One sound message; fields by tag, the first where there are several."""

    def __init__(self, parsed: simplefix.FixMessage) -> None:
        self._parsed = parsed
        self.type = self.get(35)

    def get(self, tag: int, default: str = "") -> str:
        value = self._parsed.get(tag)
        return default if value is None else value.decode("latin-1")

    def number(self, tag: int) -> int | None:
        """None: not there, or no number."""
        text = self.get(tag)
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    def flag(self, tag: int) -> bool:
        return self.get(tag) == "Y"


class Frames:
    """Cuts what comes from a socket into messages."""

    def __init__(self) -> None:
        self.garbled = 0
        self._input = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        self._input += data
        found = []
        while (message := self._next()) is not None:
            if isinstance(message, Message):
                found.append(message)
        return found

    def _next(self) -> Message | bool | None:
        """A message, False for something passed over, None until more comes."""
        if not self._input.startswith(_START[: len(self._input)]):
            return self._pass_over()
        head = _HEAD.match(self._input)
        if head is None:
            return self._pass_over() if len(self._input) >= _HEAD_BYTES_MAX else None
        body = int(head[1])
        if body > BODY_BYTES_MAX:
            return self._pass_over()
        end = head.end() + body + _TRAILER_BYTES
        if len(self._input) < end:
            return None
        whole = bytes(self._input[:end])
        told = b"%03d" % (sum(whole[:-_TRAILER_BYTES]) % 256)
        if whole[-_TRAILER_BYTES:] != b"10=" + told + b"\x01" or whole[-_TRAILER_BYTES - 1 :][:1] != b"\x01":
            return self._pass_over()
        del self._input[:end]
        return self._parse(whole)

    def _parse(self, whole: bytes) -> Message | bool:
        parser = simplefix.FixParser()
        parser.append_buffer(whole)
        try:
            parsed = parser.get_message()
        except simplefix.errors.ParsingError:
            parsed = None
        if parsed is None or parsed.get(35) is None or parser.get_buffer():
            self.garbled += 1
            return False
        return Message(parsed)

    def _pass_over(self) -> bool | None:
        """To where the next one may begin, a part of its first bytes at the end included."""
        at = self._input.find(_START, 1)
        if at < 0:
            at = next(
                (i for i in range(max(1, len(self._input) - len(_START)), len(self._input))
                 if _START.startswith(self._input[i:])),
                len(self._input),
            )  # fmt: skip
        self.garbled += 1
        del self._input[:at]
        return False if self._input else None


def encode(kind: str, sender: str, target: str, sequence: int, sending: str, header: Pairs, body: Pairs) -> bytes:
    """A message: BodyLength and CheckSum are computed, the standard fields come first."""
    message = simplefix.FixMessage()
    for tag, value in ((8, BEGIN), (35, kind), (49, sender), (56, target), (34, sequence), (52, sending)):
        message.append_pair(tag, value, header=True)
    for tag, value in header:
        message.append_pair(tag, value, header=True)
    for tag, value in body:
        message.append_pair(tag, value)
    return bytes(message.encode())
