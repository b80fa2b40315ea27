"""Are the replicas equal? Compared at equal replication offsets, from outside the data plane, as each
backend's own connection tells it (design-redis.md R19): key names, DUMP, PEXPIRETIME, XINFO STREAM FULL,
functions; and the logs by their running hashes.

DUMP is not canonical: a set or hash in a hash table is written in the table's order, which depends on the
server's random seed; a listpack may be spelled in two ways. So where DUMPs differ the values are compared by
type, and only that counts. What Redis's own replication does not carry is left out: a consumer's `seen-time`
(each server's clock) and a group's `entries-read` and `lag` (XREADGROUP reaches a replica as XCLAIM, which does
not count; seen with 7.0.15), and radix tree counts, which are no data.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import redis

from musidecar.protocols.server import Address
from musidecar.testbed import ClusterStatus, Testbed

_BATCH = 500
_DIFFERENCES_KEPT = 50
_STREAM_OWN = {b"radix-tree-keys", b"radix-tree-nodes", b"seen-time", b"active-time", b"entries-read", b"lag"}


@dataclass
class Comparison:
    """What `compare` found: `differences` is empty when all replicas hold the same data at `offset`."""

    offset: int = -1
    keys: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """No difference was found."""
        return not self.differences

    def add(self, text: str) -> None:
        """Keeps the first differences in words."""
        if len(self.differences) < _DIFFERENCES_KEPT:
            self.differences.append(text)


def call(backend: redis.Redis, *arguments: bytes | str | int) -> Any:
    """One command's reply as it came, without redis-py's interpretation of it. Raises redis.ResponseError."""
    connection: Any = backend.connection_pool.get_connection()
    try:
        connection.send_command(*arguments)
        return connection.read_response()
    finally:
        backend.connection_pool.release(connection)


def replication_offset(backend: redis.Redis) -> int:
    """The offset a Redis has produced (master) or applied (replica), from ROLE."""
    role = call(backend, "ROLE")
    return int(role[1] if role[0] in (b"master", "master") else role[4])


def offsets(backends: Mapping[str, redis.Redis]) -> dict[str, int]:
    """Replication offsets by node id."""
    return {name: replication_offset(backend) for name, backend in backends.items()}


def wait_equal_offsets(backends: Mapping[str, redis.Redis], timeout_s: float) -> dict[str, int]:
    """Waits until all offsets are equal; returns the last seen ones, equal or not."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = offsets(backends)
        if len(set(seen.values())) == 1 or time.monotonic() > deadline:
            return seen
        time.sleep(0.005)


def compare(backends: Mapping[str, redis.Redis], timeout_s: float = 30.0) -> Comparison:
    """Compares all backends (node id -> direct connection) with the first one. The load must have ended.

    A comparison counts when the offsets were equal before and unchanged after it. One that finds a
    difference is done again once the clock has moved on (a key may expire between two readings); a true
    difference stays.
    """
    deadline = time.monotonic() + timeout_s
    found_twice: list[str] = []
    while True:
        before = wait_equal_offsets(backends, max(deadline - time.monotonic(), 0.1))
        result = Comparison(offset=next(iter(before.values())))
        if len(set(before.values())) > 1:
            result.add(f"replication offsets stay unequal: {before}")
            return result
        _compare_data(backends, result)
        stable = offsets(backends) == before
        if stable and (result.equal or result.differences == found_twice):
            return result
        found_twice = result.differences if stable else []
        if time.monotonic() > deadline:
            if not stable:
                result.add(f"the offsets do not come to rest: {before} became {offsets(backends)}")
            return result
        time.sleep(0.05)


def compare_servers(bed: Testbed, status: ClusterStatus, timeout_s: float = 30.0) -> Comparison:
    """compare(), whatever the backend."""
    if bed.backend_name == "redis":
        return compare(bed.backends(status), timeout_s)
    return compare_caches(bed.backend_name, {node.id: node.backend for node in status.alive}, timeout_s)


def compare_caches(kind: str, places: Mapping[str, str], timeout_s: float) -> Comparison:
    """Of a kind that has a `comparing`: the servers on these Unix sockets, by node id. The load must have ended."""
    differences = importlib.import_module(f"musidecar.protocols.{kind}.comparing").differences
    deadline = time.monotonic() + timeout_s
    while True:
        count, found = differences({name: Address(path=path) for name, path in places.items()})
        if not found or time.monotonic() > deadline:  # what was acknowledged last may be on its way to a follower's
            return Comparison(keys=count, differences=found)
        time.sleep(0.05)


def _compare_data(backends: Mapping[str, redis.Redis], result: Comparison) -> None:
    _compare_functions(backends, result)
    databases = sorted({db for b in backends.values() for db in _databases(b)})
    for db in databases:
        for backend in backends.values():
            call(backend, "SELECT", db)
        _compare_database(backends, db, result)
    for backend in backends.values():
        call(backend, "SELECT", 0)


def _databases(backend: redis.Redis) -> list[int]:
    keyspace = backend.info("keyspace")
    return [int(name.removeprefix("db")) for name in keyspace]


