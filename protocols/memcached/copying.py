"""All items of one memcached on their way to another.

The copy is fuzzy: taken while writes go on, and made whole by the log. Every record of the log is unconditional (a set
with an absolute time, a delete, a touch, a flush), so whoever has the copy is given all records from the one on at
which the copy began, those included that some items show already. At the record that the giver had last been given when
the copy ended, both hold the same.

`lru_crawler metadump hash` lists the keys with their absolute expiry (of the LRU lists some would be missed that move
meanwhile), `mg` fetches the items, many at a time. To ask for a stale item takes the token of who may recache it, so it
is marked stale again, if it is still the same. What travels is a record for each item, values in pieces:

    length of key (1 byte), bits (1), client flags (4), length of value (4), expiry (8, signed; 0: never), key, value
"""

from __future__ import annotations

import base64
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes

from musidecar.protocols.backend import PIECE_BYTES, Point, Points, wait_point
from musidecar.protocols.server import Address, BackendError

from .connection import Connection

HEAD = struct.Struct("!BBIIq")
BINARY, STALE, SENT = 1, 2, 4  # bits: stored under a base64 key; marked stale; somebody has the token to recache it
KEY_BYTES_MAX = 250
VALUE_BYTES_MAX = 1 << 30
BATCH_ITEMS, BATCH_BYTES = 500, 1 << 20
LAST_S = 2**31 - 2  # later than any item ends
SILENCE_S = 30.0


class Dump:
    """The items of the memcached at `address`. Made when the copy begins; iterate `chunks()` once."""

    def __init__(self, address: Address, at_least: int, wait_s: float, points: Points, home: Path) -> None:
        self._address, self._points, self._home = address, points, home
        self._began = wait_point(points, at_least, wait_s, "memcached")
        self._ended: Point | None = None
        self._lister = Connection(address, SILENCE_S)
        try:
            self._asker = Connection(address, SILENCE_S)
        except BaseException:
            self._lister.close()
            raise
        self.items = 0

    @property
    def head(self) -> dict[str, Any]:
        items = int(self._asker.stats("settings")["item_size_max"])
        return {"offset": self._began.done, "due_s": self._points().due_s, "item_bytes_max": items}

    def foot(self) -> dict[str, Any]:
        return {"given": self._ended.given if self._ended else None, "items": self.items}

    def chunks(self) -> Iterator[bytes]:
        """In pieces of 64 KiB or so."""
        out = bytearray()
        with self._listed() as keys:
            for batch in _batches(keys):
                for piece in self._fetch(batch):
                    out += piece
                    while len(out) >= PIECE_BYTES:
                        yield bytes(out[:PIECE_BYTES])
                        del out[:PIECE_BYTES]
        if out:
            yield bytes(out)
        self._ended = self._points()
        if self._ended.life != self._began.life:
            raise BackendError("its memcached did not hold the data all the time")

    def _listed(self) -> IO[bytes]:
        """All keys, in a file: the crawler gives up on who reads it as slowly as a network takes items."""
        keys = tempfile.TemporaryFile(dir=self._home)  # noqa: SIM115 - the caller closes it
        try:
            for line in self._lister.listing(SILENCE_S):
                keys.write(line + b"\n")
            keys.seek(0)
        except BaseException:
            keys.close()
            raise
        return keys

    def _fetch(self, batch: list[tuple[bytes, int]]) -> Iterator[bytes]:
        """The records of those that are still there."""
        names = [_name(key) for key, _ in batch]
        asks = b"".join(b"mg %b k f c s v u q O%d\r\n" % (name, i) for i, name in enumerate(names))
        asker = self._asker
        asker.send(asks + b"mn\r\n")
        stolen: list[tuple[bytes, bytes]] = []
        while (line := asker.line()) != b"MN":
            words = line.split(b" ")
            found = {word[:1]: word[1:] for word in words[2:]}
            try:
                if words[0] != b"VA":
                    raise ValueError
                length, number, flags = int(words[1]), int(found[b"O"]), int(found[b"f"])
                key, expires = batch[number]
            except (ValueError, KeyError, IndexError):
                raise BackendError(f"memcached at {self._address} answered mg with {line[:80]!r}") from None
            bits = (BINARY * (b"b" in found)) | (STALE * (b"X" in found)) | (SENT * (b"Z" in found))
            if b"W" in found:
                stolen.append((names[number], found[b"c"]))
            yield HEAD.pack(len(key), bits, flags, length, expires) + key
            yield from asker.value(length)
            self.items += 1
        for name, cas in stolen:
            asker.ask(b"md %b C%b I" % (name, cas))  # EX, NF: it has changed since, and the log tells how

    def close(self) -> None:
        self._lister.close()
        self._asker.close()


