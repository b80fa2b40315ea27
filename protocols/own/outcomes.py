"""What each client was told, for as long as it may ask again: a proposal is applied once, however often it is sent.

The table is part of the machine's state: the same at every node after the same frames, and in every snapshot. A client
that was opened is known until it closes, or until the table is full and all others have said something since it last
did. Then what it sends is not applied, for nobody knows any more whether it was.
"""

from __future__ import annotations

from struct import error as StructError

from .wire import COUNT, U64

CLIENTS_MAX = 4096
BYTES_MAX = 256 << 20  # of all outcomes, but for those of the client that speaks


class Client:
    """Outcomes by number; `received`: of all up to here none is kept, and none is asked for."""

    __slots__ = ("outcomes", "received")

    def __init__(self, received: int = 0) -> None:
        self.received = received
        self.outcomes: dict[int, bytes] = {}


class Outcomes:
    """Client -> what it was told, in the order in which they spoke last. `bytes`: of all outcomes."""

    def __init__(self) -> None:
        self._clients: dict[int, Client] = {}
        self.bytes = 0

    def open(self, client: int) -> None:
        """Known from now on."""
        known = self._clients.pop(client, None)
        self._clients[client] = Client() if known is None else known
        self._make_room()

    def close(self, client: int) -> None:
        """It asks for nothing any more."""
        gone = self._clients.pop(client, None)
        if gone is not None:
            self.bytes -= sum(map(len, gone.outcomes.values()))

    def spoke(self, client: int, received: int) -> Client | None:
        """It has all outcomes up to `received`. None: it is not known."""
        found = self._clients.pop(client, None)
        if found is None:
            return None
        self._clients[client] = found
        if received > found.received:
            found.received = received
            for each in [each for each in found.outcomes if each <= received]:
                self.bytes -= len(found.outcomes.pop(each))
        return found

    def keep(self, client: Client, number: int, outcome: bytes) -> None:
        """Of the client that spoke last."""
        client.outcomes[number] = outcome
        self.bytes += len(outcome)
        self._make_room()

    def _make_room(self) -> None:
        while len(self._clients) > CLIENTS_MAX or (self.bytes > BYTES_MAX and len(self._clients) > 1):
            self.close(next(iter(self._clients)))

    def __len__(self) -> int:
        return len(self._clients)

    def dump(self) -> bytes:
        """All of it: u32 clients, and of each: u64 client, u64 received, u32 outcomes, and of each: u64 number, u32
        length, bytes."""
        parts = [COUNT.pack(len(self._clients))]
        for id_, client in self._clients.items():
            parts += [U64.pack(id_), U64.pack(client.received), COUNT.pack(len(client.outcomes))]
            for number, outcome in client.outcomes.items():
                parts += [U64.pack(number), COUNT.pack(len(outcome)), outcome]
        return b"".join(parts)

    @classmethod
    def load(cls, data: bytes) -> Outcomes:
        """What dump() made. ValueError if it is something else."""
        found, at = cls(), 0

        def take(length: int) -> bytes:
            nonlocal at
            at += length
            if at > len(data):
                raise ValueError("a table of outcomes that breaks off")
            return data[at - length : at]

        try:
            for _ in range(COUNT.unpack(take(COUNT.size))[0]):
                (id_,), (received,) = U64.unpack(take(U64.size)), U64.unpack(take(U64.size))
                client = found._clients[id_] = Client(received)
                for _ in range(COUNT.unpack(take(COUNT.size))[0]):
                    (number,) = U64.unpack(take(U64.size))
                    outcome = client.outcomes[number] = take(COUNT.unpack(take(COUNT.size))[0])
                    found.bytes += len(outcome)
        except StructError as error:
            raise ValueError(str(error)) from None
        if at != len(data):
            raise ValueError("a table of outcomes with something behind it")
        return found
