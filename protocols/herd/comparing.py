"""Do several HERDs hold the same? What their gates know to be there, and HERD still has; each evicts for itself."""

from __future__ import annotations

from collections.abc import Mapping

from musidecar.protocols.server import Address

from .connection import ENTRY_BYTES, KEY_BYTES, Connection

SILENCE_S = 30.0
_DIFFERENCES_KEPT = 50


def contents(address: Address) -> dict[bytes, bytes]:
    """HERD's keys and HERD's values. BackendError."""
    found = {}
    with Connection(address, SILENCE_S) as connection:
        for page in connection.entries():
            for at in range(0, len(page), ENTRY_BYTES):
                found[page[at : at + KEY_BYTES]] = page[at + KEY_BYTES : at + ENTRY_BYTES]
    return found


def differences(addresses: Mapping[str, Address]) -> tuple[int, list[str]]:
    """How many keys the first of them holds, and what the others have otherwise, in words. Nothing may be written
    meanwhile."""
    held = {name: contents(address) for name, address in addresses.items()}
    first, *others = held
    found = []
    for name in others:
        mine, its = held[first], held[name]
        for missing, here, there in ((mine.keys() - its.keys(), name, first), (its.keys() - mine.keys(), first, name)):
            if missing:
                found.append(f"{here} lacks {len(missing)} keys that {there} has, e.g. {min(missing).hex()}")
        for key in sorted(mine.keys() & its.keys()):
            if mine[key] != its[key]:
                found.append(f"key {key.hex()}: {first} has {mine[key].hex()}, {name} {its[key].hex()}")
    return len(held[first]), found[:_DIFFERENCES_KEPT]
