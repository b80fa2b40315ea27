"""The cluster's configuration: one TOML file, the same for every node, read into checked settings.

`configs/cluster.toml` is the commented reference. Errors name the file, the key and the reason, all at once:
`cluster.toml: nodes[1].client: not host:port: 'localhost'`. Unknown keys are refused. Node ids are 1..n here
and towards users; inside C they are 0..n-1 (`Node.index`). Relative paths count from the folder of the file.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from musidecar import protocols
from musidecar.protocols.memcached import MEMORY_BYTES

SOCKET_PATH_BYTES_MAX = 107  # sun_path less its NUL
MESH_NAME_BYTES_MAX = 32  # longest name of a socket inside `directory`
NODE_COUNTS = (3, 5)

_UNITS = {"": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


class ConfigError(Exception):
    """The configuration cannot be used. `problems`: one line each, with file, key and reason."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+)\s*([KMG]i?B)?\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError('not a size: write bytes, or a text like "64 MiB"')
    return int(match[1]) * _UNITS[(match[2] or "").upper()]


def _path(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str) or not value:
        raise ValueError("not a path")
    base = (info.context or {}).get("base", Path.cwd())
    return Path(base, Path(value).expanduser())


def split_address(text: object) -> tuple[str, int]:
    """`"127.0.0.1:7000"` or `"[::1]:7000"` as (host, port). ValueError when it is neither."""
    shape = r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:\[\]]+)):(\d{1,5})"
    match = re.fullmatch(shape, text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"not host:port: {text!r}")
    if not 1 <= int(match[3]) <= 65535:
        raise ValueError(f"port {match[3]} is not in 1..65535")
    return match[1] or match[2], int(match[3])


def _address(value: object) -> object:
    split_address(value)
    return value


Address = Annotated[str, BeforeValidator(_address)]
FilePath = Annotated[Path, BeforeValidator(_path)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(strict=True, ge=1)]
Us = Annotated[int, Field(strict=True, ge=1, le=600_000_000)]
UsOrNone = Annotated[int, Field(strict=True, ge=0, le=600_000_000)]
Ms = Annotated[int, Field(strict=True, ge=1, le=600_000)]
Reads = Literal["linearizable", "local"]
NodeId = Annotated[int, Field(strict=True, ge=1, le=max(NODE_COUNTS))]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _socket_fits(path: Path, room: int = 0) -> None:
    spare = SOCKET_PATH_BYTES_MAX - room - len(os.fsencode(path))
    if spare < 0:
        raise ValueError(f"too long for a Unix socket by {-spare} bytes: {path}")


def _symbol(value: str) -> str:
    if not re.fullmatch(r"[!-+\--~]{1,64}", value):
        raise ValueError("1 to 64 printable characters, without blank or comma")
    return value


Symbol = Annotated[str, AfterValidator(_symbol)]


def _port(value: object) -> object:
    """A port is one of loopback."""
    address = f"127.0.0.1:{value}" if isinstance(value, int) and not isinstance(value, bool) else value
    split_address(address)
    return address


def check_kind(value: object) -> None:
    """ValueError unless this version works with that kind of backend."""
    known = protocols.names()
    if value not in known:
        raise ValueError(f"unknown: this version works with {' and '.join(known)}")


