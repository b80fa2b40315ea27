"""Do several memcached hold the same? Keys, values, client flags, expiry, the stale mark; CAS numbers are each server's
own, as is who was given the token to recache an item."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from musidecar.protocols.backend import Point
from musidecar.protocols.server import Address

from .copying import BINARY, HEAD, STALE, Dump

ABOUT_TO_END_S = 2  # an item that ends this soon may be gone at one node and not yet at another
_DIFFERENCES_KEPT = 50


@dataclass(frozen=True)
class Item:
    """What a key holds. expires: Unix time; 0: never."""

    flags: int
    expires: int
    length: int
    digest: bytes
    bits: int


def contents(address: Address) -> dict[bytes, Item]:
    """All that it holds. BackendError."""
    dump = Dump(address, 0, 0.0, lambda: Point(1, 0, 0), Path(tempfile.gettempdir()))
    found = {}
    with tempfile.TemporaryFile() as file:
        try:
            for piece in dump.chunks():
                file.write(piece)
        finally:
            dump.close()
        file.seek(0)
        while head := file.read(HEAD.size):
            key_length, bits, flags, length, expires = HEAD.unpack(head)
            key = file.read(key_length)
            digest = hashlib.sha256(file.read(length)).digest()
            found[key] = Item(flags, expires, length, digest, bits & (BINARY | STALE))
    return found


def differences(addresses: Mapping[str, Address]) -> tuple[int, list[str]]:
    """How many keys the first of them holds, and what the others have otherwise, in words. Nothing may be written
    meanwhile."""
    held = {name: contents(address) for name, address in addresses.items()}
    until = time.time() + ABOUT_TO_END_S
    lasting = {
        name: {key: item for key, item in items.items() if not 0 < item.expires <= until}
        for name, items in held.items()
    }
    first, *others = lasting
    found = []
    for name in others:
        mine, its = lasting[first], lasting[name]
        for missing, here, there in ((mine.keys() - its.keys(), name, first), (its.keys() - mine.keys(), first, name)):
            if missing:
                found.append(f"{here} lacks {len(missing)} keys that {there} has, e.g. {min(missing)!r}")
        for key in sorted(mine.keys() & its.keys()):
            if mine[key] != its[key]:
                found.append(f"key {key!r}: {first} has {_tell(mine[key])}, {name} {_tell(its[key])}")
    return len(lasting[first]), found[:_DIFFERENCES_KEPT]


def _tell(item: Item) -> str:
    stale = ", stale" if item.bits & STALE else ""
    spelled = ", base64 key" if item.bits & BINARY else ""
    value = f"{item.length} bytes {item.digest.hex()[:8]}"
    return f"{value}, flags {item.flags}, expires {item.expires or 'never'}{stale}{spelled}"
