"""The Redis behind one node: started here or already running, looked at, and set up for replication by a sidecar.

`spawn()` starts one on a Unix socket; `attach()` finds one that runs. `prepare()` checks it (version, role, cluster
mode, keys of a joining node), changes the settings that replication needs (design-redis.md R8; `wanted_settings()`
lists them) and returns what the engine must know about it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from musidecar._ffi import lib

from .admin import Address, BackendError, Connection, ReplyError

VERSION_MIN = (7, 0)
BACKLOG_BYTES_MIN: int = lib.BACKLOG_BYTES_MIN
REPL_TIMEOUT_S_MIN = 60
REPL_TIMEOUT_S = 7200  # of a server started here: clients may set repl-ping-replica-period up to half of it
PING_PERIOD_S = 10
BUSY_MS_MAX = 1000
START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 3.0
POLL_S = 0.01
LOG_TAIL_LINES = 5


class HoldsData(BackendError):
    """A joining node's own backend holds data that joining would replace."""


@dataclass(frozen=True)
class Prepared:
    """What was found in a backend that is ready to be replicated."""

    version: str
    databases: int
    keys: int  # in all databases, expired and not yet deleted ones included
    functions: int  # libraries
    password_needed: bool  # the default user has one (or is off): clients must log in
    bulk_bytes_max: int  # proto-max-bulk-len
    pid: int  # as the server itself tells it
    commands: list[Any]  # reply of COMMAND, for musidecar.protocols.redis.commands
    changed: dict[str, str]  # settings that were changed: name -> new value


# ---- a Redis of the sidecar's own ------------------------------------------------------------------------------------


class Server:
    """A redis-server process started here. It dies with the thread that called `spawn()`: call it from the main one."""

    def __init__(self, process: subprocess.Popen[bytes], address: Address, log: Path) -> None:
        self.process = process
        self.address = address
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def gone(self) -> str | None:
        """How the process ended, in words, or None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End it. It holds nothing that is not in the log of the cluster, so there is nothing to save."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        with contextlib.suppress(OSError):
            os.unlink(self.address.path)


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
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("spawn() from another thread than the main one: the server would die with that thread")
    server, keeper = _programs(binary)
    _remove_leftover(Address(path=str(socket_path), password=password), directory)
    log = directory / "backend.log"
    options = {
        "port": "0", "unixsocket": str(socket_path), "unixsocketperm": "700", "save": "", "appendonly": "no",
        "daemonize": "no", "dir": str(directory), "logfile": str(log),
        "repl-timeout": str(REPL_TIMEOUT_S),
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    log_from = log.stat().st_size if log.exists() else 0
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [keeper, "--pdeathsig", "KILL", "--", server, *words, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=directory,
            start_new_session=True,  # Ctrl-C in a terminal is for the sidecar, which ends its backend itself
        )
    started = Server(process, Address(path=str(socket_path)), log)
    try:
        _wait_answer(started, log_from, timeout_s)
        if password:  # not on the command line, where everybody could read it
            with Connection(started.address) as connection:
                connection.call("CONFIG", "SET", "requirepass", password)
            started.address = replace(started.address, password=password)
    except BaseException:
        started.stop()
        raise
    return started


def _programs(binary: str) -> tuple[str, str]:
    server, keeper = shutil.which(binary), shutil.which("setpriv")
    if server is None:
        raise BackendError(
            f"no {binary} on PATH: install it (Debian: apt install redis-server), or name it as `binary`"
        )
    if keeper is None:
        raise BackendError("no setpriv on PATH: install util-linux; it makes a backend die with its sidecar")
    return server, keeper


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


def _wait_answer(server: Server, log_from: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        if (how := server.gone()) is not None:
            raise BackendError(f"redis-server ended at its start ({how}): {log_tail(server.log, log_from)}")
        try:
            with Connection(server.address, 1.0) as connection:
                if connection.call("PING") == b"PONG":
                    return
        except BackendError as error:
            if time.monotonic() >= deadline:
                raise BackendError(
                    f"redis-server does not answer after {timeout_s:g} s ({error}): {log_tail(server.log, log_from)}"
                ) from None
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(POLL_S)


def log_tail(log: Path, start: int = 0, lines: int = LOG_TAIL_LINES) -> str:
    """The last lines of a backend's log, from byte `start` on, in one line."""
    try:
        with open(log, "rb") as file:
            file.seek(start)
            text = file.read(1 << 20).decode(errors="replace")
    except OSError as error:
        return f"(no log: {error.strerror})"
    tail = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
    return " | ".join(tail) or "(its log is empty)"


# ---- a Redis already running -----------------------------------------------------------------------------------------


def attach(address: Address, timeout_s: float = 5.0) -> int:
    """Check that a Redis answers at `address` with the given login; its process id as it tells it itself."""
    with Connection(address, timeout_s) as connection:
        return int(_info(connection, "server")["process_id"])


def local_pid(address: Address, told: int) -> int | None:
    """The server's process on this host, as this process numbers it; None when it is elsewhere or cannot be told.

    told: the number it goes by itself, which is another one when it runs in a pid namespace of its own.
    """
    if address.path:
        try:
            with address.connect(1.0) as sock:
                pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        except OSError:
            return None
        return pid or None
    if address.host not in ("localhost", "127.0.0.1", "::1"):
        return None
    try:
        name = Path(f"/proc/{told}/comm").read_text()
    except OSError:
        return None
    return told if name.startswith(("redis", "valkey")) else None


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