class Backend(_Section):
    """The server behind one node: on a Unix socket or a TCP address, started by the sidecar or not."""

    kind: str = "redis"
    socket: FilePath | None = None
    address: Address | None = None
    user: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    password_file: FilePath | None = None
    spawn: Annotated[bool, Field(strict=True)] = False
    binary: Annotated[str, Field(min_length=1)] | None = None
    memory_bytes: Annotated[int, BeforeValidator(_bytes), Field(strict=True, ge=8 << 20)] | None = None
    item_bytes_max: Annotated[int, BeforeValidator(_bytes), Field(strict=True, ge=1 << 19, le=1 << 30)] | None = None
    threads: Annotated[int, Field(strict=True, ge=1, le=64)] | None = None
    consistency: Literal["exact", "cache"] | None = None
    symbols: Annotated[list[Symbol], Field(min_length=1)] | None = None
    fix_port: Annotated[str, BeforeValidator(_port)] | None = None
    fix_name: Annotated[str, Field(pattern=r"^[!-~]{1,64}$")] | None = None
    fix_decimals: Annotated[int, Field(strict=True, ge=0, le=8)] | None = None
    herd_main: FilePath | None = None
    workers: Annotated[int, Field(strict=True, ge=1, le=128)] | None = None
    registry: Annotated[str, Field(pattern=r"^[0-9.]{7,15}$")] | None = None
    port_index: Annotated[int, Field(strict=True, ge=0, le=8)] | None = None
    keys_max: Annotated[int, Field(strict=True, ge=1024, le=1 << 28)] | None = None
    answer_ms: Ms | None = None
    start_ms: Ms | None = None

    @field_validator("kind", mode="before")
    @classmethod
    def _kind_known(cls, value: object) -> object:
        check_kind(value)
        return value

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """(key, reason) for each option that only another kind of backend has."""
        own = protocols.kind(self.kind).options
        for name in protocols.names():
            for key in sorted(protocols.kind(name).options - own):
                if getattr(self, key) is not None:
                    yield key, f"is for kind = {name!r}, and this is {self.kind}"
        if self.spawn and protocols.kind(self.kind).embedded:
            yield "spawn", f"is for a server; kind = {self.kind!r} is a part of your own program"
        if self.kind == "herd" and not self.spawn:
            yield "spawn", "has to be true: HERD is behind a gate that the node starts"
        if self.item_bytes_max is not None and self.item_bytes_max > (self.memory_bytes or MEMORY_BYTES) // 2:
            yield "item_bytes_max", f"{self.item_bytes_max} is more than half of memory_bytes"

    @property
    def program(self) -> str:
        """The server that a node starts."""
        return self.binary or protocols.kind(self.kind).binary

    def options(self) -> dict[str, Any]:
        """What is given of the options that only its kind has."""
        found = {key: getattr(self, key) for key in protocols.kind(self.kind).options}
        return {key: value for key, value in found.items() if value is not None}

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.socket is None) == (self.address is None):
            raise ValueError('give either socket = "/path" or address = "host:port"')
        if self.spawn and self.socket is None:
            raise ValueError("spawn = true needs a socket: a backend started here listens on no port")
        if self.spawn and self.user:
            raise ValueError("user is for a Redis that is already running (spawn = false)")
        for key in ("memory_bytes", "item_bytes_max", "threads"):
            if not self.spawn and getattr(self, key) is not None:
                raise ValueError(f"{key} is for a server that is started here (spawn = true)")
        if self.user and self.password_file is None:
            raise ValueError("user needs a password_file")
        if self.socket is not None:
            _socket_fits(self.socket)
        return self

    @property
    def place(self) -> str:
        """Where it listens, for people: `/path/redis.sock` or `host:port`."""
        return str(self.socket) if self.socket is not None else str(self.address)

    def password(self) -> str | None:
        """The backend's password, from `password_file` (first line). ConfigError when it cannot be read."""
        if self.password_file is None:
            return None
        try:
            text = self.password_file.read_text().split("\n", 1)[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"{self.password_file}: cannot read the password: {error}"]) from None
        if not 0 < len(text.encode()) < 256:
            raise ConfigError([f"{self.password_file}: the first line must be a password of 1..255 bytes"])
        return text


class Verbs(_Section):
    """RDMA: which device, and how long its links wait. configs/cluster.toml says what each does."""

    device: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,63}$")] | None = None
    port: Annotated[int, Field(strict=True, ge=1, le=255)] | None = None
    gid_index: Annotated[int, Field(strict=True, ge=0, le=255)] | None = None
    mtu: Literal[256, 512, 1024, 2048, 4096] | None = None
    timeout: Annotated[int, Field(strict=True, ge=1, le=31)] = 14
    retry_count: Annotated[int, Field(strict=True, ge=0, le=7)] = 7
    huge_pages: Annotated[bool, Field(strict=True)] = False
    always_cycle: Annotated[bool, Field(strict=True)] = False


