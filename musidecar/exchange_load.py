"""Traders at the text ports of a cluster of exchanges, and whether what they were told is what one exchange would have
said that was given the same requests in the same order and never failed.

Each trader sends its requests one after the other, each until it has been answered, at the next node when a connection
ends: the ids make that harmless, which is what is judged. An accepted write's events say where in the log it stands; so
the writes of all traders can be put in that order and given to an exchange of this process.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from musidecar.protocols.liquibook.driver import Connection
from musidecar.protocols.liquibook.exchange import Exchange
from musidecar.protocols.server import Address, BackendError

TIMEOUT_S = 5.0
RETRY_S = 0.001
END_S = 30.0


@dataclass(frozen=True, slots=True)
class Event:
    """A line EVENT of PROTOCOL.md, as far as it is looked at."""

    index: int
    part: int
    time_us: int
    kind: str
    order: int
    id: str
    side: str
    last: int
    at: int

    @classmethod
    def read(cls, line: str) -> Event:
        words = line.split(" ")
        index, _, part = words[2].partition(".")
        return cls(
            int(index), int(part), int(words[3]), words[4], int(words[5]), words[6], words[9], int(words[18]),
            int(words[19]),
        )  # fmt: skip


@dataclass
class Trader:
    """One trader. `run()` in a thread; `told`: request -> reply; `acks`: (CLOCK_MONOTONIC ns, node's place) of each."""

    name: str
    nodes: Sequence[Address]
    requests: Iterator[str]
    starts_at: int = 0
    pause_s: float = 0.0  # between two requests
    told: dict[str, list[str]] = field(default_factory=dict)
    acks: list[tuple[int, int]] = field(default_factory=list)
    again: int = 0  # requests that were sent again
    done: bool = False
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until the requests or `ended` say so."""
        at, connection = self.starts_at, None
        for request in self.requests:
            while request not in self.told and not self.ended.is_set():
                place = at % len(self.nodes)
                try:
                    connection = connection or Connection(self.nodes[place], TIMEOUT_S)
                    reply = connection.ask(request)
                except BackendError:
                    self.again += 1
                    if connection is not None:
                        connection.close()
                    connection, at = None, at + 1
                    time.sleep(RETRY_S)
                    continue
                self.acks.append((time.monotonic_ns(), place))
                self.told[request] = reply
            if self.ended.wait(self.pause_s) if self.pause_s else self.ended.is_set():
                break
        self.done = True
        if connection is not None:
            connection.close()

    def events(self, connection: Connection) -> list[Event]:
        """All of its events, as they are told there. ValueError when the first are not kept any more."""
        found: list[Event] = []
        while True:
            head, *lines = connection.ask(f"EVENTS {self.name} {len(found)}")
            _, first, last = head.split(" ")
            if int(first) != 1:
                raise ValueError(f"of {self.name}'s events the first are not kept any more")
            found += map(Event.read, lines)
            if len(found) == int(last):
                return found


class Traders:
    """Several of them, each in a thread, for as long as the context lasts."""

    def __init__(self, traders: Sequence[Trader]) -> None:
        self.all = traders
        self._threads = [threading.Thread(target=each.run, name=each.name, daemon=True) for each in traders]

    def answered(self) -> int:
        return sum(len(each.told) for each in self.all)

    @property
    def done(self) -> bool:
        return all(each.done for each in self.all)

    def join(self, timeout_s: float = END_S) -> None:
        """Until all are through. TimeoutError."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise TimeoutError(f"{thread.name} has not been answered for {timeout_s:g} s")

    def __enter__(self) -> Traders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.all:
            each.ended.set()
        for thread in self._threads:
            thread.join(END_S)


def address(client: tuple[str, int]) -> Address:
    return Address(host=client[0], port=client[1])


def in_log_order(traders: Iterable[Trader]) -> list[str]:
    """What was accepted, each with its stamp. ValueError when two stand at one place, or one reply is no outcome."""
    found: dict[int, str] = {}
    for trader in traders:
        for request, reply in trader.told.items():
            if reply and reply[0].startswith("REJECT "):
                continue
            if not reply or not reply[0].startswith("EVENT "):
                raise ValueError(f"{request}: {reply}")
            event = Event.read(reply[0])
            if event.index in found:
                raise ValueError(f"two requests were done as record {event.index}")
            found[event.index] = f"@{event.index} {event.time_us} {request}"
    return [found[index] for index in sorted(found)]


def replayed(symbols: Iterable[str], requests: Iterable[str]) -> Exchange:
    """One exchange that was given these."""
    exchange = Exchange(symbols)
    for request in requests:
        exchange.apply(request.encode())
    return exchange


def same_as_one(traders: Sequence[Trader], symbols: Sequence[str], connection: Connection) -> list[str]:
    """How what these traders, and nobody else, have made of the exchange at `connection` differs from what one exchange
    makes of it: the stream of all events, the books, and each reply. Empty: in nothing."""
    try:
        one = replayed(symbols, in_log_order(traders))
    except ValueError as error:
        return [str(error)]
    found = []
    events, event_hash, live = connection.ask("STATE")[0].split(" ")[3:]
    wanted = one.apply(b"STATE").decode().split("\n")[0].split(" ")[3:]
    if [events, event_hash, live] != wanted:
        found.append(f"{events} events, hash {event_hash}, {live} live orders; one exchange has {' '.join(wanted)}")
    for symbol in symbols:
        if connection.ask(f"DEPTH {symbol} 1000") != _reply(one, f"DEPTH {symbol} 1000"):
            found.append(f"the book of {symbol} is another")
    for trader in traders:
        for request, reply in trader.told.items():
            if reply[0].startswith("EVENT ") and _reply(one, request) != reply:
                found.append(f"{request}: was answered {reply[0]}")
                break
    return found


def _reply(exchange: Exchange, request: str) -> list[str]:
    return exchange.apply(request.encode()).decode().splitlines()[:-1]


def uneven(events: Iterable[Event]) -> list[str]:
    """Of all events of all traders: fills without another side, and events that are there twice. Empty: each trade has
    two sides."""
    found: list[str] = []
    places: Counter[tuple[int, int]] = Counter()
    sides: Counter[tuple[int, int]] = Counter()
    for event in events:
        places[event.index, event.part] += 1
        sides[event.index, event.at] += event.last * (event.kind == "FILL") * (1 if event.side == "BUY" else -1)
    found += [f"{index}.{part} is there {count} times" for (index, part), count in places.items() if count > 1]
    found += [f"record {index}: {abs(left)} more on one side at {at}" for (index, at), left in sides.items() if left]
    return found
