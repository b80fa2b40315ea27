"""Memcached requests: where they end, what they are, what the backend is given for them, what is said of bad ones."""

import base64

import pytest
from memcached_wire import Reader, Request, limits, reply_end, rewrite

NOW_S = 1_800_000_000
BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"
KEY = b"k" * 250


def read(data: bytes, exact: bool = True, item_bytes_max: int = 1 << 20) -> Request:
    return next(Reader(limits(exact, item_bytes_max)).feed(data))


# What a client sends, what it is, what the backend is given.
GIVEN = [
    (b"get a\r\n", "read", b"get a\r\n"),
    (b"  get  a   b \n", "read", b"get a b\r\n"),
    (b"bget a\r\n", "read", b"get a\r\n"),
    (b"gets a b\r\n", "read", b"gets a b\r\n"),
    (b"get a\0 b\r\n", "read", b"get a\r\n"),
    (b"get a\rb\r\n", "read", b"get a\rb\r\n"),
    (b"set a 5 0 3\r\nabc\r\n", "write", b"set a 5 0 3\r\nabc\r\n"),
    (b"set a 5 10 3 noreply\r\nabc\r\n", "write", b"set a 5 1800000010 3\r\nabc\r\n"),
    (b"set a 0 2592000 0\r\n\r\n", "write", b"set a 0 1802592000 0\r\n\r\n"),
    (b"set a 0 2592001 0\r\n\r\n", "write", b"set a 0 2592001 0\r\n\r\n"),
    (b"set a 0 -7 0\r\n\r\n", "write", b"set a 0 -1 0\r\n\r\n"),
    (b"set a 4294967296 4294967295 4294967299\r\nabc\r\n", "write", b"set a 0 -1 3\r\nabc\r\n"),
    (b"set a +1 0 3\tx\r\na\r\n\r\n", "write", b"set a 1 0 3\r\na\r\n\r\n"),
    (b"set a 0 0 2 anything\r\nhi\r\n", "write", b"set a 0 0 2\r\nhi\r\n"),
    (b"delete a\r\n", "write", b"delete a\r\n"),
    (b"delete a 0 noreply\r\n", "write", b"delete a\r\n"),
    (b"delete noreply\r\n", "write", b"delete noreply\r\n"),
    (b"flush_all\r\n", "write", b"flush_all\r\n"),
    (b"flush_all 0 noreply\r\n", "write", b"flush_all\r\n"),
    (b"flush_all -1\r\n", "write", b"flush_all\r\n"),
    (b"flush_all 10\r\n", "write", b"mn flush_all 1800000010\r\n"),
    (b"flush_all 1800000500 noreply\r\n", "write", b"mn flush_all 1800000500\r\n"),
    (b"flush_all 1799999999\r\n", "write", b"flush_all\r\n"),
    (b"flush_all 2592001\r\n", "write", b"mn flush_all 0\r\n"),
    (b"gat 10 a b\r\n", "write", b"gat 1800000010 a b\r\n"),
    (b"me a\r\n", "read", b"me a\r\n"),
    (b"me Zm9v b\r\n", "read", b"me Zm9v b\r\n"),
    (b"mg a\r\n", "read", b"mg a\r\n"),
    (b"mg Zm9v b q P L v k Oxyz sjunk F5 M1 C9 D2 J3 I t\r\n", "read", b"mg Zm9v b v k Oxyz s t\r\n"),
    (b"mg a R30 v\r\n", "write", b"mg a R1800000030 v\r\n"),
    (b"ms a 3\r\nabc\r\n", "write", b"ms a 3\r\nabc\r\n"),
    (b"ms Zm9v 3 q k b T5 I c F07 MS Oab\r\nabc\r\n", "write", b"ms Zm9v 3 k b T1800000005 c F7 Oab\r\nabc\r\n"),
    (b"md a q k\r\n", "write", b"md a k\r\n"),
    (b"md a T5 I q\r\n", "write", b"md a T1800000005 I\r\n"),
    (b"md a T5\r\n", "write", b"md a\r\n"),
    (b"stats\r\n", "local", b"stats\r\n"),
    (b"stats  items\r\n", "local", b"stats items\r\n"),
    (b"version\r\n", "local", b"version\r\n"),
    (b"verbosity 1 noreply\r\n", "local", b"verbosity 1\r\n"),
    (b"cache_memlimit 64\r\n", "local", b"cache_memlimit 64\r\n"),
    (b"lru_crawler crawl all\r\n", "local", b"lru_crawler crawl all\r\n"),
    (b"slabs automove 1 noreply\r\n", "local", b"slabs automove 1\r\n"),
    (b"lru_crawler metadump hash\r\n", "stream", b"lru_crawler metadump hash\r\n"),
    (b"watch mutations\r\n", "stream", b"watch mutations\r\n"),
]


