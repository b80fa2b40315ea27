"""The command table: every command of redis-server 7.0, its error texts, and what newer ones become."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from private_redis import PrivateRedis, private_redis
from resp_wire import array, error_line, look_up, parse

from musidecar._ffi import ffi, lib
from musidecar.protocols.redis import commands, policy
from musidecar.protocols.redis.commands import Action, Command, Way, decide, rows


@pytest.fixture(scope="module")
def redis() -> Iterator[PrivateRedis]:
    with private_redis() as server:
        yield server


@pytest.fixture(scope="module")
def reply(redis: PrivateRedis) -> Any:
    return commands.fetch(redis.path)


@pytest.fixture(scope="module")
def by_name(reply: Any) -> dict[str, Command]:
    return {command.name: command for command in rows(reply)}


@pytest.fixture(scope="module")
def flags(reply: Any) -> dict[str, set[str]]:
    return {
        entry[0].decode().lower(): {flag.decode() for flag in map(bytes, entry[2])}
        for top in reply
        for entry in (top, *top[9])
    }


@pytest.fixture(scope="module")
def table(reply: Any) -> Any:
    return commands.command_table(rows(reply))


# ---- classification --------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return text.split()


# Everything of 7.0.15 that is neither plainly readonly nor plainly write.
READ = words("""
    acl|cat acl|dryrun acl|genpass acl|getuser acl|help acl|list acl|log acl|users acl|whoami bgrewriteaof bgsave
    client|help cluster|count-failure-reports cluster|countkeysinslot cluster|getkeysinslot cluster|help cluster|info
    cluster|keyslot cluster|links cluster|myid cluster|nodes cluster|replicas cluster|shards cluster|slaves
    cluster|slots command command|count command|docs command|getkeys command|getkeysandflags command|help
    command|info command|list
    config|get config|help config|resetstat debug echo eval_ro evalsha_ro fcall_ro function|dump function|help
    function|list function|stats info lastsave latency|doctor latency|graph latency|help latency|histogram
    latency|history
    latency|latest latency|reset lolwut memory|doctor memory|help memory|malloc-stats memory|purge memory|stats
    memory|usage module|help module|list object|encoding object|freq object|help object|idletime object|refcount
    pfselftest ping pubsub|channels pubsub|help pubsub|numpat pubsub|numsub pubsub|shardchannels pubsub|shardnumsub
    role save script|exists script|help slowlog|get slowlog|help slowlog|len slowlog|reset time xgroup|help
    xinfo|consumers xinfo|groups xinfo|help xinfo|stream xread
""")
READ.remove("client|help")  # all of CLIENT is one
WRITE = words("""
    eval evalsha fcall function|delete function|flush function|load function|restore pfcount pfdebug publish
    script|flush script|load spublish xreadgroup
""")
SESSION = words("asking auth discard exec hello multi quit readonly readwrite reset select unwatch wait client")
OWN = words("""
    blmove blmpop blpop brpop brpoplpush bzmpop bzpopmax bzpopmin migrate monitor
    psubscribe psync punsubscribe replconf ssubscribe subscribe sunsubscribe sync unsubscribe watch
""")
REFUSE = words("""
    cluster|addslots cluster|addslotsrange cluster|bumpepoch cluster|delslots cluster|delslotsrange cluster|failover
    cluster|flushslots cluster|forget cluster|meet cluster|replicate cluster|reset cluster|saveconfig
    acl|load acl|save config|rewrite module|load module|loadex module|unload script|debug
    cluster|set-config-epoch cluster|setslot failover replicaof shutdown slaveof
