"""Random memcached commands, and whether two servers' answers to them are the same: for test_memcached_server.py."""

import base64
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field

SECONDS = 3  # a server's clock is up to two behind, which a time that is absolute shows; and it ticks between two looks
DIGITS = re.compile(rb"\d+")


def short(text: bytes) -> str:
    """For a message: what is repeated is counted."""
    return repr(re.sub(rb"(.)\1{20,}", lambda run: b"%b*%d" % (run[1], len(run[0])), text))


# ---- answers ---------------------------------------------------------------------------------------------------------


def units(answers: bytes) -> list[tuple[bytes, bytes]]:
    """Lines, each with the value behind it."""
    found, at = [], 0
    while at < len(answers):
        end = answers.index(b"\r\n", at)
        line, value = answers[at:end], b""
        at = end + 2
        fields = line.split(b" ")
        size = fields[1] if fields[0] == b"VA" else fields[3] if fields[0] == b"VALUE" else None
        if size is not None:
            value = answers[at : at + int(size) + 2]
            at += int(size) + 2
        found.append((line, value))
    return found


@dataclass
class Numbers:
    """CAS numbers of a bare server and the tokens that stand for them."""

    pairs: list[tuple[int, int]] = field(default_factory=list)
    tokens: dict[int, int] = field(default_factory=dict)
    bare: dict[int, int] = field(default_factory=dict)
    strict: bool = True

    def note(self, bare: int, token: int) -> None:
        """The same item has these."""
        assert (bare == 0) == (token == 0)
        if bare == 0:
            return
        if self.strict:
            assert self.tokens.setdefault(bare, token) == token
            assert self.bare.setdefault(token, bare) == bare
        self.pairs.append((bare, token))


def compare_fields(expected: bytes, got: bytes, numbers: Numbers, seconds: int) -> bool:
    """Of a meta line, or `name=` ones of me."""
    if expected.startswith((b"fetch=", b"la=")):
        return True  # what was counted counts as new
    if expected == got:
        return not re.fullmatch(rb"(c|cas=)[1-9]\d*", expected)  # a CAS number is never the bare one
    for name in (b"cas=", b"c", b"exp=-", b"t"):
        if expected.startswith(name) and got.startswith(name):
            a, b = expected[len(name) :], got[len(name) :]
            if not (DIGITS.fullmatch(a) and DIGITS.fullmatch(b)):
                return False
            if name.startswith(b"c"):
                numbers.note(int(a), int(b))
                return True
            gone = int(a) > 1 << 31 and int(b) == 0  # below zero, as the server puts it
            return gone or abs(int(a) - int(b)) <= seconds
    return False


def compare(expected: bytes, got: bytes, numbers: Numbers, seconds: int = SECONDS, given_out: bool = True) -> None:
    """Asserts that the answers are the same but for CAS numbers, which are noted, and `seconds` of time; and, where not
    `given_out`, whether somebody was given the item to renew."""
    left, right = units(expected), units(got)
    assert len(left) == len(right), (len(left), len(right))
    for (line, value), (other, other_value) in zip(left, right, strict=True):
        different = f"{short(line + value)} != {short(other + other_value)}"
        assert value == other_value, different
        a, b = line.split(b" "), other.split(b" ")
        if not given_out:
            a, b = ([word for word in words if word not in (b"W", b"Z")] for words in (a, b))
        assert len(a) == len(b), different
        if a[0] == b"VALUE" and len(a) == 5:
            numbers.note(int(a.pop()), int(b.pop()))
        if a[0] in (b"VA", b"HD", b"ME", b"EX", b"NS", b"NF", b"EN"):
            assert all(compare_fields(x, y, numbers, seconds) for x, y in zip(a, b, strict=True)), different
        else:
            assert a == b, different


# ---- commands --------------------------------------------------------------------------------------------------------

KEYS = [b"a", b"n", b"counter", b"k" * 250, b"x\ty", b"\xff\xfe", b"c\rd"]
BINARY = [b"a", b"n", b"foo"]
# Not counted: that somebody was given an item to renew (N, R) is forgotten by that.
TOKEN_KEYS = [b"x\ty", b"\xff\xfe"]
# What is made by N, extended or counted under one of these the server prints as it is from then on; the sidecar in
# base64.
NO_TEXT = [b"with blank", b"nul\0nul", b"line\r\nend"]
TIMES = [
    b"0",
    b"0",
    b"0",
    b"100",
    b"5000",
    b"-1",
    b"2592000",
    b"2592001",
    b"4294967295",
    b"-4294967196",
    b"+700",
    b"99x",
    b"2147483646",
]
# None as long as an item's whole time: which of the two is longer would be told by when the servers' clocks tick.
RENEWALS = [b"0", b"50", b"4000", b"2591000", b"2592001", b"-1", b"-4294967246", b"+600", b"99x", b"2147480000"]
# No sum of them gets to 2^63: from there on the server takes a number for none if a "-" lies anywhere behind it.
NUMBERS = [b"0", b"1", b"5", b"10", b"99", b"12345678901234567", b"18446744073709551616", b"-1", b"x", b"+3", b""]
FLAGS = [b"0", b"0", b"1", b"77", b"4294967295", b"4294967296", b"-1", b"f"]
OPAQUES = [b"", b"1", b"abc", b"o" * 31, b"o" * 32]


