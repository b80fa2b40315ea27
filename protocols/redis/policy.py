"""What becomes of each command, as a page: docs/redis-commands.md.

It is written from the table that the engine looks requests up in, and by asking the session layer's own functions, so
that it says what the code does. `python -m musidecar.protocols.redis.policy --socket PATH` prints it for a server.
"""

import argparse
import sys
from collections.abc import Callable, Iterable

from musidecar._ffi import ffi, lib

from .commands import CROSS_PROTOCOL, Action, Command, Way, fetch, rows

HEAD = """# What becomes of each command

Written by `python -m musidecar.protocols.redis.policy` from the table that the code uses, for redis-server 7.0; a test
compares. A command that a newer server brings is classified by its own COMMAND flags, on the safe side: rather logged,
or refused, than run unlogged.

| it says | it travels | it is logged |
|---|---|---|
| read | on the connection that all clients share, to the leader's Redis; the answer waits for a permission probe | no |
| write | the same, once its COMMAND is committed; the answer waits until its EFFECT is | COMMAND, EFFECT |
| script | as a write, also if it only reads: EVALSHA may name its body later | ADMIN (the body), COMMAND, EFFECT |
| here | nowhere: the node that the client is connected to answers | no |
| own | on a connection of its own to the leader's Redis, behind a permission probe; never run again | EFFECT |
| own, stays | the same, and the client stays on that connection | EFFECT |
| all nodes | to the leader's Redis, then to every node's | ADMIN, once it is done |
| admin | on the sidecar's admin connection: behind a script on the shared one it would be held up | no |
| refused | nowhere; the error says why | no |

Once a client has a connection of its own all its requests go there, refused ones excepted, until its Redis keeps
nothing for it any more. Within MULTI ... EXEC what is read, written or would block travels with its transaction, as one
block. Everything else there takes the open transaction to a connection of its own. "All nodes" holds there, too, and
for other users, but not for parameters that the sidecar keeps: these are refused.

What "may be stale" is answered by a follower's own Redis, outside MULTI, where `reads = "local"` is set and the client
said READONLY.
"""

CONFIG_KEPT = """Of these a client reads what a client has set, while each node's server has a value of its
sidecar's: `masterauth`, `masteruser`; `repl-backlog-size`, of which a server has at least what a fail-over needs; and
`slowlog-max-len`, of which it has more where a client has set one, for the sidecar's own entries that nobody is shown.
A parameter that is not listed is refused as one that cannot be set; `port`, where it is taken, as one that no server
can listen on.
"""
CONFIG_BOUNDED = "Within bounds: `repl-diskless-sync-delay` 0, `repl-ping-replica-period` 1 to 3600."
LOADS = "; `reload`, but for `noflush` without `merge`; `loadaof` where an AOF is or was written; `populate`."

NOTES = {
    Action.SYNC: "the client is a replica from then on: the leader's data, then its stream, as it is committed",
    Action.REPLCONF: "what a replica says of itself",
    Action.EVAL: "",
    Action.IF_BLOCK: "with BLOCK: own",
    Action.CONFIG_SET: "parameters below; others only to the value that they have",
    Action.DEBUG: "sub-commands below, if the server allows them; others refused",
    Action.INFO: "of the leader's Redis, as it would be without a sidecar",
    Action.VIEW: "the answer is as it would be without a sidecar",
    Action.WAIT: "how many other nodes are known to have every write before it",
    Action.MULTI: "the transaction is gathered, and travels when EXEC comes",
    Action.AUTH: "credentials are shown to the leader's Redis, or to the node's own where none leads; another user than"
    " `default`: own, stays",
    Action.HELLO: "the same with AUTH",
    Action.READONLY: "with `reads = \"local\"`: here; else to the leader's Redis",
    Action.ASKING: "to the leader's Redis, as a read",
    Action.UNWATCH: "",
    Action.CLOSE: "the connection closes: no Redis client says so",
}


def _request(words: list[str]) -> tuple[object, object]:
    """A request as the engine frames it, and its bytes (which must outlive it)."""
    parts = [b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words]
    raw = b"*%d\r\n%b" % (len(parts), b"".join(parts))
    bytes_, request = ffi.from_buffer(raw), ffi.new("struct resp_request *")
    limits = ffi.new("struct resp_limits *", {"bulk_bytes_max": 1 << 20, "request_bytes_max": 1 << 20,
                                              "inline_bytes_max": 1 << 16, "authenticated": True})  # fmt: skip
    lib.resp_request_reset(request)
    if lib.resp_request_feed(request, bytes_, len(raw), limits) != lib.RESP_DONE:
        raise ValueError(f"not a request: {words}")
    return request, bytes_


def _client(command: Command) -> tuple[str, str]:
    words = command.name.split("|")
    info = ffi.new("struct command_info *", {"way": command.way, "action": command.action})
    if len(words) == 1:
        return "here", "by its sub-command"
    if words[1] in ("list", "info", "kill"):
        return "admin", (
            "of the clients of all nodes; inside MULTI, for another user, and KILL of another user's: own, stays, where"
            " KILL is refused by what the sidecar's own connections have, too"
        )
    if words[1] in ("pause", "unpause"):
        return "read", "all clients of all nodes; until another node leads"
    request, bytes_ = _request(words)
    if lib.session_refuses(ffi.NULL, info, request, bytes_):
        return "refused", "it would hold up everybody's connection"
    if lib.session_client_needs_own(request, bytes_):
        return "own, stays", ""
    return "here", ""


def policy(command: Command) -> tuple[str, str]:
    """(how it travels, what else there is to say) of one row."""
    if command.action is Action.CLIENT:
        return _client(command)
    note = NOTES.get(command.action, "") if "reset" not in command.name else ""
    if command.is_container and command.name != "command":
        return "", "by its sub-command"
    if command.action in (Action.EVAL, Action.SCRIPT_LOAD, Action.SCRIPT_FLUSH):
        return "script", note
    if command.action in (Action.READONLY, Action.ASKING):
        return "read", note
    if command.action in (Action.CONFIG_SET, Action.ACL_CHANGE):
        return "all nodes", note
    if command.way is Way.OWN:
        return ("own, stays" if command.action in (Action.RAW, Action.SYNC, Action.REPLCONF) else "own"), note
    if command.may_be_stale:
        note = f"{note}; may be stale" if note else "may be stale"
    names = {Way.READ: "read", Way.WRITE: "write", Way.SESSION: "here", Way.ADMIN: "admin", Way.REFUSE: "refused"}
    return names[command.way], note


def _names(name: Callable[[int], object]) -> str:
    found: list[str] = []
    while (text := name(len(found))) != ffi.NULL:
        found.append(f"`{ffi.string(text).decode()}`")
    return ", ".join(sorted(found))


def page(commands: Iterable[Command]) -> str:
    """The whole page for a server's commands."""
    lines = [HEAD, "| command | | |", "|---|---|---|"]
    for command in sorted(commands, key=lambda c: c.name):
        if command.name in CROSS_PROTOCOL:
            continue
        way, note = policy(command)
        lines.append(f"| {command.name.replace('|', ' ').upper()} | {way} | {note} |")
    lines += ["", "## CONFIG SET", "", _names(lib.session_config_name) + ".", "", CONFIG_KEPT, CONFIG_BOUNDED]
    lines += ["", "## DEBUG", ""]
    lines.append(_names(lib.session_debug_name) + LOADS)
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m musidecar.protocols.redis.policy", description="Print the page.")
    parser.add_argument("--socket", required=True, metavar="PATH", help="Unix socket of the server")
    sys.stdout.write(page(rows(fetch(parser.parse_args(argv).socket))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
