"""The log of a running (or dead) node as it stands in its memory, read from outside: through /proc/PID/fd, read only,
by the same validation as the nodes' own. What a rule says about records is looked up here and not inferred.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from musidecar._ffi import ffi, lib
from musidecar.config import load as load_config
from musidecar.engine import replica_config, replica_salt
from musidecar.secret import load as load_secret
from musidecar.testbed import NodeStatus, Testbed

COMMAND, EFFECT, NOOP, CONFIG, ADMIN = (
    lib.RECORD_COMMAND,
    lib.RECORD_EFFECT,
    lib.RECORD_NOOP,
    lib.RECORD_CONFIG,
    lib.RECORD_ADMIN,
)
ENTRY = struct.Struct("<IHBBIIIIQQII")  # struct command_entry
HEAD = struct.Struct("<QQQQQ")  # struct effect_head
EPOCH, SCRIPT, SCRIPT_FLUSH, RERUN, PAUSE = 1, 2, 3, 4, 5  # enum admin_record


class Point(NamedTuple):
    """Between two records: the index before, where the next one starts, the running hash. The same at all nodes."""

    index: int
    position: int
    hash: int


START = Point(0, 0, 0)


@dataclass(frozen=True)
class Record:
    """One record; `payload` of one that came in pieces stands in its last piece, `pieces` says how many they were."""

    index: int
    kind: int
    term: int
    more: bool
    payload: bytes
    pieces: int = 1


@dataclass(frozen=True)
class Command:
    """One request in a COMMAND record. `node` counts from 0."""

    index: int
    database: int
    protocol: int
    node: int
    client: tuple[int, int]
    sequence: int
    replies: int
    raw: bytes


@dataclass(frozen=True)
class Effect:
    index: int
    epoch: int
    start: int
    end: int
    covered: int
    stream: bytes


@dataclass(frozen=True)
class Epoch:
    index: int
    epoch: int
    start: int
    replid: str


class LogView:
    """A cursor on one node's log, from its start or `after` some point. `read()` goes on from where it was, as far as
    records validate: also such as are not committed. It must not fall a whole ring behind."""

    def __init__(self, bed: Testbed, node: NodeStatus, after: Point = START) -> None:
        config = load_config(bed.dir / "cluster.toml")
        secret = load_secret(config.secret_file)
        settings = replica_config(config, int(node.id), secret)
        self._salt = replica_salt(secret, config.name)
        self._ring = int(settings.ring_bytes)
        largest = int(lib.record_span(settings.piece_bytes_max))
        self._room = self._ring + largest
        self._round = self._ring // largest  # there are at least so many records in it
        self._fd = _open_region(node, "log")
        self._progress_fd = _open_region(node, "background")
        self._map = mmap.mmap(self._fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        self._bytes: Any = ffi.from_buffer("uint8_t[]", self._map)
        self._index, self._position, self._hash = after
        self._open: dict[int, list[bytes]] = {}  # pieces so far, by kind
        self.seen: list[Record] = []

    def close(self) -> None:
        ffi.release(self._bytes)
        self._map.close()
        os.close(self._fd)
        os.close(self._progress_fd)

    def __enter__(self) -> LogView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _slot(self) -> Any:
        offset = self._position % self._ring
        return ffi.cast("struct record_header *", self._bytes + lib.REPLICA_RING_OFFSET + offset)

    def more(self) -> bool:
        """There is another valid record behind those read. AssertionError when the ring went on without this view; what
        a deposed leader left there has an index that is nearer."""
        room, slot = self._room - self._position % self._ring, self._slot()
        valid = bool(lib.record_valid(slot, room, self._index + 1, self._hash, self._salt))
        index = slot.index
        lapped = not valid and index > self._index + self._round and lib.record_whole(slot, room, index, self._salt)
        assert not lapped, f"record {index} stands where {self._index + 1} was"
        return valid

    def begun(self) -> bool:
        """Behind the records read stands the header of the next one, though it is not valid: torn, or being written."""
        slot = self._slot()
        return bool(slot.index == self._index + 1 and slot.prev_hash == self._hash) and not self.more()

    def read(self) -> list[Record]:
        """The new records. AssertionError when the ring went round without this view."""
        behind = _progress(self._progress_fd).position - self._position
        assert behind < self._ring, f"the view is {behind} bytes behind, more than the ring has"
        before = len(self.seen)
        while self.more():
            header = self._slot()
            payload = bytes(ffi.buffer(lib.record_payload(header), header.length))
            self._hash = lib.record_hash(header)
            self._index, self._position = header.index, self._position + lib.record_span(header.length)
            if header.kind == NOOP:
                self._open.clear()  # it voids unfinished pieces
            pieces = self._open.setdefault(header.kind, [])
            pieces.append(payload)
            more = bool(header.flags & lib.RECORD_MORE)
            whole = b"" if more else b"".join(pieces)
            self.seen.append(Record(header.index, header.kind, header.ballot >> 8, more, whole, len(pieces)))
            if not more:
                del self._open[header.kind]
        return self.seen[before:]

    # ---- what stands in them ----

    def commands(self) -> list[Command]:
        """All requests in COMMAND records that are whole."""
        self.read()
        return [c for record in self.seen if record.kind == COMMAND and not record.more for c in _commands(record)]

    def effects(self) -> list[Effect]:
        self.read()
        found = []
        for record in self.seen:
            if record.kind == EFFECT and not record.more:
                epoch, start, end, covered, _ = HEAD.unpack_from(record.payload)
                stream = record.payload[HEAD.size : HEAD.size + end - start]
                found.append(Effect(record.index, epoch, start, end, covered, stream))
        return found

    def _admin(self, kind: int) -> list[Record]:
        self.read()
        return [r for r in self.seen if r.kind == ADMIN and struct.unpack_from("<I", r.payload)[0] == kind]

    def epochs(self) -> list[Epoch]:
        found = []
        for record in self._admin(EPOCH):
            _, _, epoch, start = struct.unpack_from("<IIQQ", record.payload)
            found.append(Epoch(record.index, epoch, start, record.payload[24:].decode()))
        return found

    def scripts(self) -> list[bytes]:
        return [record.payload[8:] for record in self._admin(SCRIPT)]

    def pauses(self) -> list[bool]:
        """Of each record that pauses or resumes automatic fail-over: whether it pauses it."""
        return [struct.unpack_from("<II", record.payload)[1] != 0 for record in self._admin(PAUSE)]

    def reruns(self) -> list[tuple[int, list[int]]]:
        """(index of the record, indexes that it names) of what each take-over ran again; empty sets are not logged."""
        return [
            (record.index, [n for (n,) in struct.iter_unpack("<Q", record.payload[8:])])
            for record in self._admin(RERUN)
        ]


def _commands(record: Record) -> Iterator[Command]:
    at = 0
    while at < len(record.payload):
        entry = ENTRY.unpack_from(record.payload, at)
        length, database, protocol, _, replies, _, node, slot, _, sequence, generation, _ = entry
        at += ENTRY.size
        raw = record.payload[at : at + length]
        assert len(raw) == length
        yield Command(record.index, database, protocol, node, (slot, generation), sequence, replies, raw)
        at += length


def committed_point(node: NodeStatus) -> Point:
    """How far the node knew its log to be decided when it last said so (struct replica_progress)."""
    fd = _open_region(node, "background")
    try:
        return _progress(fd)
    finally:
        os.close(fd)


def permission_requests(node: NodeStatus) -> bytes:
    """What the others have last asked of the node (struct replica_request of each): another one, other bytes."""
    fd = _open_region(node, "background")
    try:
        length = lib.FABRIC_NODES_MAX * ffi.sizeof("struct replica_request")
        return os.pread(fd, length, ffi.offsetof("struct replica_background", "requests"))
    finally:
        os.close(fd)


def _progress(fd: int) -> Point:
    before = b""
    while (now := os.pread(fd, 24, ffi.offsetof("struct replica_background", "progress"))) != before:
        before = now  # it is being written, word by word
    return Point(*struct.unpack("<QQQ", now))


def _open_region(node: NodeStatus, region: str) -> int:
    name = f"musidecar-{region}-{int(node.id) - 1} "
    for entry in Path(f"/proc/{node.pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            if name in os.readlink(entry):
                return os.open(entry, os.O_RDONLY)
    raise AssertionError(f"node {node.id} holds no {region}")


def requests_in(stream: bytes) -> list[tuple[bytes, ...]]:
    """The commands of a replication stream, every one whole. AssertionError where they are not."""
    found, at = [], 0
    while at < len(stream):
        if stream[at : at + 1] == b"\n":  # a keep-alive
            at += 1
            continue
        assert stream[at : at + 1] == b"*", stream[at : at + 40]
        end = stream.index(b"\r\n", at)
        words, count = [], int(stream[at + 1 : end])
        at = end + 2
        for _ in range(count):
            assert stream[at : at + 1] == b"$", "a command is cut"
            end = stream.index(b"\r\n", at)
            length = int(stream[at + 1 : end])
            word = stream[end + 2 : end + 2 + length]
            at = end + 2 + length + 2
            assert stream[at - 2 : at] == b"\r\n", "a command is cut"
            words.append(word)
        found.append(tuple(words))
    return found