@pytest.mark.parametrize(("sent", "kind", "given"), GIVEN, ids=range(len(GIVEN)))
def test_what_the_backend_is_given(sent: bytes, kind: str, given: bytes) -> None:
    request = read(sent)
    assert (request.kind, request.length, request.swallow) == (kind, len(sent), 0)
    assert rewrite(request, NOW_S) == given


@pytest.mark.parametrize(
    "line",
    [
        b"add a 0 0 2\r\nhi\r\n",
        b"replace a 0 0 2 noreply\r\nhi\r\n",
        b"append a 0 0 2\r\nhi\r\n",
        b"prepend a 0 0 2\r\nhi\r\n",
        b"cas a 0 0 2 99\r\nhi\r\n",
        b"incr a 1\r\n",
        b"decr a 1 noreply\r\n",
        b"ma a\r\n",
        b"ms a 2 ME\r\nhi\r\n",
        b"ms a 2 C5\r\nhi\r\n",
        b"ms a 2 MR\r\nhi\r\n",
        b"md a C5\r\n",
    ],
)
def test_what_depends_on_its_key_is_decided(line: bytes) -> None:
    for exact in (True, False):
        assert read(line, exact).kind == "decide"


@pytest.mark.parametrize("line", [b"touch a 5\r\n", b"gat 5 a\r\n", b"gats 5 a\r\n", b"mg a T5\r\n", b"mg a N5 v\r\n"])
def test_times_are_decided_where_outcomes_are_the_leaders(line: bytes) -> None:
    assert read(line, exact=True).kind == "decide"
    assert read(line, exact=False).kind == "write"


def test_an_item_made_under_a_key_that_is_no_text_is_decided_always() -> None:
    key = base64.b64encode(b"a\r\nb")
    assert read(b"mg " + key + b" b N5\r\n", exact=False).kind == "decide"


