"""The command table: what becomes of each command, from the backend's own COMMAND reply and a few overrides.

`rows()` turns the reply into `Command`s, `command_table()` fills the C table (commands.h) that the engine looks
requests up in. A command is classified by its flags; what flags do not tell stands in `OVERRIDES`, reviewed
against redis-server 7.0.15. A command that a newer server or a module brings is classified by its flags on the
safe side: rather logged, refused or put off than run unlogged.

`python -m musidecar.protocols.redis.commands --socket PATH` prints the table of a running server.
"""

import argparse
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from musidecar._ffi import ffi, lib

NAME_BYTES_MAX = 31  # command_info.name without its NUL
ENTRY_ELEMENTS = 10  # of one command in COMMAND since Redis 7.0: name ... sub-commands


class Way(IntEnum):
    """How a command travels: enum command_way of commands.h."""

    READ = lib.WAY_READ
    WRITE = lib.WAY_WRITE
    SESSION = lib.WAY_SESSION
    ADMIN = lib.WAY_ADMIN
    OWN = lib.WAY_OWN
    REFUSE = lib.WAY_REFUSE


class Action(IntEnum):
    """What is special about it: enum command_action of commands.h."""

    NONE = lib.ACTION_NONE
    SELECT = lib.ACTION_SELECT
    HELLO = lib.ACTION_HELLO
    AUTH = lib.ACTION_AUTH
    MULTI = lib.ACTION_MULTI
    EXEC = lib.ACTION_EXEC
    DISCARD = lib.ACTION_DISCARD
    UNWATCH = lib.ACTION_UNWATCH
    QUIT = lib.ACTION_QUIT
    RESET = lib.ACTION_RESET
    WAIT = lib.ACTION_WAIT
    CLIENT = lib.ACTION_CLIENT
    READONLY = lib.ACTION_READONLY
    ASKING = lib.ACTION_ASKING
    EVAL = lib.ACTION_EVAL
    SCRIPT_LOAD = lib.ACTION_SCRIPT_LOAD
    SCRIPT_FLUSH = lib.ACTION_SCRIPT_FLUSH
    IF_BLOCK = lib.ACTION_IF_BLOCK
    CONFIG_SET = lib.ACTION_CONFIG_SET
    ACL_CHANGE = lib.ACTION_ACL_CHANGE
    WATCH = lib.ACTION_WATCH
    RAW = lib.ACTION_RAW
    DEBUG = lib.ACTION_DEBUG
    INFO = lib.ACTION_INFO
    SYNC = lib.ACTION_SYNC
    REPLCONF = lib.ACTION_REPLCONF
    VIEW = lib.ACTION_VIEW
    CLOSE = lib.ACTION_CLOSE