class Node(_Section):
    """One node: a sidecar and its backend. `log`: where its lines go too, besides standard error. `mesh`: where it
    listens for the other nodes, when they are on other hosts. `joins`: it takes no part in forming a cluster, but joins
    one that runs."""

    id: NodeId
    client: Address
    backend: Backend
    log: FilePath | None = None
    mesh: Address | None = None
    joins: Annotated[bool, Field(strict=True)] = False
    reads: Reads | None = None
    verbs: Verbs | None = None

    @property
    def index(self) -> int:
        """The node's number inside C and on the fabric: 0..n-1."""
        return self.id - 1

    @property
    def client_host(self) -> str:
        return split_address(self.client)[0]

    @property
    def client_port(self) -> int:
        return split_address(self.client)[1]


class Timing(_Section):
    """Every period and time-out, in the unit its name ends with. configs/cluster.toml says what each does."""

    tick_busy_us: Us = 1_000
    tick_idle_us: Us = 5_000
    spin_us: UsOrNone = 100
    suspect_us: Us = 3_000
    fail_us: Us = 150_000
    late_us: Us = 2_000
    request_us: Us = 2_000
    hazard_us: Us = 50
    pin_us: Us = 200_000
    feed_delay_us: Us = 2_000
    stale_ms: Ms = 1_000
    replica_timeout_ms: Ms = 60_000
    backend_timeout_ms: Ms = 5_000
    takeover_timeout_ms: Ms = 3_000
    wait_timeout_ms: Ms = 10_000

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """(key, reason) for each time that contradicts another one."""
        takeover_us = self.takeover_timeout_ms * 1_000
        backend_us = self.backend_timeout_ms * 1_000
        stale_us, delays_us = self.stale_ms * 1_000, self.feed_delay_us + self.tick_idle_us
        for key, holds, reason in (
            ("tick_idle_us", self.tick_idle_us >= self.tick_busy_us, "must be at least tick_busy_us"),
            ("spin_us", self.spin_us < self.tick_busy_us, "must be less than tick_busy_us"),
            ("suspect_us", self.suspect_us >= 2 * self.tick_busy_us, "must be at least twice tick_busy_us"),
            ("late_us", self.late_us <= self.suspect_us, "must be at most suspect_us"),
            ("fail_us", self.fail_us > self.suspect_us, "must be more than suspect_us"),
            ("hazard_us", self.hazard_us < self.suspect_us, "must be less than suspect_us"),
            ("request_us", self.request_us < self.fail_us, "must be less than fail_us"),
            ("request_us", self.request_us > self.hazard_us, "must be more than hazard_us"),
            ("pin_us", self.pin_us >= self.suspect_us, "must be at least suspect_us"),
            ("wait_timeout_ms", self.wait_timeout_ms > self.takeover_timeout_ms, "must exceed takeover_timeout_ms"),
            ("feed_delay_us", self.feed_delay_us < takeover_us, "must be less than takeover_timeout_ms"),
            ("stale_ms", stale_us > delays_us, "must be more than feed_delay_us and tick_idle_us"),
            ("takeover_timeout_ms", takeover_us > self.fail_us, "must be more than fail_us"),
            ("takeover_timeout_ms", takeover_us > 10 * self.request_us, "must be over ten times request_us"),
            ("backend_timeout_ms", backend_us > self.fail_us, "must be more than fail_us"),
            ("backend_timeout_ms", backend_us > self.tick_idle_us, "must be more than tick_idle_us"),
        ):
            if not holds:
                yield f"timing.{key}", f"{getattr(self, key)} {reason}"


