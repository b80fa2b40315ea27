"""All that one HERD holds on its way to another.

HERD lists nothing, so its gate knows the keys that it was given, and asks for each. The copy is fuzzy: taken while
writes go on, and made whole by the log, whose every record says outright what its keys hold afterwards. What HERD has
given up of its own accord is not in it. What travels are HERD's keys and values as they are, 16 and 46 bytes each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any

from musidecar.protocols.backend import Point, Points, wait_point
from musidecar.protocols.server import Address, BackendError

from .connection import ENTRY_BYTES, PAGE, Connection

SILENCE_S = 30.0


class Dump:
    """The entries of the HERD behind `address`. Made when the copy begins; iterate `chunks()` once."""

    def __init__(self, address: Address, at_least: int, wait_s: float, points: Points) -> None:
        self._points = points
        self._began = wait_point(points, at_least, wait_s, "HERD")
        self._ended: Point | None = None
        self._connection = Connection(address, SILENCE_S)
        self.head: dict[str, Any] = {"offset": self._began.done}

    def foot(self) -> dict[str, Any]:
        return {"given": self._ended.given if self._ended else None}

    def chunks(self) -> Iterator[bytes]:
        yield from filter(None, self._connection.entries())
        self._ended = self._points()
        if self._ended.life != self._began.life:
            raise BackendError("its HERD did not hold the data all the time")

    def close(self) -> None:
        self._connection.close()


def load(address: Address, copy: IO[bytes], cancelled: Callable[[], bool]) -> int:
    """Delete all that the HERD behind `address` was given, and give it the entries of a copy; how many.

    Given up between two pages when `cancelled` says so.
    """
    count = 0
    with Connection(address, SILENCE_S) as connection:
        while connection.empty() and not cancelled():
            pass
        while (page := copy.read(PAGE * ENTRY_BYTES)) and not cancelled():
            if len(page) % ENTRY_BYTES:
                raise BackendError("the copy ends within an entry")
            connection.load(page)
            count += len(page) // ENTRY_BYTES
    return count
