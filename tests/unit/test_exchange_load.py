"""Whether what an exchange did is what one that never failed would have done: nothing that went wrong passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from musidecar import exchange_load as load
from musidecar.exchange_demo import draw, requests
from musidecar.exchange_load import Trader, Traders
from musidecar.protocols.liquibook.driver import Connection, spawn
from musidecar.protocols.server import Address

SYMBOLS = ("AAPL",)
REQUESTS = 300


@pytest.fixture
def there(folder: Path) -> Iterator[Address]:
    server = spawn(folder, folder / "x.sock", SYMBOLS)
    yield server.address
    server.stop()


def played(there: Address, count: int = REQUESTS) -> list[Trader]:
    traders = [Trader(name, [there], requests(name, seed, count)) for seed, name in enumerate(("alice", "bob"))]
    with Traders(traders) as both:
        both.join()
    return traders


def test_what_went_well_passes(there: Address) -> None:
    traders = played(there)
    with Connection(there) as connection:
        assert load.same_as_one(traders, SYMBOLS, connection) == []
        events = [event for trader in traders for event in trader.events(connection)]
        assert load.uneven(events) == []
        assert sum(event.kind == "FILL" for event in events) > 20
        rows = draw(connection.ask("DEPTH AAPL"), "").row_count
    assert rows > 3


def test_what_went_wrong_does_not(there: Address) -> None:
    traders = played(there)
    with Connection(there) as connection:
        events = [event for trader in traders for event in trader.events(connection)]
        fill = next(event for event in events if event.kind == "FILL")
        assert load.uneven([*events, fill]), "a fill told twice"
        assert load.uneven([event for event in events if event is not fill]), "a fill that one side was not told of"
        assert load.uneven([replace(event, last=event.last + (event is fill)) for event in events]), "another quantity"
        accepted = next(request for request, reply in traders[0].told.items() if "ACCEPT" in reply[0])
        told = traders[0].told.pop(accepted)
        assert load.same_as_one(traders, SYMBOLS, connection), "an order that nobody sent"
        words = told[0].split(" ")
        twice = [*words[:2], f"{10**6}.1", *words[3:]]
        traders[0].told |= {accepted: told, f"{accepted} IOC": [" ".join(twice)]}
        assert load.same_as_one(traders, SYMBOLS, connection), "an order that was answered and not done"
        del traders[0].told[f"{accepted} IOC"]
        traders[0].told[accepted] = [told[0].replace("OPEN", "HELD"), *told[1:]]
        assert load.same_as_one(traders, SYMBOLS, connection), "an answer that is another"
        traders[0].told[accepted] = told
        assert load.same_as_one(traders, SYMBOLS, connection) == []