@dataclass
class Random:
    """Commands as (bare server's, sidecar's): they differ by CAS numbers only."""

    dice: random.Random
    numbers: Numbers
    item_bytes_max: int
    marks: bool = False  # stale items, and so no CAS numbers and no counting

    def key(self, counted: bool = False) -> bytes:
        keys = KEYS if self.marks or not counted else [key for key in KEYS if key not in TOKEN_KEYS]
        return self.dice.choice(keys if self.dice.random() < 0.97 else [b"k" * 251])

    def meta_key(self, no_text: bool, counted: bool) -> tuple[bytes, list[bytes]]:
        if self.dice.random() < 0.6:
            return self.key(counted), []
        key = base64.b64encode(self.dice.choice(BINARY + NO_TEXT if no_text else BINARY))
        return (key if self.dice.random() < 0.97 else key[:-1]), [b"b"]

    def value(self) -> bytes:
        choice = self.dice.random()
        if choice < 0.4:
            return self.dice.choice(NUMBERS)
        if choice < 0.9:
            # Not blanks alone: counting them, the server reads on behind the value.
            return bytes(self.dice.choice(b"ab \r\n0\0") for _ in range(self.dice.randrange(12))) + b"x"
        return b"v" * (
            self.item_bytes_max
            - 48
            - 8
            - 3
            - self.dice.randrange(-4, 20)
            - self.dice.choice([0, 0, self.item_bytes_max // 2])
        )

    def length(self, value: bytes) -> bytes:
        choice = self.dice.random()
        if choice < 0.95:
            return b"%d" % len(value)
        return self.dice.choice(
            [
                b"%d" % (len(value) + 1),
                b"%d" % max(len(value) - 1, 0),
                b"-1",
                b"x",
                b"%d" % (len(value) + (1 << 32)),
                b"",
            ]
        )

    def cas(self) -> tuple[bytes, bytes]:
        choice = self.dice.random()
        if choice < 0.75 and self.numbers.pairs:
            bare, token = self.dice.choice(self.numbers.pairs[-4:] if choice < 0.6 else self.numbers.pairs)
            return b"%0*d" % (len(str(token)), bare), b"%d" % token
        wild = self.dice.choice([b"0", b"18446744073709551615", b"x", b"-1", b"18446744073709551616"])
        return wild, wild

    def noreply(self) -> bytes:
        return b" noreply" if self.dice.random() < 0.1 else b""

    def store(self) -> tuple[bytes, bytes]:
        value = self.value()
        name = self.dice.choice([b"set", b"set", b"add", b"replace", b"append", b"prepend", b"cas"])
        if name == b"cas" and self.marks:
            name = b"set"
        head = b" ".join([name, self.key(), self.dice.choice(FLAGS), self.dice.choice(TIMES), self.length(value)])
        left, right = self.cas() if name == b"cas" else (b"", b"")
        tail = self.noreply() + b"\r\n" + value + b"\r\n"
        gap = b" " if name == b"cas" else b""
        return head + gap + left + tail, head + gap + right + tail

    def meta_flags(self, letters: bytes, long_opaque: bool) -> tuple[list[bytes], list[bytes]]:
        left, right = [], []
        for letter in self.dice.sample(list(letters), self.dice.randrange(min(len(letters), 7))):
            flag = bytes([letter])
            if flag in b"TN":
                flag += self.dice.choice(TIMES)
            elif flag == b"R":
                flag += self.dice.choice(RENEWALS)
            elif flag in b"DJ":
                flag += self.dice.choice(NUMBERS)
            elif flag == b"F":
                flag += self.dice.choice(FLAGS)
            elif flag == b"O":
                flag += self.dice.choice(OPAQUES if long_opaque else OPAQUES[:-1])
            elif flag == b"M":
                flag += self.dice.choice([b"S", b"E", b"A", b"P", b"R", b"I", b"D", b"+", b"-", b"", b"zz"])
            other = flag
            if flag == b"C":
                bare, token = self.cas()
                flag, other = flag + bare, flag + token
            left.append(flag)
            right.append(other)
        if left and self.dice.random() < 0.02:
            odd = self.dice.choice([left[0], b"!", b"\xff", b"E1", b"S5"])
            left.append(odd)
            right.append(odd)
        return left, right

    def meta(self, name: bytes, letters: bytes, value: bytes | None = None) -> tuple[bytes, bytes]:
        if name == b"mg" and set(b"NR") & set(letters) and not self.marks:
            key, binary = self.dice.choice(TOKEN_KEYS), []
        else:
            key, binary = self.meta_key(no_text=name != b"ma" and not set(b"MN") & set(letters), counted=name == b"ma")
        # An opaque too long: mg and ma have done what they are told by the time that they find it.
        flags, others = self.meta_flags(letters, long_opaque=name in (b"ms", b"md"))
        head = [name, key] + ([self.length(value)] if value is not None else [])
        tail = b"\r\n" + (value + b"\r\n" if value is not None else b"")
        at = self.dice.randrange(len(flags) + 1)
        flags[at:at] = binary
        others[at:at] = binary
        return b" ".join(head + flags) + tail, b" ".join(head + others) + tail

    def mg(self) -> tuple[bytes, bytes]:
        letters = self.dice.choice([b"cfkOqstuvTPL", b"cfkOqstuvTNRPL"])
        return self.meta(b"mg", letters if not self.marks else letters.translate(None, b"ct"))

    def ms(self) -> tuple[bytes, bytes]:
        letters = self.dice.choice([b"cCFkOqT", b"cCFkOqTMMM"])
        return self.meta(b"ms", letters if not self.marks else letters.translate(None, b"cC"), self.value())

    def md(self) -> tuple[bytes, bytes]:
        return self.meta(b"md", b"CkOqT" if not self.marks else b"kOqTII")

    def ma(self) -> tuple[bytes, bytes]:
        # No T: where the number gets longer, 1.6.18 sets the time of the item that it has just replaced.
        return self.meta(b"ma", b"CNJDMqtcvkO")

    def both(self, line: bytes) -> tuple[bytes, bytes]:
        return line + b"\r\n", line + b"\r\n"

    def get(self) -> tuple[bytes, bytes]:
        name = self.dice.choice([b"get", b"gets", b"bget", b"gat 5000", b"gats 300", b"gat 0", b"gat x"])
        if self.marks:
            name = self.dice.choice([b"get", b"gat 400"])
        keys = [self.dice.choice(KEYS) for _ in range(self.dice.choice([0, 1, 1, 1, 2, 3, 30]))]
        return self.both(b" ".join([name, *keys]))

    def count(self) -> tuple[bytes, bytes]:
        return self.both(
            self.dice.choice([b"incr ", b"decr "])
            + self.key(counted=True)
            + b" "
            + self.dice.choice(NUMBERS)
            + self.noreply()
        )

    def other(self) -> tuple[bytes, bytes]:
        dice = self.dice
        return self.both(
            dice.choice(
                [
                    b"touch " + self.key() + b" " + dice.choice(TIMES) + self.noreply(),
                    b"delete "
                    + self.key()
                    + dice.choice([b"", b" 0", b" 5", b" noreply", b" 0 noreply", b" 1 noreply", b" noreply 0"]),
                    b"me " + dice.choice(KEYS[:3]),
                    b"mn",
                    b"",
                    b"x",
                    b"nothing like it",
                    b"get",
                    b"gat 5",
                    b"shutdown",
                    b"mz a",
                    b"ma",
                    b"md",
                    b"me",
                    b"mg",
                    b"touch a",
                    b"incr a",
                    b"flush_all" + dice.choice([b" x", b" noreply x", b" 1 2 3", b""]),
                ]
            )
        )

    def command(self) -> tuple[bytes, bytes]:
        makers: list[Callable[[], tuple[bytes, bytes]]] = [self.store, self.store, self.get, self.mg, self.mg]
        makers += [self.ms, self.ms, self.md, self.other]
        counts = [] if self.marks else [self.count, self.count, self.ma, self.ma]
        maker = self.dice.choice(makers + counts)
        bare, own = maker()
        # Where an answer with the item has not left yet a shorter number is not filled up with blanks: it leaves by mn.
        return (b"mn\r\n" + bare, b"mn\r\n" + own) if maker in counts else (bare, own)

    def spoilt(self) -> tuple[bytes, bytes]:
        """A command with a few bytes changed, the same for both."""
        bare, own = self.command()
        if bare != own:
            return bare, own
        line = bytearray(bare)
        # One that is refused half-way is done by half; a get, and its forerunners' answers are lost.
        halves = (
            line.startswith((b"ga", b"mn"))
            or (line.startswith(b"mg") and b" O" in line)
            or (b"get" in line and b"kkkk" in line)
        )
        if halves or line.startswith(b"flush"):  # with a delay it would come at two times
            return bytes(line), bytes(line)
        for _ in range(self.dice.randrange(1, 4)):
            at = self.dice.randrange(len(line))
            choice = self.dice.randrange(3)
            if choice == 0:
                line.insert(at, self.dice.choice(b" \r\n\t\0-+0a9\xff"))
            elif choice == 1 and len(line) > 1:
                del line[at]
            else:
                line[at] = self.dice.choice(b" \r\n\t\0-+0a9\xff")
        return bytes(line), bytes(line)

    def chunk(self) -> tuple[bytes, bytes]:
        """A few commands, pipelined; as long for both."""
        count = self.dice.choice([1, 1, 2, 4, 8])
        chosen = [self.spoilt() if self.dice.random() < 0.08 else self.command() for _ in range(count)]
        return b"".join(bare for bare, _ in chosen), b"".join(own for _, own in chosen)