""")
ADMIN = words("acl|deluser acl|setuser config|set function|kill script|kill")
NAMED = {
    **dict.fromkeys(READ, Way.READ),
    **dict.fromkeys(WRITE, Way.WRITE),
    **dict.fromkeys(SESSION, Way.SESSION),
    **dict.fromkeys(OWN, Way.OWN),
    **dict.fromkeys(REFUSE, Way.REFUSE),
    **dict.fromkeys(ADMIN, Way.ADMIN),
}


def test_every_command_of_redis_7_0(by_name: dict[str, Command], flags: dict[str, set[str]]) -> None:
    assert len(flags) == 366
    for name, given in flags.items():
        command = by_name[name]
        if command.is_container and name != "command":
            continue
        if name.startswith("client"):
            assert (command.way, command.action) == (Way.SESSION, Action.CLIENT), name
        elif name in NAMED:
            assert command.way is NAMED[name], name
        else:
            assert ("readonly" in given) != ("write" in given) and "blocking" not in given, name
            assert command.way is (Way.READ if "readonly" in given else Way.WRITE), name
    assert set(NAMED) <= set(flags)


def test_no_write_goes_unlogged(by_name: dict[str, Command], flags: dict[str, set[str]]) -> None:
    for name, given in flags.items():
        if "write" in given and not by_name[name].is_container:
            assert by_name[name].way in (Way.WRITE, Way.OWN), name


def test_what_a_follower_may_answer(by_name: dict[str, Command], flags: dict[str, set[str]]) -> None:
    may = {name for name, command in by_name.items() if command.may_be_stale}
    assert may == commands.MAY_BE_STALE, "there is each of them"
    assert all(by_name[name].way is Way.READ and "readonly" in flags[name] for name in may)
    never = words("scan hscan sscan zscan touch randomkey eval_ro evalsha_ro fcall_ro pfcount info role")
    assert may.isdisjoint(never) and set(never) <= set(by_name)


def test_reads_leave_no_trace_in_the_stream() -> None:
    """Each READ that is not flagged readonly, run as well as can be, moves no replication offset."""
    arguments = {
        "acl|getuser": [b"default"], "acl|dryrun": [b"default", b"get", b"x"], "config|get": [b"maxmemory"],
        "debug": [b"help"], "echo": [b"x"], "eval_ro": [b"return 1", b"0"],
        "evalsha_ro": [b"0" * 40, b"0"], "fcall_ro": [b"f", b"0"],
        "script|exists": [b"0" * 40], "cluster|keyslot": [b"x"], "latency|graph": [b"command"],
        "latency|history": [b"command"], "memory|usage": [b"k"], "object|encoding": [b"k"], "object|freq": [b"k"],
        "object|idletime": [b"k"], "object|refcount": [b"k"], "command|docs": [b"get"], "command|info": [b"get"],
        "xinfo|consumers": [b"s", b"g"], "xinfo|groups": [b"s"], "xinfo|stream": [b"s"],
        "command|getkeys": [b"get", b"k"], "command|getkeysandflags": [b"get", b"k"],
    }  # fmt: skip
    skipped = {"xread", "pfselftest", "save", "bgsave", "bgrewriteaof"}
    quiet = ("--repl-ping-replica-period", "3600")
    with private_redis(*quiet) as redis, redis.connect() as replica:
        redis.answer(array(b"SET", b"k", b"v") + array(b"XGROUP", b"CREATE", b"s", b"g", b"$", b"MKSTREAM"))
        replica.sendall(array(b"PSYNC", b"?", b"-1"))  # from now on offsets count
        assert replica.recv(1) == b"+"

        def offset() -> int:
            return int(redis.answer(array(b"ROLE")).split(b"\r\n")[3][1:])

        redis.answer(array(b"SET", b"k", b"w"))
        before = offset()
        assert before > 0
        for name in READ:
            if name not in skipped and not name.startswith("cluster"):
                answer = redis.answer(array(*name.encode().split(b"|"), *arguments.get(name, [])))
                assert b"wrong number" not in answer and b"syntax" not in answer, name
        assert offset() == before
        redis.answer(array(b"PFADD", b"h", b"a"))
        offsets = [before, offset()]
        assert redis.answer(array(b"PFCOUNT", b"h")) == b":1\r\n"
        offsets.append(offset())
        redis.answer(array(b"PUBLISH", b"c", b"m"))
        offsets.append(offset())
        assert offsets == sorted(set(offsets))  # flagged readonly and pubsub, but they do


@pytest.mark.parametrize(
    ("name", "flags", "categories", "way"),
    [
        ("new.get", "readonly fast", "read", Way.READ),
        ("new.set", "write denyoom", "write dangerous", Way.WRITE),
        ("new.pop", "write blocking", "blocking", Way.OWN),
        ("new.poll", "readonly blocking", "", Way.OWN),
        ("new.sub", "pubsub", "", Way.OWN),
        ("new.trim", "admin write", "admin dangerous", Way.REFUSE),
        ("new.admin", "admin noscript", "admin dangerous", Way.REFUSE),
        ("new.danger", "noscript", "dangerous", Way.REFUSE),
        ("new.show", "admin readonly", "admin dangerous", Way.READ),
        ("new.both", "readonly write", "", Way.WRITE),
        ("new.plain", "fast", "", Way.WRITE),
        ("script|show", "readonly noscript", "scripting", Way.READ),
        ("acl|newer", "admin", "admin dangerous", Way.REFUSE),
        ("cluster|newer", "stale", "", Way.REFUSE),
        ("client|setinfo", "noscript loading stale", "connection", Way.SESSION),
        ("memory|newer", "", "", Way.READ),
        ("object|set", "write", "", Way.WRITE),
        ("waitaof", "blocking", "blocking connection", Way.OWN),
    ],
)
def test_commands_of_newer_servers(name: str, flags: str, categories: str, way: Way) -> None:
    assert decide(name, frozenset(flags.split()), frozenset(categories.split()))[0] is way


def test_actions(by_name: dict[str, Command]) -> None:
    expected = {
        "info": Action.INFO, "eval": Action.EVAL, "eval_ro": Action.EVAL, "evalsha": Action.NONE, "fcall": Action.NONE,
        "script|load": Action.SCRIPT_LOAD, "script|flush": Action.SCRIPT_FLUSH, "xread": Action.IF_BLOCK,
        "xreadgroup": Action.IF_BLOCK, "config|set": Action.CONFIG_SET, "acl|setuser": Action.ACL_CHANGE,
        "readwrite": Action.READONLY, "select": Action.SELECT, "get": Action.NONE, "wait": Action.WAIT,
    }  # fmt: skip
    assert {name: by_name[name].action for name in expected} == expected
    assert all(by_name[name].action for name in SESSION)


def test_inside_a_transaction_and_before_authentication(by_name: dict[str, Command]) -> None:
    for name, command in by_name.items():
        if command.way in (Way.READ, Way.WRITE):
            assert command.in_multi, name
    blocking = {name for name, command in by_name.items() if command.blocking}
    assert blocking == set(words("blmove blmpop blpop brpop brpoplpush bzmpop bzpopmax bzpopmin"))
    others = {name for name, c in by_name.items() if c.in_multi and c.way not in (Way.READ, Way.WRITE)}
    assert others == blocking | {"select", "wait", "unwatch"}
    assert {name for name, c in by_name.items() if c.no_auth} == {
        "auth",
        "hello",
        "quit",
        "reset",
        "post",
        "host:",
    }


def test_a_server_without_sub_commands_is_refused() -> None:
    with pytest.raises(ValueError, match=r"7\.0"):
        rows([[b"get", 2, [b"readonly"], 1, 1, 1, [b"@read"]]])


def test_text_and_sets_as_resp3_gives_them() -> None:
    (command, *_) = rows([["GET", 2, {"readonly"}, 1, 1, 1, {"@read"}, [], [], []]])
    assert (command.name, command.way) == ("get", Way.READ)


# ---- look-up ---------------------------------------------------------------------------------------------------------


def test_every_command_is_found_however_it_is_spelt(by_name: dict[str, Command], table: Any) -> None:
    for name, command in by_name.items():
        words = name.encode().split(b"|")
        if words[0] == b"client":
            words = words[:1]
        for spell in (bytes.lower, bytes.upper, bytes.title):
            request = [spell(word) for word in words]
            request += [b"x"] * (abs(command.arity) - len(request))
            verdict, info = look_up(table, array(*request))
            if command.is_container and len(request) > 1:
                assert verdict == lib.COMMAND_UNKNOWN_SUB, name
                continue
            assert verdict == lib.COMMAND_OK, (name, request)
            found = ffi.string(info.name).decode()
            assert found == (name if words[0] != b"client" else "client")
            if words[0] != b"client":
                row = (
                    info.arity,
                    info.way,
                    info.action,
                    info.is_container,
                    info.in_multi,
                    info.no_auth,
                    info.blocking,
                )
                assert row == (
                    command.arity, command.way, command.action, command.is_container, command.in_multi,
                    command.no_auth, command.blocking,
                )  # fmt: skip


NOT_COMMANDS = [
    [b""], [b"config|get", b"x"], [b"config|", b"x"], [b"ge"], [b"gett", b"x"], [b"get\0", b"x"], [b"\0get"],
    [b"x" * 31], [b"x" * 32], [b"x" * 300, b"y" * 300], [b"g\xc5t", b"x"], [b"[get"], [b"a\r\nb", b"c\nd\re"],
    [b"no\0pe", b"a\0b", b"c"],
    [b"nope", b"a" * 127, b"b", b"c"], [b"nope", b"a" * 125, b"b", b"c"], [b"nope", b"a" * 122, b"bcd", b"c"],
    [b"nope", b"a" * 124, b"bcd", b"c"], [b"nope", *[b""] * 100], [b"nope", *[b"%d" % i for i in range(100)]],
    [b"nope", b"a" * 128], [b"nope", b"a" * 129], [b"nope", b"\r\n"], [b"\xff\xfe", b"\xfd"],
    [b"config", b"nope"], [b"CoNfIg", b"", b"x"], [b"config", b"x" * 300], [b"object", b"a\r\nb"], [b"xinfo", b"a\0b"],
    [b"command", b"nope"], [b"config", b"get\0", b"x"], [b"config", b"get|x"], [b"config", b"config|get"],
    [b"cluster", b"count-failure-reportsx"], [b"memory", b"usage "], [b"config"], [b"xgroup"], [b"xgroup", b"create"],
    [b"ping", b"a", b"b"], [b"command", b"docs"],
]  # fmt: skip


@pytest.mark.parametrize("request_", NOT_COMMANDS, ids=lambda r: repr(b" ".join(r)[:20]))
def test_errors_are_those_of_redis(request_: list[bytes], redis: PrivateRedis, table: Any) -> None:
    raw = array(*request_)
    answer = redis.answer(raw)
    if look_up(table, raw)[0] == lib.COMMAND_OK:
        assert request_ in ([b"ping", b"a", b"b"], [b"command", b"docs"])  # Redis finds that out later
    elif request_[1:2] == [b"get\0"] and answer == b"*0\r\n":
        pass  # Redis compares up to the NUL, if the hash of its start leads it there
    else:
        assert answer.startswith(b"-ERR ")
        assert error_line(table, raw) == answer


def test_arity_of_every_command(by_name: dict[str, Command], redis: PrivateRedis, table: Any) -> None:
    """One argument too few, and one too many where that can be: never run, so SHUTDOWN may be among them."""
    requests = []
    for name, command in by_name.items():
        words = name.encode().upper().split(b"|")
        if command.action is Action.CLOSE or words[0] == b"CLIENT":
            continue
        for argc in (abs(command.arity) - 1, command.arity + 1):
            if argc >= len(words) and (argc < abs(command.arity) or argc > command.arity > 0):
                if command.is_container and argc > 1:
                    continue
                requests.append(array(*words, *[b"x"] * (argc - len(words))))
    assert len(requests) > 400
    lines = [error_line(table, raw) for raw in requests]
    assert all(b" wrong number of arguments for '" in line for line in lines)
    assert redis.answer(b"".join(requests)) == b"".join(lines)


def test_a_short_buffer_still_holds_a_line(table: Any) -> None:
    raw = array(b"nope", b"a" * 100)
    whole = error_line(table, raw)
    for room in range(2, len(whole)):
        assert error_line(table, raw, room) == whole[: room - 2] + b"\r\n"


def test_client_sub_commands(redis: PrivateRedis, table: Any) -> None:
    def sub(*arguments: bytes) -> tuple[int, bytes | None]:
        request, buffer = parse(array(*arguments))
        info = ffi.new("struct command_info **")
        assert lib.command_lookup(table, request, buffer, info) == lib.COMMAND_OK
        verdict = lib.command_lookup_sub(table, info[0], request, buffer, info)
        if verdict == lib.COMMAND_OK:
            return verdict, None
        out = ffi.new("char[1024]")
        return verdict, bytes(ffi.buffer(out, lib.command_error(verdict, info[0], request, buffer, out, 1024)))

    assert sub(b"client", b"LIST") == (lib.COMMAND_OK, None)
    for request in ([b"client", b"nope"], [b"CLIENT", b"setname"], [b"client", b"id", b"x"]):
        assert sub(*request)[1] == redis.answer(array(*request))


@pytest.mark.parametrize("request_", [[b"POST", b"/"], [b"Host:", b"x"]])
def test_a_browser_is_cut_off(request_: list[bytes], redis: PrivateRedis, table: Any) -> None:
    assert redis.answer(array(*request_) + array(b"PING")) == b""
    verdict, info = look_up(table, array(*request_))
    assert (verdict, info.way, info.action) == (lib.COMMAND_OK, Way.REFUSE, Action.CLOSE)


BLOCK = {
    (b"XREAD", b"STREAMS", b"s", b"0"): False,
    (b"XREAD", b"BLOCK", b"1", b"STREAMS", b"s", b"$"): True,
    (b"XREAD", b"block\0x", b"1", b"STREAMS", b"s", b"$"): True,
    (b"XREAD", b"COUNT", b"1", b"bLoCk", b"1", b"STREAMS", b"s", b"$"): True,
    (b"XREAD", b"STREAMS", b"block", b"0"): False,
    (b"XREADGROUP", b"GROUP", b"g", b"c", b"STREAMS", b"s", b">"): False,
    (b"XREADGROUP", b"GROUP", b"streams", b"c", b"BLOCK", b"1", b"STREAMS", b"s", b">"): True,
    (b"XREADGROUP", b"GROUP", b"block", b"block", b"STREAMS", b"s", b">"): False,
    (b"XREADGROUP", b"GROUP", b"g", b"c", b"NOACK", b"BLOCK", b"1", b"STREAMS", b"s", b">"): True,
}


@pytest.mark.parametrize("request_", BLOCK, ids=lambda r: b" ".join(r).decode().replace("\0", "0"))
def test_who_asks_to_block(request_: tuple[bytes, ...], redis: PrivateRedis) -> None:
    """Redis is asked too: a request that blocks shows up as a blocked client when its time is not over."""
    assert lib.command_blocks(*parse(array(*request_))) is BLOCK[request_]
    redis.answer(array(b"XGROUP", b"CREATE", b"s", b"g", b"$", b"MKSTREAM"))
    redis.answer(
        array(b"XGROUP", b"CREATE", b"s", b"streams", b"$") + array(b"XGROUP", b"CREATE", b"s", b"block", b"$")
    )
    forever = [b"0" if argument == b"1" and before.lower().startswith(b"block") else argument
               for before, argument in zip((b"", *request_), request_, strict=False)]  # fmt: skip
    with redis.connect() as client:
        client.sendall(array(*forever))
        if BLOCK[request_]:
            while b"blocked_clients:1\r" not in redis.answer(array(b"INFO", b"clients")):
                client.setblocking(False)
                with pytest.raises(BlockingIOError):  # no answer came: it does block
                    client.recv(1)
        else:
            assert client.recv(100).startswith((b"*-1", b"*0"))
    while b"blocked_clients:0\r" not in redis.answer(array(b"INFO", b"clients")):
        pass


def test_a_long_option_list_is_walked_once() -> None:
    request, buffer = parse(array(b"XREAD", *[b"COUNT", b"1"] * 200_000, b"BLOCK", b"0"))
    assert lib.command_blocks(request, buffer)


# ---- the table itself ------------------------------------------------------------------------------------------------


def named(name: bytes, arity: int = -1) -> Any:
    info = ffi.new("struct command_info *")
    info.name = name.ljust(32, b"\0")
    info.arity = arity
    return info


def test_a_full_table_and_bad_names() -> None:
    table = ffi.gc(lib.command_table_new(2), lib.command_table_free)
    assert lib.command_table_add(table, named(b"")) == -1
    assert lib.command_table_add(table, named(b"x" * 32)) == -1
    assert lib.command_table_add(table, named(b"x" * 31)) == 0
    assert lib.command_table_add(table, named(b"Get", 2)) == 0
    assert lib.command_table_add(table, named(b"set")) == -1
    assert lib.command_table_add(table, named(b"get", 3)) == 0
    assert look_up(table, array(b"GET", b"k"))[0] == lib.COMMAND_ARITY
    assert look_up(table, array(b"GET", b"k", b"l"))[0] == lib.COMMAND_OK
    assert look_up(table, array(b"X" * 31))[0] == lib.COMMAND_OK
    assert look_up(table, array(b"set", b"k"))[0] == lib.COMMAND_UNKNOWN


def test_only_letters_are_folded() -> None:
    table = ffi.gc(lib.command_table_new(300), lib.command_table_free)
    for byte in range(1, 256):
        if not ord("A") <= byte <= ord("Z") and byte != ord("|"):
            assert lib.command_table_add(table, named(bytes([byte]) + b"longername-x")) == 0
    for byte in range(1, 256):
        if byte != ord("|"):
            verdict, info = look_up(table, array(bytes([byte]) + b"LONGERNAME-X"))
            assert verdict == lib.COMMAND_OK
            assert ffi.string(info.name) == bytes([byte]).lower() + b"longername-x"


def test_the_page_of_all_commands_says_what_the_code_does(reply: Any) -> None:
    """Write it anew: python -m musidecar.protocols.redis.policy --socket PATH > docs/redis-commands.md"""
    assert (Path(__file__).parents[2] / "docs" / "redis-commands.md").read_text() == policy.page(rows(reply))


def test_the_printed_table(redis: PrivateRedis, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["--socket", redis.path]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert ["get", "2", "read", "", "yes"] in lines and ["blpop", "-3", "own", "", "yes"] in lines
    assert len(lines) == 1 + 366 + 2
    assert commands.main(["--socket", redis.path + "-none"]) == 1
    assert redis.path + "-none" in capsys.readouterr().err