class Limits(_Section):
    """Bounds on memory: none of them can be exceeded by anything a client sends."""

    ring_bytes: Bytes = 16 << 20
    piece_bytes_max: Bytes = 128 << 10
    clients_max: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 10_000
    client_input_bytes_max: Bytes = 1 << 30
    client_output_bytes_max: Bytes = 64 << 20
    transfer_bytes_per_s: Bytes = 64 << 20
    pin_bytes_max: Annotated[int, BeforeValidator(_bytes), Field(strict=True, ge=0)] = 0
    feed_bytes_max: Bytes = 1 << 30

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """(key, reason) for each limit that is impossible beside another one."""
        if self.ring_bytes & (self.ring_bytes - 1) or not 1 << 16 <= self.ring_bytes <= 1 << 30:
            yield "limits.ring_bytes", f"{self.ring_bytes} is not a power of two from 64 KiB to 1 GiB"
        if not 1024 <= self.piece_bytes_max <= self.ring_bytes // 8:
            yield "limits.piece_bytes_max", f"{self.piece_bytes_max} is not in 1024..ring_bytes/8"
        if self.pin_bytes_max > self.ring_bytes * 11 // 16:
            yield "limits.pin_bytes_max", f"{self.pin_bytes_max} is more than ring_bytes * 11/16: writes would wait"
        if self.feed_bytes_max < 1 << 20:
            yield "limits.feed_bytes_max", f"{self.feed_bytes_max} is less than 1 MiB"
        if self.transfer_bytes_per_s < 1 << 16:
            yield "limits.transfer_bytes_per_s", f"{self.transfer_bytes_per_s} is less than 64 KiB"
        if self.client_input_bytes_max < 1 << 16:
            yield "limits.client_input_bytes_max", f"{self.client_input_bytes_max} is less than 64 KiB"
        if self.client_output_bytes_max < 1 << 16:
            yield "limits.client_output_bytes_max", f"{self.client_output_bytes_max} is less than 64 KiB"


class Whole(_Section):
    """The `[cluster]` table."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,63}$")]
    secret_file: FilePath
    directory: FilePath
    fabric: Literal["shm", "verbs"] = "shm"
    reads: Reads = "linearizable"
    seed: NodeId | None = None

    @field_validator("directory", mode="after")
    @classmethod
    def _directory_fits(cls, value: Path) -> Path:
        _socket_fits(value, MESH_NAME_BYTES_MAX)
        return value


class Cluster(_Section):
    """Everything the nodes agree on. Read it with `load()`."""

    cluster: Whole
    nodes: list[Node]
    timing: Timing = Timing()
    limits: Limits = Limits()
    verbs: Verbs = Verbs()
    _path: Path | None = PrivateAttr(default=None)

    @property
    def name(self) -> str:
        return self.cluster.name

    @property
    def secret_file(self) -> Path:
        return self.cluster.secret_file

    @property
    def directory(self) -> Path:
        """Private (0700) folder of the mesh sockets: where the nodes of this host meet."""
        return self.cluster.directory

    @property
    def fabric(self) -> str:
        return self.cluster.fabric

    @property
    def kind(self) -> str:
        """What is replicated: the kind of every node's backend."""
        return self.nodes[0].backend.kind

    @property
    def seed(self) -> int:
        """Id of the node whose data the cluster starts with."""
        return self.cluster.seed if self.cluster.seed is not None else (*self.founders, self.nodes[0].id)[0]

    @property
    def founders(self) -> tuple[int, ...]:
        """Ids of the nodes that form the cluster; the others join it."""
        return tuple(node.id for node in self.nodes if not node.joins)

    @property
    def path(self) -> Path | None:
        """The file it was read from."""
        return self._path

    def node(self, node_id: int) -> Node:
        """The node with this id. ConfigError when there is none."""
        for node in self.nodes:
            if node.id == node_id:
                return node
        known = ", ".join(str(node.id) for node in self.nodes)
        raise ConfigError([f"{self._path or 'configuration'}: no node {node_id}: it has {known}"])

    def node_verbs(self, node_id: int) -> Verbs:
        """The RDMA settings of a node: its own, and the cluster's where it has none."""
        own = self.node(node_id).verbs
        return self.verbs.model_copy(update=own.model_dump(exclude_unset=True)) if own is not None else self.verbs

    def reads_locally(self, node: Node) -> bool:
        """May this node's own backend answer clients that ask for it with READONLY?"""
        return (node.reads or self.cluster.reads) == "local"

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """(key, reason) for everything that is right alone and wrong together."""
        count, founders = len(self.nodes), len(self.founders)
        if founders not in NODE_COUNTS or count > max(NODE_COUNTS):
            apart = f" that do not join later ({count} in all)" if count > founders else ""
            yield "nodes", f"{founders} nodes{apart}: a cluster has {' or '.join(map(str, NODE_COUNTS))}"
        elif [node.id for node in self.nodes] != list(range(1, count + 1)):
            yield "nodes", f"ids must be 1 to {count} in this order"
        if self.cluster.seed is not None and self.cluster.seed > count:
            yield "cluster.seed", f"no node {self.cluster.seed}"
        elif founders and self.seed not in self.founders:
            yield "cluster.seed", f"node {self.seed} joins, and brings no data"
        places: list[tuple[str, Callable[[Node], object]]] = [
            ("client", lambda node: node.client),
            ("backend.fix_port", lambda node: node.backend.fix_port),
            ("backend", lambda node: node.backend.place),
            ("log", lambda node: node.log),
            ("mesh", lambda node: node.mesh),
        ]
        for key, place in places:
            seen: dict[object, int] = {}
            for i, node in enumerate(self.nodes):
                first = self.nodes[seen.setdefault(place(node), i)]
                if place(node) is not None and first is not node:
                    yield f"nodes[{i}].{key}", f"{place(node)} is node {first.id}'s already"
        for i, node in enumerate(self.nodes):
            if (other := next((each for each in self.nodes if each.client == node.backend.fix_port), None)) is not None:
                yield f"nodes[{i}].backend.fix_port", f"{node.backend.fix_port} is node {other.id}'s client already"
        with_mesh = [node.id for node in self.nodes if node.mesh is not None]
        if with_mesh and self.fabric == "shm":
            yield f"nodes[{with_mesh[0] - 1}].mesh", 'is for nodes on several hosts: fabric = "verbs"'
        for i, node in enumerate(self.nodes):
            if with_mesh and node.mesh is None:
                yield f"nodes[{i}].mesh", f"is missing: node {with_mesh[0]} has one"
        for i, node in enumerate(self.nodes):
            if node.backend.kind != self.kind:
                yield f"nodes[{i}].backend.kind", f"{node.backend.kind}, and node {self.nodes[0].id}'s is {self.kind}"
            for key, reason in node.backend.conflicts():
                yield f"nodes[{i}].backend.{key}", reason
            if self.reads_locally(node) and node.backend.kind != "redis":
                yield f"nodes[{i}].reads", f"local is for kind = 'redis', and this is {node.backend.kind}"
            for key in ("memory_bytes", "item_bytes_max", "consistency", "symbols", "fix_name", "fix_decimals"):
                if getattr(node.backend, key) != getattr(self.nodes[0].backend, key):
                    yield f"nodes[{i}].backend.{key}", f"differs from node {self.nodes[0].id}'s"
        # A client logs in at the server of the node it is connected to, and then sees everybody's data.
        guarded = next((node for node in self.nodes if node.backend.password_file is not None), None)
        for i, node in enumerate(self.nodes):
            if guarded is not None and node.backend.password_file is None:
                reason = f"is missing: node {guarded.id} has one, and here clients would need none"
                yield f"nodes[{i}].backend.password_file", reason
        yield from self.timing.conflicts()
        yield from self.limits.conflicts()