def _compare_functions(backends: Mapping[str, redis.Redis], result: Comparison) -> None:
    dumps = {name: call(backend, "FUNCTION", "DUMP") for name, backend in backends.items()}
    if len(set(dumps.values())) == 1:
        return
    lists = {n: sorted(map(repr, call(b, "FUNCTION", "LIST", "WITHCODE"))) for n, b in backends.items()}
    first = next(iter(lists))
    for name, libraries in lists.items():
        if libraries != lists[first]:
            result.add(f"functions of {first} ({len(lists[first])} libraries) and {name} ({len(libraries)}) differ")


def _compare_database(backends: Mapping[str, redis.Redis], db: int, result: Comparison) -> None:
    keys = {name: set(cast("Iterable[bytes]", b.scan_iter(count=2000))) for name, b in backends.items()}
    first = next(iter(backends))
    result.keys += len(keys[first])
    for name in backends:
        for missing, here, there in (
            (keys[first] - keys[name], name, first),
            (keys[name] - keys[first], first, name),
        ):
            if missing:
                result.add(
                    f"db {db}: {here} lacks {len(missing)} keys that {there} has, e.g. {min(missing)!r}"
                )
    common = sorted(set.intersection(*keys.values()))
    for at in range(0, len(common), _BATCH):
        _compare_keys(backends, db, common[at : at + _BATCH], result)


def _compare_keys(
    backends: Mapping[str, redis.Redis], db: int, keys: list[bytes], result: Comparison
) -> None:
    seen = {name: _read(backend, keys) for name, backend in backends.items()}
    first = next(iter(backends))
    for i, key in enumerate(keys):
        kind, dump, expiry, stream = seen[first][i]
        for name in backends:
            other_kind, other_dump, other_expiry, other_stream = seen[name][i]
            what = f"db {db} key {key!r}: {first} and {name} differ in"
            if other_kind != kind:
                result.add(f"{what} type: {kind!r} and {other_kind!r}")
            elif other_expiry != expiry:
                result.add(f"{what} PEXPIRETIME: {expiry!r} and {other_expiry!r}")
            elif other_stream != stream:
                result.add(f"{what} XINFO STREAM FULL: {_first_difference(stream, other_stream)}")
            elif other_dump != dump:
                mine, its = _value(backends[first], kind, key), _value(backends[name], kind, key)
                if mine != its:
                    result.add(f"{what} value ({kind.decode()}): {_first_difference(mine, its)}")


def _read(backend: redis.Redis, keys: list[bytes]) -> list[tuple[bytes, bytes, int, Any]]:
    pipe: Any = backend.pipeline(transaction=False)
    for key in keys:
        pipe.type(key)
        pipe.dump(key)
        pipe.pexpiretime(key)
    answers = pipe.execute()
    rows = []
    for i, key in enumerate(keys):
        kind, dump, expiry = answers[3 * i : 3 * i + 3]
        rows.append((kind, dump, expiry, _stream(backend, key) if kind == b"stream" else None))
    return rows


def _stream(backend: redis.Redis, key: bytes) -> Any:
    try:
        return _canonical(call(backend, "XINFO", "STREAM", key, "FULL", "COUNT", "0"))
    except redis.exceptions.ResponseError as error:
        return str(error)


def _canonical(reply: Any) -> Any:
    """An XINFO reply as nested tuples, without what is each server's own."""
    if not isinstance(reply, list):
        return reply
    if reply and len(reply) % 2 == 0 and all(isinstance(name, bytes) for name in reply[::2]):
        pairs = zip(reply[::2], reply[1::2], strict=True)
        return tuple((name, _canonical(value)) for name, value in pairs if name not in _STREAM_OWN)
    return tuple(_canonical(item) for item in reply)


def _value(backend: redis.Redis, kind: bytes, key: bytes) -> Any:
    """A key's value in a form that is equal exactly when the data is."""
    if kind == b"set":
        return sorted(call(backend, "SMEMBERS", key))
    if kind == b"hash":
        flat = call(backend, "HGETALL", key)
        return sorted(zip(flat[::2], flat[1::2], strict=True))
    if kind == b"zset":
        return call(backend, "ZRANGE", key, "0", "-1", "WITHSCORES")
    if kind == b"list":
        return call(backend, "LRANGE", key, "0", "-1")
    if kind == b"stream":  # its entries; groups and limits were compared by XINFO
        return call(backend, "XRANGE", key, "-", "+")
    if kind == b"string":
        return call(backend, "GET", key)
    return call(backend, "DUMP", key)  # a module's type: nothing better is known


def _first_difference(mine: Any, its: Any) -> str:
    if isinstance(mine, list | tuple) and isinstance(its, list | tuple):
        for i, (a, b) in enumerate(zip(mine, its, strict=False)):
            if a != b:
                return f"{i}: {_first_difference(a, b)}"
        return f"lengths {len(mine)} and {len(its)}"
    return f"{_short(mine)} and {_short(its)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def compare_logs(status: Callable[[], ClusterStatus], timeout_s: float = 20.0) -> list[str]:
    """Waits until all nodes alive know the same commit index, then compares the running hashes of their logs
    there. Returns the differences in words; empty when there are none."""
    deadline = time.monotonic() + timeout_s
    while True:
        alive = status().alive
        points = {n.id: (int(n.more.get("hash_index") or n.commit), n.log_hash) for n in alive}
        if len({index for index, _ in points.values()}) == 1:
            if len({log_hash for _, log_hash in points.values()}) == 1:
                return []
            return [f"log hashes differ at the same index: {points}"]
        if time.monotonic() > deadline:
            return [f"the nodes' logs do not come to the same index: {points}"]