def _name(key: bytes) -> bytes:
    """As a meta command names it. The longest keys have no room to be spelled in base64."""
    return base64.b64encode(key) + b" b" if _is_binary(key) else key


def _is_binary(key: bytes) -> bool:
    """Can no command name it plainly?"""
    return any(byte in key for byte in (b" ", b"\n", b"\0"))


def _batches(lines: IO[bytes]) -> Iterator[list[tuple[bytes, int]]]:
    """(key, expiry), so many that their values are no more than BATCH_BYTES, or one."""
    batch: list[tuple[bytes, int]] = []
    bytes_ = 0
    for line in lines:
        try:
            fields = dict(word.split(b"=", 1) for word in line.split())
            key, expires, size = unquote_to_bytes(fields[b"key"]), int(fields[b"exp"]), int(fields[b"size"])
        except (ValueError, KeyError):
            raise BackendError(f"memcached listed its items with {line[:80]!r}") from None
        if batch and (len(batch) == BATCH_ITEMS or bytes_ + size > BATCH_BYTES):
            yield batch
            batch, bytes_ = [], 0
        batch.append((key, max(expires, 0)))
        bytes_ += size
    if batch:
        yield batch


def load(address: Address, copy: IO[bytes], cancelled: Callable[[], bool]) -> int:
    """Empty the memcached at `address` and store the items of a copy; how many. BackendError when it does not hold them
    all.

    Given up between two batches when `cancelled` says so.
    """
    count = 0
    with Connection(address, SILENCE_S) as connection:
        connection.ask(b"flush_all")
        out = bytearray()
        pending = 0
        while head := copy.read(HEAD.size):
            out += _stored(head, copy)
            count, pending = count + 1, pending + 1
            if pending == BATCH_ITEMS or len(out) >= BATCH_BYTES:
                _give(connection, out)
                pending = 0
                if cancelled():
                    return count
        _give(connection, out)
    return count


def _stored(head: bytes, copy: IO[bytes]) -> bytes:
    """The commands that store one item, of which only errors and hits are answered. The token to recache one that was
    sent to somebody is taken here, and goes to nobody."""
    try:
        key_length, bits, flags, length, expires = HEAD.unpack(head)
    except struct.error:
        raise BackendError("the copy ends within an item") from None
    if not 0 < key_length <= KEY_BYTES_MAX or length > VALUE_BYTES_MAX:
        raise BackendError(f"the copy has an item with a key of {key_length} and a value of {length} bytes")
    key, value = _exactly(copy, key_length), _exactly(copy, length)
    name = base64.b64encode(key) + b" b" if bits & BINARY else key
    if not bits & BINARY and _is_binary(key):
        raise BackendError(f"the copy has the key {key[:40]!r}, which no text command can have stored")
    word, _, binary = name.partition(b" ")
    tail = b" " + binary if binary else b""
    sent = bits & SENT and not bits & STALE
    commands = b"ms %b %d%b F%d T%d q\r\n%b\r\n" % (word, length, tail, flags, LAST_S if sent else expires, value)
    if bits & STALE:
        commands += b"md %b%b I q\r\n" % (word, tail)
        if bits & SENT:
            commands += b"mg %b%b q\r\n" % (word, tail)
    elif sent:  # only of an item that ends before R does the token go to who asks
        commands += b"mg %b%b R%d q\r\nmg %b%b T%d q\r\n" % (word, tail, LAST_S + 1, word, tail, expires)
    return commands


def _exactly(copy: IO[bytes], count: int) -> bytes:
    data = copy.read(count)
    if len(data) != count:
        raise BackendError("the copy ends within an item")
    return data


def _give(connection: Connection, out: bytearray) -> None:
    connection.send(bytes(out) + b"mn\r\n")
    out.clear()
    while (line := connection.line()) != b"MN":
        if not line.startswith(b"HD"):  # of mg: a hit
            text = line[:80].decode(errors="replace")
            raise BackendError(f"memcached at {connection.address} does not take the data: {text}")