def load(path: Path | str) -> Cluster:
    """Read and check a configuration file. ConfigError with all problems found."""
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from None
    return parse(data, path)


def parse(data: dict[str, Any], path: Path) -> Cluster:
    """Check what was read from `path`; relative paths count from its folder. ConfigError with all of it."""
    try:
        config = Cluster.model_validate(data, context={"base": path.absolute().parent})
    except ValidationError as error:
        lines = (f"{path}: {_key(item['loc'])}: {_reason(dict(item))}" for item in error.errors())
        raise ConfigError(dict.fromkeys(lines)) from None
    conflicts = [f"{path}: {key}: {reason}" for key, reason in config.conflicts()]
    if conflicts:
        raise ConfigError(conflicts)
    config._path = path.absolute()
    return config


def _key(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "(file)"


def _reason(item: dict[str, Any]) -> str:
    kind, loc, value = item["type"], item["loc"], item["input"]
    if kind == "extra_forbidden":
        fields = _fields_at(loc[:-1])
        near = difflib.get_close_matches(str(loc[-1]), fields, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(fields)}"
        return f"unknown key: {hint}"
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind in ("model_type", "model_attributes_type", "list_type"):
        return "must be a table" if kind != "list_type" else "must be an array of tables: [[nodes]]"
    return f"{item['msg'][0].lower()}{item['msg'][1:]}, not {value!r}"


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    """The keys the table at `loc` may have."""
    model: type[BaseModel] = Cluster
    for part in loc:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            inner = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
            model = next(kind for kind in inner if issubclass(kind, BaseModel))
    return list(model.model_fields)
