"""Memcached requests that depend on what their key holds: what is logged, what is said, what the key holds then."""

import pytest
from memcached_wire import TERM, Decision, Item, Reader, answer, decide, limits, question, read_item

NOW_S = 1_800_000_000
CLOCK = b"HD t%d W\r\n" % (2147483647 - NOW_S)
EMPTY = b"EN ka\r\n"


def held(value: bytes = b"10", flags: int = 0, left: int = -1, cas: int = 5, marks: bytes = b"") -> bytes:
    """What the backend says of an item with `left` seconds to live."""
    return b"VA %d f%d t%d c%d ka%b\r\n%b\r\n" % (len(value), flags, left, cas, marks, value)


def token(cas: int, term: int = TERM) -> int:
    return term << 48 | cas


def run(sent: bytes, said: bytes, exact: bool = True) -> tuple[Decision, Item]:
    request = next(Reader(limits(exact)).feed(sent))
    asked, answers = question(request)
    item = read_item((CLOCK if answers == 2 else b"") + said, NOW_S)
    assert asked.count(b"\n") == (3 if answers == 2 else 1)
    return decide(request, item, NOW_S), item


# Sent, held (None: nothing), logged (b"": nothing), told when the backend has answered "HD c9".
MATCH, OTHER_TERM, OLDER = token(5), token(5, TERM + 1), token(4)
T9 = token(9)
DECIDED = [
    (b"add a 3 0 2\r\nhi\r\n", None, b"ms a 2 F3\r\nhi\r\n", b"STORED\r\n"),
    (b"add a 3 0 2\r\nhi\r\n", held(), b"", b"NOT_STORED\r\n"),
    (b"add a 3 0 2 noreply\r\nhi\r\n", held(), b"", b""),
    (b"replace a 0 50 2\r\nhi\r\n", held(), b"ms a 2 T1800000050\r\nhi\r\n", b"STORED\r\n"),
    (b"replace a 0 50 2\r\nhi\r\n", None, b"", b"NOT_STORED\r\n"),
    (b"cas a 0 0 2 %d\r\nhi\r\n" % MATCH, held(), b"ms a 2\r\nhi\r\n", b"STORED\r\n"),
    (b"cas a 0 0 2 %d\r\nhi\r\n" % OTHER_TERM, held(), b"", b"EXISTS\r\n"),
    (b"cas a 0 0 2 5\r\nhi\r\n", held(), b"", b"EXISTS\r\n"),
    (b"cas a 0 0 2 0\r\nhi\r\n", held(), b"", b"EXISTS\r\n"),
    (b"cas a 0 0 2 %d\r\nhi\r\n" % MATCH, None, b"", b"NOT_FOUND\r\n"),
    (b"append a 9 9 2\r\nhi\r\n", held(flags=4, left=70), b"ms a 4 F4 T1800000070\r\n10hi\r\n", b"STORED\r\n"),
    (b"prepend a 0 0 2 noreply\r\nhi\r\n", held(), b"ms a 4\r\nhi10\r\n", b""),
    (b"append a 0 0 2\r\nhi\r\n", None, b"", b"NOT_STORED\r\n"),
    (b"append a 0 0 1000\r\n%b\r\n" % (b"x" * 1000), held(b"y" * 1048000), b"", b"NOT_STORED\r\n"),
    (b"incr a 5\r\n", held(), b"ms a 2\r\n15\r\n", b"15\r\n"),
    (b"incr a 90\r\n", held(left=30, flags=1), b"ms a 3 F1 T1800000030\r\n100\r\n", b"100\r\n"),
    (b"decr a 1\r\n", held(), b"ms a 2\r\n9 \r\n", b"9\r\n"),
    (b"decr a 11\r\n", held(), b"ms a 2\r\n0 \r\n", b"0\r\n"),
    (b"incr a 2\r\n", held(b"18446744073709551615"), b"ms a 20\r\n1" + b" " * 19 + b"\r\n", b"1\r\n"),
    (b"incr a 1 noreply\r\n", held(), b"ms a 2\r\n11\r\n", b""),
    (b"incr a 1\r\n", None, b"", b"NOT_FOUND\r\n"),
    (b"incr a 1\r\n", held(b""), b"", b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"),
    (b"incr a 1\r\n", held(b"1x"), b"", b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"),
    (b"incr a 1\r\n", held(b"-1"), b"", b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"),
    (
        b"incr a 1\r\n",
        held(b"1" + b" " * (1 << 19)),
        b"",
        b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
    ),
    (b"ma a c v t k Oo\r\n", held(left=60), b"ms a 2 T1800000060 c\r\n11\r\n", b"VA 2 c%d t60 ka Oo\r\n11\r\n" % T9),
    (b"ma a MD D3 q\r\n", held(), b"ms a 2\r\n7 \r\n", b""),
    (b"ma a q\r\n", None, b"", b"NF\r\n"),
    (b"ma a N60 J7 q v t\r\n", None, b"ms a 1 T1800000060\r\n7\r\n", b"VA 1 t60\r\n7\r\n"),
    (b"ma a t N60 T90\r\n", None, b"ms a 1 T1800000090\r\n0\r\n", b"HD t-1\r\n"),
    (b"ma a T90 t\r\n", held(), b"ms a 2 T1800000090\r\n11\r\n", b"HD t90\r\n"),
    (b"ma a C%d k\r\n" % OLDER, held(), b"", b"EX ka\r\n"),
    (b"ma a C0\r\n", held(), b"ms a 2\r\n11\r\n", b"HD\r\n"),
    (b"ma YQ== b k\r\n", held(marks=b" b"), b"ms YQ== 2 b\r\n11\r\n", b"HD kYQ== b\r\n"),
    (b"ms a 2 ME c\r\nhi\r\n", held(), b"", b"NS c0\r\n"),
    (b"ms a 2 C%d c q\r\nhi\r\n" % MATCH, held(), b"ms a 2 c\r\nhi\r\n", b""),
    (b"ms a 2 C%d c\r\nhi\r\n" % MATCH, held(), b"ms a 2 c\r\nhi\r\n", b"HD c%d\r\n" % T9),
    (b"ms a 2 C%d q\r\nhi\r\n" % OLDER, held(), b"", b"EX\r\n"),
    (b"ms a 2 C%d I\r\nhi\r\n" % OLDER, held(left=60), b"set a 0 1800000060 2 noreply\r\nhi\r\nmd a I\r\n", b"HD\r\n"),
    (b"ms a 2 C%d I\r\nhi\r\n" % token(6), held(), b"", b"EX\r\n"),
    (b"ms a 2 C%d MA\r\nhi\r\n" % OLDER, held(), b"", b"EX\r\n"),
    (b"ms YSBi 2 C%d I b\r\nhi\r\n" % OLDER, held(), b"ms YSBi 2 b C1 I F0\r\nhi\r\n", b"HD\r\n"),
    (b"md a C%d q\r\n" % MATCH, held(), b"md a\r\n", b""),
    (b"md a C%d I T9 Oo\r\n" % MATCH, held(), b"md a I T1800000009 Oo\r\n", b"HD c9\r\n"),
    (b"md a C%d q k\r\n" % OLDER, held(), b"", b"EX ka\r\n"),
    (b"md a C0\r\n", held(), b"", b"EX\r\n"),
    (b"md a C5 k\r\n", None, b"", b"NF ka\r\n"),
    (b"touch a 0\r\n", held(), b"touch a 0\r\n", b"TOUCHED\r\n"),
    (b"touch a 9000\r\n", held(left=70), b"touch a 1800009000\r\n", b"TOUCHED\r\n"),
    (b"touch a 9000\r\n", held(left=9, flags=7), b"ms a 2 F7 T1800009000\r\n10\r\n", b"TOUCHED\r\n"),
    (b"touch a 5\r\n", held(left=9), b"touch a 1800000005\r\n", b"TOUCHED\r\n"),
    (b"touch a 5 noreply\r\n", None, b"", b""),
    (b"gat 5 a\r\n", None, b"", b"END\r\n"),
    (b"gat 5 a\r\n", held(flags=3), b"touch a 1800000005\r\n", b"VALUE a 3 2\r\n10\r\nEND\r\n"),
    (b"gats 5 a\r\n", held(), b"touch a 1800000005\r\n", b"VALUE a 0 2 %d\r\n10\r\nEND\r\n" % MATCH),
    (b"gats 900 a\r\n", held(left=9), b"ms a 2 T1800000900 c\r\n10\r\n", b"VALUE a 0 2 %d\r\n10\r\nEND\r\n" % T9),
    (b"mg a N5 k q\r\n", None, b"mg a N1800000005 k\r\n", b"HD c9\r\n"),
    (b"mg a T5 k\r\n", None, b"", b"EN ka\r\n"),
    (b"mg a T5 q\r\n", None, b"", b""),
    (b"mg a N5 v c s f t\r\n", held(left=8), b"", b"VA 2 c%d s2 f0 t8\r\n10\r\n" % MATCH),
    (b"mg a N5 T900 v\r\n", held(left=80), b"mg a T1800000900 v\r\n", b"HD c9\r\n"),
    (b"mg a T900\r\n", held(left=8), b"set a 0 1800000900 2 noreply\r\n10\r\nmg a T1800000900\r\n", b"HD c9\r\n"),
    (b"mg YQ0K b N5 v k c t\r\n", None, b"ms YQ0K 0 b T1800000005 c\r\n\r\n", b"VA 0 kYQ0K b c%d t5 W\r\n\r\n" % T9),
]


@pytest.mark.parametrize(("sent", "said", "logged", "told"), DECIDED, ids=range(len(DECIDED)))
def test_decided(sent: bytes, said: bytes | None, logged: bytes, told: bytes) -> None:
    done, _ = run(sent, EMPTY if said is None else said)
    assert done.command == logged
    assert done.writes == (logged != b"")
    assert answer(done.style, done.reply, b"HD c9\r\n" if done.writes else b"") == told


# ---- stale items -----------------------------------------------------------------------------------------------------

STALE = [
    # A question that is given the token gives it back.
    (b"add a 0 0 2\r\nhi\r\n", b" X W", b"md a I\r\n", b"NOT_STORED\r\n"),
    (b"cas a 0 0 2 1\r\nhi\r\n", b" X W", b"md a I\r\n", b"EXISTS\r\n"),
    (b"touch a 5\r\n", b" X W", b"touch a 1800000005 noreply\r\nmd a I\r\n", b"TOUCHED\r\n"),
    (b"incr a 1\r\n", b" X W", b"set a 0 0 2 noreply\r\n11\r\nmd a I\r\n", b"11\r\n"),
    # Nobody asked who has it not: it stays as it is.
    (b"add a 0 0 2\r\nhi\r\n", b" Z X", b"", b"NOT_STORED\r\n"),
    (b"touch a 900\r\n", b" Z X", b"touch a 1800000900\r\n", b"TOUCHED\r\n"),
    # What is stored anew is stale no more.
    (b"append a 0 0 2\r\nhi\r\n", b" X W", b"ms a 4\r\n10hi\r\n", b"STORED\r\n"),
    # An mg is told what it would have been told.
    (b"mg a N5\r\n", b" X W", b"", b"HD X W\r\n"),
    (b"mg a N5\r\n", b" Z X", b"", b"HD Z X\r\n"),
    (b"mg a N5\r\n", b" Z", b"", b"HD Z\r\n"),
]


@pytest.mark.parametrize(("sent", "marks", "logged", "told"), STALE, ids=range(len(STALE)))
def test_stale(sent: bytes, marks: bytes, logged: bytes, told: bytes) -> None:
    done, item = run(sent, held(marks=marks))
    assert done.command == logged
    assert answer(done.style, done.reply, b"HD\r\n" if done.writes else b"") == told
    assert not item.c.stolen


def test_a_token_that_the_question_took_is_in_the_answer_of_the_mg_that_is_logged() -> None:
    done, _ = run(b"mg a T900 v\r\n", held(marks=b" X W", left=-1))
    assert done.command == b"mg a T1800000900 v\r\n"
    assert answer(done.style, done.reply, b"VA 2 Z X\r\n10\r\n") == b"VA 2 X W\r\n10\r\n"


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_an_error_of_the_backend_is_passed_on() -> None:
    error = b"SERVER_ERROR out of memory storing object\r\n"
    for sent, told in (
        (b"add a 0 0 1\r\nx\r\n", error),
        (b"add a 0 0 1 noreply\r\nx\r\n", b""),
        (b"ms a 1 ME q\r\nx\r\n", error),
    ):
        done, _ = run(sent, EMPTY)
        assert answer(done.style, done.reply, error) == told


def test_what_does_not_belong_together_is_none() -> None:
    done, _ = run(b"add a 0 0 1\r\nx\r\n", EMPTY)
    assert answer(done.style, done.reply, b"ERROR\r\n") is None
    gets, mg, me = (next(Reader().feed(line)).c.style for line in (b"gets a\r\n", b"mg a c\r\n", b"me a\r\n"))
    for style in (gets, mg, me):
        assert answer(style, b"", b"STORED\r\n") is None
        assert answer(style, b"", b"SERVER_ERROR x\r\n") == b"SERVER_ERROR x\r\n"


def test_cas_numbers_become_tokens() -> None:
    gets, mg, me = (next(Reader().feed(line)).c.style for line in (b"gets a b\r\n", b"mg a c O v\r\n", b"me a\r\n"))
    values = b"VALUE a 0 9 7\r\nVALUE 1 2\r\nVALUE b 1 0 8\r\n\r\nEND\r\n"
    assert answer(gets, b"", values) == values.replace(b"9 7", b"9 %d" % token(7)).replace(b"0 8", b"0 %d" % token(8))
    assert answer(mg, b"", b"VA 2 Oc1 c3 kc2\r\nc4\r\n") == b"VA 2 Oc1 c%d kc2\r\nc4\r\n" % token(3)
    assert answer(me, b"", b"ME cas=1 exp=-1 cas=2 x=3\r\n") == b"ME cas=1 exp=-1 cas=%d x=3\r\n" % token(2)


def test_quiet_ones_say_nothing() -> None:
    for line, ack, told in (
        (b"set a 0 0 1 noreply\r\nx\r\n", b"STORED\r\n", b""),
        (b"mg a q\r\n", b"EN\r\n", b""),
        (b"mg a q v\r\n", b"VA 0\r\n\r\n", b"VA 0\r\n\r\n"),
        (b"ms a 0 q\r\n\r\n", b"HD\r\n", b""),
        (b"md a q\r\n", b"NF\r\n", b"NF\r\n"),
        (b"verbosity 1 noreply\r\n", b"OK\r\n", b""),
    ):
        assert answer(next(Reader().feed(line)).c.style, b"", ack) == told


def test_a_backend_without_memory_decides_nothing() -> None:
    request = next(Reader().feed(b"incr a 1\r\n"))
    for said in (b"SERVER_ERROR out of memory\r\n", b"EN\r\n" + held(), b"EN\r\nEN ka\r\n"):
        done = decide(request, read_item(said if said[:1] == b"E" else CLOCK + said, NOW_S), NOW_S)
        wanted = b"10" if b"VA" in said else b"SERVER_ERROR"
        assert not done.writes or wanted == b"10"
        assert answer(done.style, done.reply, b"") != b""


@pytest.mark.parametrize(
    "said", [b"", b"HD\r\n", b"VA 5 f0 t-1 c1 ka\r\n10\r\n", b"VA 2 f0 t-1 ka\r\n10\r\n", b"VA x\r\n", b"END\r\n"]
)
def test_what_is_no_answer_to_a_question(said: bytes) -> None:
    assert not Item().read(said, NOW_S)


# ---- one after the other, without asking again -----------------------------------------------------------------------


def test_a_chain_is_decided_from_what_came_before() -> None:
    item = read_item(CLOCK + held(left=100), NOW_S)
    told = []
    for sent in (
        b"incr a 5\r\n",
        b"append a 0 0 1\r\n0\r\n",
        b"cas a 0 0 1 %d\r\nx\r\n" % token(5),
        b"decr a 151\r\n",
        b"incr a 1\r\n",
        b"prepend a 0 0 1\r\n7\r\n",
        b"add a 0 0 1\r\nx\r\n",
        b"touch a -1\r\n",
        b"add a 6 50 1\r\nx\r\n",
        b"incr a 1\r\n",
    ):
        done = decide(next(Reader().feed(sent)), item, NOW_S)
        told.append((done.command, answer(done.style, done.reply, b"HD\r\n" if done.writes else b"")))
    assert told == [
        (b"ms a 2 T1800000100\r\n15\r\n", b"15\r\n"),
        (b"ms a 3 T1800000100\r\n150\r\n", b"STORED\r\n"),
        (b"", b"EXISTS\r\n"),
        (b"ms a 3 T1800000100\r\n0  \r\n", b"0\r\n"),
        (b"ms a 3 T1800000100\r\n1  \r\n", b"1\r\n"),
        (b"ms a 4 T1800000100\r\n71  \r\n", b"STORED\r\n"),
        (b"", b"NOT_STORED\r\n"),
        (b"touch a -1\r\n", b"TOUCHED\r\n"),
        (b"ms a 1 F6 T1800000050\r\nx\r\n", b"STORED\r\n"),
        (b"", b"CLIENT_ERROR cannot increment or decrement non-numeric value\r\n"),
    ]
    late = decide(next(Reader().feed(b"add a 0 0 1\r\ny\r\n")), item, NOW_S + 50)
    assert late.writes  # its time is up


def test_the_backends_clock_is_what_counts() -> None:
    """It is two seconds behind: an item's expiry does not move, and it is there until the backend says so."""
    behind = b"HD t%d W\r\n" % (2147483647 - (NOW_S - 2))
    item = read_item(behind + held(left=1), NOW_S)
    request = next(Reader().feed(b"incr a 1\r\n"))
    assert decide(request, item, NOW_S).command == b"ms a 2 T%d\r\n11\r\n" % (NOW_S - 1)
    assert decide(request, item, NOW_S + 1).reply == b"NOT_FOUND\r\n"