class Queueing(IntEnum):
    """What the server looks at before it queues it in a transaction: enum command_queueing of commands.h."""

    PLAINLY = lib.QUEUE_PLAINLY
    IF_WRITABLE = lib.QUEUE_IF_WRITABLE
    NEVER = lib.QUEUE_NEVER


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table: command_info of commands.h."""

    name: str  # lower case, "config|set" for a sub-command
    arity: int  # negative: at least
    way: Way
    action: Action
    is_container: bool
    in_multi: bool
    no_auth: bool
    blocking: bool
    queueing: Queueing = Queueing.PLAINLY
    may_be_stale: bool = False


Decision = tuple[Way, Action]


def _each(names: str, way: Way, action: Action = Action.NONE) -> dict[str, Decision]:
    return dict.fromkeys(names.split(), (way, action))


# What the flags do not tell. Everything else of 7.0.15 is plainly "readonly" or "write".
OVERRIDES: Mapping[str, Decision] = {
    # Connection state, kept by the session layer.
    **{
        action.name.lower(): (Way.SESSION, action)
        for action in (
            Action.SELECT,
            Action.HELLO,
            Action.AUTH,
            Action.MULTI,
            Action.EXEC,
            Action.DISCARD,
            Action.UNWATCH,
            Action.QUIT,
            Action.RESET,
            Action.WAIT,
            Action.CLIENT,
            Action.READONLY,
            Action.ASKING,
        )
    },
    "readwrite": (Way.SESSION, Action.READONLY),
    # About the server or the connection, answered by the leader's Redis.
    "info": (Way.READ, Action.INFO),
    **_each("ping echo time lastsave command lolwut pfselftest save bgsave bgrewriteaof", Way.READ),
    **_each("config|get config|resetstat role slowlog|get slowlog|len slowlog|reset", Way.READ, Action.VIEW),
    "latency|histogram": (Way.READ, Action.VIEW),
    **_each("script|exists function|list function|dump function|stats", Way.READ),
    **_each("acl|cat acl|dryrun acl|genpass acl|getuser acl|list acl|log acl|users acl|whoami", Way.READ),
    **_each(
        "cluster|count-failure-reports cluster|countkeysinslot cluster|getkeysinslot cluster|info", Way.READ
    ),
    **_each(
        "cluster|keyslot cluster|links cluster|myid cluster|myshardid cluster|nodes cluster|replicas",
        Way.READ,
    ),
    **_each("cluster|shards cluster|slaves cluster|slots module|list", Way.READ),
    # Scripts and functions. EVAL_RO fills the script cache just as EVAL does.
    "eval": (Way.WRITE, Action.EVAL),
    "eval_ro": (Way.READ, Action.EVAL),
    **_each("evalsha fcall", Way.WRITE),
    "script|load": (Way.WRITE, Action.SCRIPT_LOAD),
    "script|flush": (Way.WRITE, Action.SCRIPT_FLUSH),
    **_each("script|kill function|kill", Way.ADMIN),
    "script|debug": (Way.REFUSE, Action.NONE),
    # Flagged readonly or pubsub, but their effect is in the stream: PFCOUNT rewrites its cached cardinality.
    **_each("pfcount publish spublish", Way.WRITE),
    "pfdebug": (Way.WRITE, Action.NONE),
    # Block only if asked to.
    "xread": (Way.READ, Action.IF_BLOCK),
    "xreadgroup": (Way.WRITE, Action.IF_BLOCK),
    # The backend keeps something for the client, or would do it a second time were it run again.
    "watch": (Way.OWN, Action.WATCH),
    "monitor": (Way.OWN, Action.RAW),
    **_each("migrate", Way.OWN),
    **_each("sync psync", Way.OWN, Action.SYNC),
    "replconf": (Way.OWN, Action.REPLCONF),
    # Not in the stream: done on the leader, then logged, and done on every node.
    "config|set": (Way.ADMIN, Action.CONFIG_SET),
    **_each("acl|setuser acl|deluser", Way.ADMIN, Action.ACL_CHANGE),
    # What the session layer lets pass changes no data.
    "debug": (Way.READ, Action.DEBUG),
    # Files and programs of one node: its configuration's.
    **_each("module|load module|loadex module|unload config|rewrite acl|load acl|save", Way.REFUSE),
    # Would take the backend out of the cluster's hands.
    **_each("replicaof slaveof failover shutdown", Way.REFUSE),
}

# What a replica answers as its master did a moment ago: data, by key or all of it.
# Not: what has one server's cursor in it (SCAN), what tells of the server or of its memory (OBJECT, MEMORY), what
# counts at the leader (TOUCH), what a replica may answer with a key that has expired (RANDOMKEY), scripts.
_STALE = """
    bitcount bitfield_ro bitpos dbsize exists expiretime geodist geohash geopos georadius_ro
    georadiusbymember_ro geosearch get getbit getrange hexists hget hgetall hkeys hlen hmget hrandfield hstrlen
    hvals keys lcs lindex llen lpos lrange mget pexpiretime pttl scard sdiff sinter sintercard sismember
    smembers smismember sort_ro srandmember strlen substr sunion ttl type xlen xrange xread xrevrange zcard
    zcount zdiff zinter zintercard zlexcount zmscore zrandmember zrange zrangebylex zrangebyscore zrank
    zrevrange zrevrangebylex zrevrangebyscore zrevrank zscore zunion
