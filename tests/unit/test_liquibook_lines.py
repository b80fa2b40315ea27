"""The line protocol in C: says of every line what liquibookd says, wherever the line is cut."""

from itertools import islice

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from musidecar._ffi import ffi, lib
from musidecar.protocols.liquibook.exchange import Exchange
from musidecar.protocols.liquibook.grammar import Cancel, New, Plain, Reject, Replace, Roll, parse
from tests.unit.random_orders import SYMBOLS, Orders

NOT_HERE = b"REJECT malformed not for clients\nEND\n"


def read(bytes_: bytes, cuts: tuple[int, ...] = (), symbols: bytes | None = None) -> tuple[int, int, bytes]:
    """Class, length and text of what stands at the front, of which so many bytes were there at first."""
    request = ffi.new("struct lines_request *")
    names = ffi.new("char[]", symbols) if symbols is not None else ffi.NULL
    for known in (*cuts, len(bytes_)):
        part = ffi.from_buffer("uint8_t[]", bytes_[:known]) if known else ffi.NULL
        if lib.lines_request_read(request, part, known, names) != lib.LINES_MORE:
            break
    text = ffi.string(request.text) if request.text != ffi.NULL else b""
    return request[0].__getattribute__("class"), request.length, text


def wanted(line: bytes) -> tuple[int, bytes]:
    """What liquibookd makes of it; what is for the sidecar alone is refused."""
    first, *rest = line.split(b" ")
    is_a_line = all((first, *rest)) and line.isascii() and line.decode().isprintable()
    if is_a_line and (first.startswith(b"@") or first in (b"SNAPSHOT", b"RESTORE", b"CHECK")):
        return lib.LINES_BAD, NOT_HERE
    try:
        _, request = parse(line)
    except Reject as reject:
        return lib.LINES_BAD, f"REJECT {reject.code} {reject.text}\nEND\n".encode()
    assert not isinstance(request, Plain) or request.word != "SNAPSHOT"
    if isinstance(request, Cancel | Replace):
        return lib.LINES_DECIDE, b""
    return (lib.LINES_WRITE if isinstance(request, New | Roll) else lib.LINES_READ), b""


KNOWN = """BUY SELL CANCEL REPLACE ROLL STATUS DEPTH EVENTS PING STATE SYMBOLS SNAPSHOT RESTORE STOP AON IOC FOK MKT
alice 0 1 -1 -0 - 007 2147483647 2147483648 1000000000000000 1000000000000001 9223372036854775807 9223372036854775808
18446744073709551617 1001 +1 1.5 @1 END"""

words = st.one_of(
    st.sampled_from(KNOWN.split()),
    st.sampled_from(["x" * 64, "x" * 65, "9" * 70, ""]),
    st.text(st.characters(min_codepoint=0x1F, max_codepoint=0x80), max_size=4),
)
lines = st.one_of(
    st.lists(words, max_size=11).map(" ".join),
    st.integers(0, 5000).map(lambda seed: next(iter(Orders(seed))).decode()),
    st.tuples(st.sampled_from(["BUY", "SELL"]), st.lists(words, max_size=4)).map(
        lambda t: " ".join([t[0], "a", "i", "S", "1", "2", *t[1]])
    ),
)


@settings(max_examples=1500, deadline=None)
@given(lines, st.data())
@example("BUY a i S 1 2 STOP 3 AON", None)
def test_it_says_what_liquibookd_says(line: str, data: st.DataObject | None) -> None:
    raw = line.encode("utf-8").replace(b"\n", b"?")
    if len(raw) >= lib.LINES_BYTES_MAX:
        return
    kind, text = wanted(raw)
    whole = raw + b"\nPING\n"
    assert read(whole) == (kind, len(raw) + 1, text)
    cut = data.draw(st.integers(0, len(raw))) if data is not None else 3
    assert read(whole, (cut,)) == (kind, len(raw) + 1, text)
    if text and text != NOT_HERE:
        assert Exchange(["S"]).apply(raw) == text


@pytest.mark.parametrize(
    ("symbol", "there"),
    [(b"AAPL", True), (b"MSFT", True), (b"AAP", False), (b"APL", False), (b"X" * 64, False), (b"AAPL\\nMSFT", False)],
)
def test_orders_for_books_that_there_are(symbol: bytes, there: bool) -> None:
    kind, _, text = read(b"SELL a i %b 1 2\n" % symbol, symbols=b"\nAAPL\nMSFT\n")
    assert (kind == lib.LINES_WRITE) == there
    assert there or text == Exchange(["AAPL", "MSFT"]).apply(b"SELL a i %b 1 2" % symbol)


@pytest.mark.parametrize("line", [b"BUY a i S 1 2 STOP 3 AON", b"PING", b"nonsense", b""])
def test_cut_at_every_byte(line: bytes) -> None:
    whole, (kind, text) = line + b"\nSELL", wanted(line)
    for cut in range(len(line) + 1):
        assert read(whole[:cut])[0] == lib.LINES_MORE
        assert read(whole, (cut,)) == (kind, len(line) + 1, text)


def test_the_longest_line_and_one_that_is_longer() -> None:
    name = "BUY " + "x" * (lib.LINES_BYTES_MAX - 5)
    assert read(name.encode() + b"\n")[1:] == (lib.LINES_BYTES_MAX, b"REJECT malformed wrong number of words\nEND\n")
    longer = name.encode() + b"x"
    told = (lib.LINES_CLOSE, lib.LINES_BYTES_MAX, b"REJECT malformed line too long\nEND\n")
    assert read(longer[:-1])[0] == lib.LINES_MORE
    assert read(longer) == read(longer + b"\n", (5, 1000)) == told
    assert Exchange(["S"]).apply(longer) == told[2]


# ---- replies -------------------------------------------------------------------------------------------------------


def ends(stream: bytes, cuts: tuple[int, ...] = ()) -> list[int]:
    """Where the replies of a stream that comes in parts end."""
    reply, status = ffi.new("struct lines_reply *"), ffi.new("enum lines_status *")
    found, at = [], 0
    for stop in (*sorted(cuts), len(stream)):
        while at < stop:
            at += lib.lines_reply_read(reply, ffi.from_buffer("uint8_t[]", stream[at:stop]), stop - at, status)
            if status[0] == lib.LINES_REPLY_WHOLE:
                found.append(at)
    return found


def test_where_real_replies_end_cut_anywhere() -> None:
    exchange = Exchange(SYMBOLS)
    told = [exchange.apply(line) for line in islice(Orders(9), 300)] + [exchange.apply(b"SNAPSHOT")]
    stream, wanted_ends = b"".join(told), []
    for reply in told:
        wanted_ends.append((wanted_ends or [0])[-1] + len(reply))
    assert ends(stream) == wanted_ends
    assert ends(stream, tuple(range(len(stream)))) == wanted_ends
    short, short_ends = b"".join(told[:8]), wanted_ends[:8]
    for cut in range(len(short)):
        assert ends(short, (cut,)) == short_ends


@pytest.mark.parametrize(
    ("stream", "found"),
    [
        (b"END\n", [4]),
        (b"ENDEND\nEND\n", [11]),
        (b"EEND\nEN\nEND \nEND\n", [17]),
        (b"\nEND\nEND\n", [5, 9]),
        (b"END", []),
    ],
)
def test_only_a_line_that_is_end_ends_one(stream: bytes, found: list[int]) -> None:
    assert ends(stream) == found
    for cut in range(len(stream)):
        assert ends(stream, (cut,)) == found
