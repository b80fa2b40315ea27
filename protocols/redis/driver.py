"""The Redis behind one node: started here or already running, looked at, and set up for replication by a sidecar.

`spawn()` starts one on a Unix socket; `attach()` finds one that runs. `prepare()` checks it (version, role, cluster
mode, keys of a joining node), changes the settings that replication needs (design-redis.md R8; `wanted_settings()`
lists them) and returns what the engine must know about it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from musidecar._ffi import lib
from musidecar.protocols import backend, server
from musidecar.protocols.backend import HoldsData
from musidecar.protocols.server import START_TIMEOUT_S, Server

from .admin import Address, BackendError, Connection, ReplyError

VERSION_MIN = (7, 0)
BACKLOG_BYTES_MIN: int = lib.BACKLOG_BYTES_MIN
REPL_TIMEOUT_S_MIN = 60
REPL_TIMEOUT_S = 7200  # of a server started here: clients may set repl-ping-replica-period up to half of it
PING_PERIOD_S = 10
BUSY_MS_MAX = 1000
REFUSES_S = 1.0  # longer than this it is not asked why it would refuse writes


@dataclass(frozen=True)
class Prepared(backend.Prepared):
    """And of a Redis. keys: in all databases."""

    databases: int
    functions: int  # libraries
    password_needed: bool  # the default user has one (or is off): clients must log in
    bulk_bytes_max: int  # proto-max-bulk-len
    commands: list[Any]  # reply of COMMAND, for musidecar.protocols.redis.commands


# ---- a Redis of the sidecar's own ------------------------------------------------------------------------------------


def spawn(
    directory: Path,
    socket_path: Path,
    *,
    binary: str = "redis-server",
    password: str = "",
    arguments: Sequence[str] = (),
    timeout_s: float = START_TIMEOUT_S,
) -> Server:
    """Start a redis-server on `socket_path`, in memory only, working in `directory`, and wait until it answers.

    It gets SIGKILL when the calling thread ends (setpriv --pdeathsig), hence only the main thread may call. Its output
    goes to `directory`/backend.log. With a password, everybody must log in, clients too. BackendError when it is not
    installed, ends at once or does not answer in time.
    """
    server.check_thread()
    command = server.programs(binary, "redis-server")
    _remove_leftover(Address(path=str(socket_path), password=password), directory)
    options = {
        "port": "0", "unixsocket": str(socket_path), "unixsocketperm": "700", "save": "", "appendonly": "no",
        "daemonize": "no", "dir": str(directory), "logfile": str(directory / "backend.log"),
        "repl-timeout": str(REPL_TIMEOUT_S),
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    place = Address(path=str(socket_path))
    started = server.start(command, [*words, *arguments], directory, place, _answers, timeout_s)
    try:
        if password:  # not on the command line, where everybody could read it
            with Connection(started.address) as connection:
                connection.call("CONFIG", "SET", "requirepass", password)
            started.address = replace(started.address, password=password)
    except BaseException:
        started.stop()
        raise
    return started


def _answers(address: Address) -> bool:
    with Connection(address, 1.0) as connection:
        return bool(connection.call("PING") == b"PONG")


def _remove_leftover(address: Address, directory: Path) -> None:
    """A server of ours that outlived its sidecar by a hair still holds the socket: end it. Another's is an error."""
    socket_path = Path(address.path)
    if not socket_path.exists():
        return
    try:
        with Connection(address, 1.0) as connection:
            if Path(connection.config().get("dir", "")).resolve() != directory.resolve():
                raise BackendError(f"another Redis listens on {socket_path}: stop it, or give this node another socket")
            with contextlib.suppress(BackendError):
                connection.call("SHUTDOWN", "NOSAVE")
    except ReplyError as error:
        raise BackendError(f"another Redis listens on {socket_path} ({error}): stop it first") from None
    except BackendError as error:
        if not any(sign in str(error) for sign in ("cannot connect", " lost: ", "closed the connection")):
            raise  # else it has just died
    socket_path.unlink(missing_ok=True)


# ---- a Redis already running -----------------------------------------------------------------------------------------


def attach(address: Address, timeout_s: float = 5.0) -> int:
    """Check that a Redis answers at `address` with the given login; its process id as it tells it itself."""
    with Connection(address, timeout_s) as connection:
        return int(_info(connection, "server")["process_id"])


def local_pid(address: Address, told: int) -> int | None:
    """The server's process on this host, as this process numbers it; None when it is elsewhere or cannot be told."""
    return server.local_pid(address, told, ("redis", "valkey"))


def _info(connection: Connection, section: str) -> dict[str, str]:
    try:
        return connection.info(section)
    except ReplyError as error:
        raise BackendError(_explain(connection.address, error)) from None


def _explain(address: Address, error: ReplyError) -> str:
    hints = {
        "NOAUTH": "it wants a password: set password_file (and user)",
        "NOPERM": "the sidecar's user needs all rights (+@all ~* &*)",
        "DENIED": "it is in protected mode: use its Unix socket, or a password",
        "LOADING": "it is still loading its data: try again later",
        "ERR": "the sidecar needs this command under its own name and unrestricted",
    }
    hint = hints.get(error.code)
    return f"Redis at {address} answered: {error}" + (f" ({hint})" if hint else "")