"""
MAY_BE_STALE = frozenset(_STALE.split())

# Commands all of whose sub-commands only look at the leader's Redis (or at its own counters), unless flagged "write".
READ_CONTAINERS = frozenset({"command", "latency", "memory", "object", "pubsub", "slowlog", "xinfo"})

# Inside MULTI ... EXEC these travel with the block although the session layer deals with them outside it.
SESSION_IN_MULTI = frozenset({Action.SELECT, Action.UNWATCH, Action.WAIT})

# Not commands: the first words of an HTTP request. Redis closes the connection without a word.
CROSS_PROTOCOL = ("post", "host:")


def _by_flags(flags: frozenset[str], categories: frozenset[str]) -> Way:
    """The way of a command that nothing else is known about. The order is the point."""
    if flags & {"blocking", "pubsub"}:
        return Way.OWN
    if "readonly" in flags and not flags & {"write", "may_replicate"}:
        return Way.READ
    if "admin" in flags:
        return Way.REFUSE
    if "write" not in flags and "dangerous" in categories:
        return Way.REFUSE
    return Way.WRITE


def decide(name: str, flags: frozenset[str], categories: frozenset[str]) -> Decision:
    """Way and action of a command, by its full lower-case name, its flags, and its ACL categories (without '@')."""
    if name in OVERRIDES:
        return OVERRIDES[name]
    container, _, sub = name.partition("|")
    if container == "client":
        return Way.SESSION, Action.CLIENT
    if sub == "help" or (sub and container in READ_CONTAINERS and not flags & {"write", "blocking"}):
        return Way.READ, Action.NONE
    if container == "cluster" and sub and "readonly" not in flags:
        # Unknown ones are changes until reviewed.
        return Way.REFUSE, Action.NONE
    way = _by_flags(flags, categories)
    return way, Action.RAW if way is Way.OWN and "pubsub" in flags else Action.NONE


def _text(value: object) -> str:
    text = value.decode() if isinstance(value, bytes) else str(value)
    return text.lower()


def _words(value: Iterable[object]) -> frozenset[str]:
    return frozenset(_text(word).lstrip("@") for word in value)


def _command(entry: Any, subs: bool) -> Command:
    name, flags = _text(entry[0]), _words(entry[2])
    way, action = decide(name, flags, _words(entry[6]))
    return Command(
        name=name,
        arity=int(entry[1]),
        way=way,
        action=action,
        # CLIENT is one look-up: the session layer sorts its sub-commands out.
        is_container=subs and name != "client",
        in_multi=_in_multi(name, way, action, flags),
        no_auth="no_auth" in flags,
        blocking="blocking" in flags and way is Way.OWN,
        queueing=_queueing(flags),
        may_be_stale=name in MAY_BE_STALE and way is Way.READ and "readonly" in flags,
    )


def _queueing(flags: frozenset[str]) -> Queueing:
    if "no_multi" in flags:
        return Queueing.NEVER
    return Queueing.IF_WRITABLE if "write" in flags else Queueing.PLAINLY


def _in_multi(name: str, way: Way, action: Action, flags: frozenset[str]) -> bool:
    if way is Way.SESSION:
        return action in SESSION_IN_MULTI
    # A blocking command does not block inside MULTI, so there it travels like any other.
    return way in (Way.READ, Way.WRITE) or (way is Way.OWN and "blocking" in flags)


def rows(reply: Iterable[Any]) -> list[Command]:
    """The table of a backend, containers before their sub-commands.

    `reply` is the raw answer to COMMAND: per command [name, arity, flags, first key, last key, step, ACL categories,
    tips, key specifications, sub-commands], strings as bytes or str, flags as list or (RESP3) set.

    Raises ValueError for a server older than Redis 7.0, whose COMMAND does not tell sub-commands.
    """
    return list(_rows(reply))


def _rows(reply: Iterable[Any]) -> Iterator[Command]:
    for entry in reply:
        if len(entry) < ENTRY_ELEMENTS:
            raise ValueError("the backend's COMMAND does not tell sub-commands: Redis 7.0 or newer is needed")
        yield _command(entry, subs=bool(entry[9]))
        for sub in entry[9]:
            yield _command(sub, subs=False)
    for name in CROSS_PROTOCOL:
        yield Command(name, -1, Way.REFUSE, Action.CLOSE, False, False, True, False)


def command_table(commands: Iterable[Command]) -> Any:
    """A `struct command_table *` with these commands in it, freed with the Python object.

    A name too long for the table (31 bytes) is left out, so the command is unknown to clients.
    """
    commands = [command for command in commands if len(command.name.encode()) <= NAME_BYTES_MAX]
    table = ffi.gc(lib.command_table_new(max(1, len(commands))), lib.command_table_free)
    info: Any = ffi.new("struct command_info *")
    for command in commands:
        info.name = command.name.encode().ljust(NAME_BYTES_MAX + 1, b"\0")
        info.arity = command.arity
        info.way = command.way
        info.action = command.action
        info.is_container = command.is_container
        info.in_multi = command.in_multi
        info.no_auth = command.no_auth
        info.blocking = command.blocking
        info.queueing = command.queueing
        info.may_be_stale = command.may_be_stale
        if lib.command_table_add(table, info) != 0:
            raise ValueError(f"command table: cannot take {command.name!r}")
    return table


def fetch(path: str, timeout_s: float = 10.0) -> Any:
    """The raw COMMAND reply of the server on Unix socket `path`. Raises OSError, or ValueError with its error."""
    import hiredis

    reader = hiredis.Reader()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        connection.connect(path)
        connection.sendall(b"*1\r\n$7\r\nCOMMAND\r\n")
        while (reply := reader.gets()) is False:
            data = connection.recv(1 << 16)
            if not data:
                raise ValueError("the server closed the connection")
            reader.feed(data)
    if isinstance(reply, hiredis.ReplyError):
        raise ValueError(str(reply))
    return reply


def _print(commands: list[Command], out: Any) -> None:
    columns = ("command", "arity", "way", "action", "in MULTI")
    lines = [
        (
            c.name,
            str(c.arity),
            "-" if c.is_container and c.name != "command" else c.way.name.lower(),
            c.action.name.lower() if c.action else "",
            "yes" if c.in_multi else "",
        )
        for c in sorted(commands, key=lambda c: c.name)
    ]
    if not out.isatty():
        out.writelines("\t".join(line) + "\n" for line in [columns, *lines])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for line in lines:
        table.add_row(*line)
    Console(file=out).print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m musidecar.protocols.redis.commands",
        description="Print what becomes of each command of a running Redis server.",
    )
    parser.add_argument("--socket", required=True, metavar="PATH", help="Unix socket of the server")
    arguments = parser.parse_args(argv)
    try:
        reply = fetch(arguments.socket)
    except (OSError, ValueError) as error:
        print(f"{arguments.socket}: {error}", file=sys.stderr)
        return 1
    _print(rows(reply), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