SAID = [
    (b"\r\n", b"ERROR\r\n"),
    (b"x\r\n", b"ERROR\r\n"),
    (b"nothing\r\n", b"ERROR\r\n"),
    (b"SET a 0 0 1\r\n", b"ERROR\r\n"),
    (b"get\r\n", b"ERROR\r\n"),
    (b"gat 5\r\n", b"END\r\n"),
    (b"gat x a\r\n", b"CLIENT_ERROR invalid exptime argument\r\n"),
    (b"get a " + KEY + b"k\r\n", BAD_FORMAT),
    (b"touch a x\r\n", b"CLIENT_ERROR invalid exptime argument\r\n"),
    (b"touch a noreply\r\n", b""),
    (b"incr a x\r\n", b"CLIENT_ERROR invalid numeric delta argument\r\n"),
    (b"incr a x noreply\r\n", b""),
    (b"incr a\r\n", b"ERROR\r\n"),
    (b"delete a 5\r\n", b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n"),
    (b"delete a 5 noreply\r\n", b""),
    (b"flush_all x\r\n", b"CLIENT_ERROR invalid exptime argument\r\n"),
    (b"flush_all 1 2 3\r\n", b"ERROR\r\n"),
    (b"shutdown\r\n", b"ERROR: shutdown not enabled\r\n"),
    (b"verbosity\r\n", b"ERROR\r\n"),
    (b"mn\r\n", b"MN\r\n"),
    (b"mz a\r\n", b"ERROR\r\n"),
    (b"mg\r\n", b"ERROR\r\n"),
    (b"me\r\n", BAD_FORMAT),
    (b"mg " + KEY + b"k\r\n", BAD_FORMAT),
    (b"mg a q q\r\n", b"CLIENT_ERROR duplicate flag\r\n"),
    (b"mg a \xff\r\n", b"CLIENT_ERROR duplicate flag\r\n"),
    (b"mg a !\r\n", b"CLIENT_ERROR invalid flag\r\n"),
    (b"mg a E5\r\n", b"CLIENT_ERROR invalid flag\r\n"),
    (b"mg a Tx\r\n", b"CLIENT_ERROR bad token in command line format\r\n"),
    (b"mg a Tx Jx\r\n", b"CLIENT_ERROR invalid numeric initial value\r\n"),
    (b"mg a Fx\r\n", BAD_FORMAT),
    (b"mg a M\r\n", b"CLIENT_ERROR incorrect length for M token\r\n"),
    (b"mg a b\r\n", b"CLIENT_ERROR error decoding key\r\n"),
    (b"mg ==== b\r\n", b"CLIENT_ERROR error decoding key\r\n"),
    (b"mg a O" + b"o" * 32 + b"\r\n", b"CLIENT_ERROR opaque token too long\r\n"),
    (b"mg a" + b" k" * 18 + b"\r\n", b"CLIENT_ERROR options flags are too long\r\n"),
    (b"md a q q\r\n", b"CLIENT_ERROR invalid or duplicate flag\r\n"),
    (b"ma a Dx\r\n", b"CLIENT_ERROR invalid or duplicate flag\r\n"),
    (b"ma a MX q\r\n", b"CLIENT_ERROR invalid mode for ma M token\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "said"), SAID, ids=range(len(SAID)))
def test_what_is_said_at_once(line: bytes, said: bytes) -> None:
    request = read(line)
    assert (request.kind, request.text, request.length, request.swallow) == ("answer", said, len(line), 0)


CLOSED = [
    (b"set a b c\r\nflush_all\r\n", b"ERROR\r\n"),
    (b"set a 0 0 x\r\nflush_all\r\n", BAD_FORMAT),
    (b"set a 0 0 -1\r\nflush_all\r\n", BAD_FORMAT),
    (b"set a 0 0 2147483646\r\n", BAD_FORMAT),
    (b"set a 0 0 99999999999999999999\r\n", BAD_FORMAT),
    (b"set a 0 0 noreply\r\nflush_all\r\n", b""),
    (b"set " + KEY + b"k 0 0 1\r\nx\r\n", BAD_FORMAT),
    (b"cas a 0 0 1\r\nx\r\n", b"ERROR\r\n"),
    (b"cas a 0 0 1 x\r\nx\r\n", BAD_FORMAT),
    (b"set a 0 0 3\r\nabcde\r\nflush_all\r\n", b"CLIENT_ERROR bad data chunk\r\n"),
    (b"set a 0 0 3 noreply\r\nabcde\r\nflush_all\r\n", b""),
    (b"ms a 3 q\r\nabcde\r\nflush_all\r\n", b"CLIENT_ERROR bad data chunk\r\n"),
    (b"ms\r\n", b"ERROR\r\n"),
    (b"ms a\r\n", BAD_FORMAT),
    (b"ms a S3\r\nabc\r\n", BAD_FORMAT),
    (b"ms a -3\r\nabc\r\n", BAD_FORMAT),
    (b"GET / HTTP/1.1\r\n", b""),
    (b"quit\r\nget a\r\n", b""),
    (b"\x80\x00", b""),
    (b"x" * 2049, b""),
    (b"set a 0 0 3 " + b" " * 2048 + b"\r\n", b""),
    (b" " * 101 + b"get " + b"k " * 2000, b""),
]


@pytest.mark.parametrize(("sent", "said"), CLOSED, ids=range(len(CLOSED)))
def test_what_closes_the_connection(sent: bytes, said: bytes) -> None:
    """No byte behind it is looked at: it might be meant as a value, and would be run as a command."""
    requests = list(Reader().feed(sent))
    assert [request.kind for request in requests] == ["close"]
    assert requests[0].text == said
    assert (requests[0].why is None) == sent.startswith(b"quit")


def test_values_too_large_are_swallowed_unread() -> None:
    for line, kind, said in (
        (b"add a 0 0 200000\r\n", "answer", TOO_LARGE),
        (b"add a 0 0 200000 noreply\r\n", "answer", b""),
        (b"ms a 200000 Tx\r\n", "answer", b"CLIENT_ERROR bad token in command line format\r\n"),
        (b"ms a 200000 MX q\r\n", "answer", b"CLIENT_ERROR invalid mode for ms M token\r\n"),
        (b"set a 0 0 2147483645\r\n", "write", b""),
        (b"ms a 200000 ME\r\n", "write", b""),
    ):
        request = read(line, item_bytes_max=100_000)
        assert (request.kind, request.text, request.length) == (kind, said, len(line))
        assert request.swallow == int(line.split()[2 if line.startswith(b"ms") else 4].split(b" ")[0]) + 2
    reader = Reader(limits(item_bytes_max=1000))
    kinds = [
        r.kind
        for part in (b"set a 0 0 5000\r\n", b"x" * 3000, b"x" * 2000, b"\r", b"\nget a\r\n")
        for r in reader.feed(part)
    ]
    assert kinds == ["write", "read"]
    assert rewrite(read(b"set a 0 0 5000\r\n", item_bytes_max=1000), NOW_S) == b"md a\r\n"


def test_the_largest_item_is_what_the_server_says() -> None:
    room = 1000 - 48 - 8 - 2 - 2  # its head, CAS number, key and its NUL, the value's line end
    for flags, most in ((b"0", room), (b"1", room - 4)):
        for size in (most, most + 1):
            sent = b"set a %b 0 %d\r\n%b\r\n" % (flags, size, b"v" * size)
            assert read(sent, item_bytes_max=1000).swallow == (0 if size == most else size + 2)


def test_a_value_is_awaited_and_never_looked_at() -> None:
    reader = Reader()
    assert list(reader.feed(b"set a 0 0 10\r\nget a")) == []
    assert reader.wanted == len(b"set a 0 0 10\r\n") + 12
    assert list(reader.feed(b"\r\nxy\r")) == []
    assert [r.kind for r in reader.feed(b"\nget b\r\n")] == ["close"]  # nine bytes and a line end too early
    assert [r.kind for r in Reader().feed(b"set a 0 0 10\r\nget a\r\nxyz\r\nget b\r\n")] == ["write", "read"]


STREAM = b"".join(sent for sent, _, _ in GIVEN) + b"".join(line for line, _ in SAID) + b"get " + b"key " * 900 + b"\r\n"


@pytest.mark.parametrize("step", [1, 2, 3, 7, 50, 4000])
def test_parts_make_no_difference(step: int) -> None:
    whole = [(r.kind, r.length, r.text, r.key_hash) for r in Reader().feed(STREAM)]
    reader = Reader()
    parts = [r for at in range(0, len(STREAM), step) for r in reader.feed(STREAM[at : at + step])]
    assert [(r.kind, r.length, r.text, r.key_hash) for r in parts] == whole
    assert len(whole) == len(GIVEN) + len(SAID) + 1


@pytest.mark.parametrize(("sent", "kind", "given"), GIVEN, ids=range(len(GIVEN)))
def test_a_request_split_anywhere(sent: bytes, kind: str, given: bytes) -> None:
    for cut in range(1, len(sent)):
        reader = Reader()
        assert list(reader.feed(sent[:cut])) == []
        assert [(r.kind, rewrite(r, NOW_S)) for r in reader.feed(sent[cut:])] == [(kind, given)]


def test_a_get_may_have_any_number_of_keys() -> None:
    keys = [b"key%d" % i for i in range(20_000)]
    for name in (b"get", b"gets", b"gat 5", b"gats 5"):
        request = read(b" ".join([name, *keys]) + b"\r\n")
        assert rewrite(request, NOW_S).split()[-20_000:] == keys


def test_a_key_and_its_base64_form_are_one() -> None:
    for key in (b"a", b"foo", b"a longer key, with blanks", b"\0\n"):
        coded = base64.b64encode(key)
        hashes = {read(b"md " + coded + b" b\r\n").key_hash, read(b"ms " + coded + b" 1 b\r\nx\r\n").key_hash}
        if b" " not in key and b"\n" not in key:
            hashes.add(read(b"delete " + key + b"\r\n").key_hash)
        assert len(hashes) == 1
    assert len({read(b"delete key%d\r\n" % i).key_hash for i in range(10_000)}) == 10_000
    assert read(b"mg Zm!9v b\r\n").key_hash == read(b"mg foo\r\n").key_hash  # what is no digit is passed over


def test_stats_mu_is_the_sidecars() -> None:
    assert read(b"stats mu\r\n").kind == "status"
    assert read(b"stats mu x\r\n").kind == "local"


# ---- answers of the backend ------------------------------------------------------------------------------------------

REPLIES = [
    b"STORED\r\n",
    b"15\r\n",
    b"END\r\n",
    b"VALUE a 0 3\r\nabc\r\nEND\r\n",
    b"VALUE a 0 5 77\r\nEND\r\n\r\nVALUE b 1 0\r\n\r\nEND\r\n",
    b"HD c5 Oabc\r\n",
    b"VA 6 t-1\r\nHD\r\nHD\r\n",
    b"EN\r\n",
    b"STAT a b\r\nSTAT END c\r\nEND\r\n",
    b"VALUE a\rb 0 3\r\nabc\r\nEND\r\n",
    b"PREFIX a get 1\r\nEND\r\n",
    b"STAT 10:addr unix:/x\n\xff\r\r \n\r\nSTAT 10:state conn_listening\r\nEND\r\n",  # not ended by a NUL there
    b"SERVER_ERROR out of memory storing object\r\n",
]


@pytest.mark.parametrize("reply", REPLIES, ids=range(len(REPLIES)))
def test_where_an_answer_ends(reply: bytes) -> None:
    for cut in range(1, len(reply)):
        assert reply_end(reply[:cut]) == ("more", cut)
        assert reply_end(reply + b"HD\r\n", parts=[cut]) == ("whole", len(reply))
    assert reply_end(reply + b"EN\r\nHD\r\n", answers=2) == ("whole", len(reply) + 4)


@pytest.mark.parametrize(
    "reply",
    [
        b"\r\n",
        b"VALUE a 0\r\n",
        b"VALUE a 0 x\r\n",
        b"VA\r\n",
        b"VALUE a 0 0\r\n\r\nSTORED\r\n",
        b"lower\r\n",
        b"VA 99999999999\r\n",
    ],
)
def test_what_is_no_answer(reply: bytes) -> None:
    assert reply_end(reply)[0] == "bad"