# ---- making it ready -------------------------------------------------------------------------------------------------


def wanted_settings(current: dict[str, str], backend_timeout_ms: int, token: str) -> dict[str, str]:
    """The settings that must change for this backend, name -> value, given its CONFIG GET * and the secret of its feed.

    Values that already do are left alone; so are the output limits of other classes than replicas. What for:
    design-redis.md R7 and R8, research notes on replica mode.
    """
    busy_ms = max(1, min(BUSY_MS_MAX, backend_timeout_ms // 2))
    exact = {
        "repl-backlog-ttl": "0",  # the backlog outlives a gap between two attachments
        "repl-diskless-sync": "yes",
        "repl-diskless-sync-delay": "0",  # otherwise an attachment waits 5 s
        "repl-diskless-load": "disabled",  # keep the old data until the new has come whole
        "repl-ping-replica-period": str(PING_PERIOD_S),
        "replica-read-only": "yes",  # a follower's data changes through the log alone
        "replica-serve-stale-data": "yes",
        "replica-ignore-maxmemory": "yes",  # evictions come as effects
        "min-replicas-to-write": "0",
        "timeout": "0",  # the sidecar's links may be idle
        "masteruser": "",
        "masterauth": token,  # by which the sidecar knows that it is its own backend that asks for its feed
    }
    wanted = {name: value for name, value in exact.items() if current.get(name) != value}
    if int(current.get("repl-backlog-size", "0")) < BACKLOG_BYTES_MIN:
        wanted["repl-backlog-size"] = str(BACKLOG_BYTES_MIN)
    if int(current.get("repl-timeout", "0")) < REPL_TIMEOUT_S_MIN:
        wanted["repl-timeout"] = str(REPL_TIMEOUT_S_MIN)
    if not 0 < int(current.get("busy-reply-threshold", "0")) <= busy_ms:
        wanted["busy-reply-threshold"] = str(busy_ms)  # -BUSY says "alive" before the time-out says "hung"
    if current.get("replica-ignore-disk-write-errors") == "no":  # else a follower whose disk is full ends at a write
        wanted["replica-ignore-disk-write-errors"] = "yes"
    limits = current.get("client-output-buffer-limit", "").split()
    classes = {limits[i]: limits[i + 1 : i + 4] for i in range(0, len(limits), 4)}
    if (classes.get("slave") or classes.get("replica")) != ["0", "0", "0"]:
        wanted["client-output-buffer-limit"] = "replica 0 0 0"
    return wanted


def prepare(
    address: Address,
    *,
    token: str,
    backend_timeout_ms: int,
    joining: bool = False,
    rejoins: bool = False,
    follows: bool = False,
    replace_data: bool = False,
    replace_line: str = "",
) -> Prepared:
    """Check a backend and set it up.

    token: secret that this backend will present when it asks the sidecar for its feed. joining: this node does not
    bring the cluster's data; if its backend holds keys or functions it is refused (HoldsData) unless `replace_data`;
    `replace_line` is what to type then. rejoins: into a cluster that runs; what a former life of this node has left in
    the backend (it has the same token) is then the cluster's, and not refused. follows: the backend was this sidecar's
    before, and stays its replica if it is one still. BackendError with the reason for
    everything else that does not fit.
    """
    with Connection(address) as connection:
        try:
            if rejoins and connection.config().get("masterauth") == token:
                replace_data = True
            must_be_empty = joining and not replace_data
            return _prepare(connection, token, backend_timeout_ms, joining, follows, must_be_empty, replace_line)
        except ReplyError as error:
            raise BackendError(_explain(address, error)) from None


def knows(address: Address, token: str) -> bool:
    """Was this Redis prepared with that token, and has run since? BackendError."""
    with Connection(address) as connection:
        return connection.config().get("masterauth") == token


def forget(address: Address, token: str) -> None:
    """What `prepare()` did to tell it is undone: somebody else's data is then not taken for the cluster's."""
    if knows(address, token):
        with Connection(address) as connection:
            connection.call("CONFIG", "SET", "masterauth", "")


def _prepare(
    connection: Connection,
    token: str,
    backend_timeout_ms: int,
    joining: bool,
    follows: bool,
    must_be_empty: bool,
    replace_line: str,
) -> Prepared:
    address = connection.address
    server = connection.info("server")
    _check_version(address, server)
    stays = follows and connection.call("ROLE")[0] == b"slave" and connection.config().get("masterauth") == token
    left_over = not stays and _check_role(connection, joining)
    keys, functions = count_keys(connection), count_functions(connection)
    if must_be_empty and (keys or functions):
        raise HoldsData(
            f"the Redis of this node ({address}) already holds {_held(keys, functions)}, which joining the cluster"
            f" would replace by the cluster's data; if that is wanted: {replace_line or '--replace-data'}"
        )
    if left_over:
        connection.call("REPLICAOF", "NO", "ONE")
    settings = connection.config()
    wanted = wanted_settings(settings, backend_timeout_ms, token)
    if wanted:
        connection.call("CONFIG", "SET", *(word for pair in wanted.items() for word in pair))
    return Prepared(
        version=server["redis_version"],
        databases=int(settings.get("databases", "16")),
        keys=keys,
        functions=functions,
        password_needed=_password_needed(address),
        bulk_bytes_max=int(settings.get("proto-max-bulk-len", str(512 << 20))),
        pid=int(server["process_id"]),
        commands=connection.call("COMMAND"),
        changed={name: value if name != "masterauth" else "(a token)" for name, value in wanted.items()},
    )


def mode_of(server: Mapping[str, str]) -> str | None:
    """What INFO server says it runs as: standalone, cluster, sentinel. Valkey has another name for it."""
    return server.get("redis_mode", server.get("server_mode"))


def _check_version(address: Address, server: dict[str, str]) -> None:
    text = server.get("redis_version", "")
    try:
        version = tuple(int(part) for part in text.split(".")[:2])
    except ValueError:
        version = ()
    if version < VERSION_MIN:
        needed = ".".join(map(str, VERSION_MIN))
        raise BackendError(f"Redis at {address} is version {text or 'unknown'}; {needed} or newer is needed")
    if mode_of(server) != "standalone":
        raise BackendError(
            f"Redis at {address} runs in {mode_of(server)} mode; only a standalone one can be used"
        )


def _check_role(connection: Connection, joining: bool) -> bool:
    """BackendError unless it is a master without replicas, or (True) a replica that a dead sidecar left here."""
    address, role = connection.address, connection.call("ROLE")
    if role[0] == b"slave" and _was_fed(connection, role):
        if joining:
            return True
        raise BackendError(
            f"Redis at {address} followed a cluster that has ended, and may lack its last writes; if the new cluster is"
            f" to start with this data, type REPLICAOF NO ONE in it"
        )
    if role[0] != b"master":
        master = f" of {role[1].decode()}:{role[2]}" if role[0] == b"slave" else ""
        raise BackendError(
            f"Redis at {address} is a {'replica' if master else role[0].decode()}{master}: use its master, or type"
            f" REPLICAOF NO ONE in it"
        )
    replication = connection.info("replication")  # unlike ROLE it names those that are only being filled, too
    if int(replication.get("connected_slaves", "0")):
        lines = (line for name, line in replication.items() if re.fullmatch(r"slave\d+", name))
        fields = (dict(part.split("=", 1) for part in line.split(",")) for line in lines)
        others = ", ".join(f"{each['ip']}:{each['port']}" for each in fields) or "not yet named"
        raise BackendError(
            f"Redis at {address} already has replicas ({others}): detach them, the sidecars replicate it"
        )
    return False


def _was_fed(connection: Connection, role: list[Any]) -> bool:
    """Is it a replica of a sidecar that is gone? Its feed came from this host, with a token, and comes no more."""
    _, host, _, state, _ = role
    token = connection.config().get("masterauth", "")
    return (
        host == b"127.0.0.1"
        and state in (b"connect", b"connecting")
        and re.fullmatch("[0-9a-f]{64}", token) is not None
    )


def count_keys(connection: Connection) -> int:
    """Keys in all databases."""
    fields = connection.info("keyspace").values()
    return sum(int(field.split(",")[0].removeprefix("keys=")) for field in fields)


def count_functions(connection: Connection) -> int:
    """Function libraries."""
    return len(connection.call("FUNCTION", "LIST"))


def _held(keys: int, functions: int) -> str:
    parts = [(keys, "key", "keys"), (functions, "function library", "function libraries")]
    return " and ".join(f"{count} {one if count == 1 else many}" for count, one, many in parts if count)


def _password_needed(address: Address) -> bool:
    with Connection(address, login=False) as connection:
        try:
            connection.call("PING")
        except ReplyError as error:
            if error.code in ("NOAUTH", "NOPERM"):
                return error.code == "NOAUTH"
            raise
    return False


def would_refuse(address: Address) -> str | None:
    """Why the Redis there would refuse writes if it led; None if it would not."""
    try:
        with Connection(address, REFUSES_S) as connection:
            memory, disk = connection.info("memory"), connection.info("persistence")
            settings = connection.config()
    except BackendError as error:
        return str(error)
    limit = int(memory.get("maxmemory", "0"))
    used = int(memory.get("used_memory", "0")) - int(memory.get("mem_not_counted_for_evict", "0"))
    if limit and used >= limit and memory.get("maxmemory_policy") == "noeviction":
        return f"it uses {used} bytes, maxmemory is {limit}"
    saves = settings.get("save") and settings.get("stop-writes-on-bgsave-error") == "yes"
    if saves and disk.get("rdb_last_bgsave_status", "ok") != "ok":
        return "its last BGSAVE failed"
    if disk.get("aof_enabled") == "1" and disk.get("aof_last_write_status", "ok") != "ok":
        return "it cannot write its AOF"
    return None
