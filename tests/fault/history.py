"""What clients did and saw: the material of the linearizability check.

A history is a list of operations. Each has the moment it was sent and the moment its answer came, on one clock that all
processes of a host share (CLOCK_MONOTONIC, ns). An operation whose connection ended before its answer is of *unknown*
outcome: it may have been done at any moment after it was sent, also much later, or never. One answered with an error
was *refused*: it must never have been done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

UNKNOWN = "unknown"
REFUSED = "refused"
DONE = "done"

Value = str | int | None | tuple[str, ...]


@dataclass(slots=True)
class Operation:
    """One operation on one key. `name` is the command, `argument` what it writes (SET, RPUSH, LOCK: a value unique in
    the history), `result` what was answered (None: nil); `px_ms` the life of a LOCK; `node` and `client` say who asked
    where. `back_ns` counts only where the outcome is DONE."""

    key: str
    name: str
    argument: str
    called_ns: int
    back_ns: int = 0
    outcome: str = UNKNOWN
    result: Value = None
    px_ms: int = 0
    node: int = 0
    client: int = 0

    def __str__(self) -> str:
        spoken = {DONE: repr(self.result)}.get(self.outcome, self.outcome)
        until = f"{self.back_ns / 1e6:.3f}" if self.outcome == DONE else "..."
        words = f"{self.name} {self.key} {self.argument}".rstrip()
        return f"{self.called_ns / 1e6:.3f} {until} ms  client {self.client} at node {self.node}: {words} -> {spoken}"


WRITES = frozenset({"SET", "INCR", "RPUSH", "LOCK", "UNLOCK"})


def by_key(history: Iterable[Operation]) -> dict[str, list[Operation]]:
    """The operations of each key, in the order they were sent."""
    found: dict[str, list[Operation]] = {}
    for operation in history:
        found.setdefault(operation.key, []).append(operation)
    for operations in found.values():
        operations.sort(key=lambda one: one.called_ns)
    return found


def save(path: Path, history: Iterable[Operation]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in history))


def load(path: Path) -> list[Operation]:
    """What `save` wrote."""
    found = []
    for line in path.read_text().splitlines():
        raw = json.loads(line)
        if isinstance(raw["result"], list):
            raw["result"] = tuple(raw["result"])
        found.append(Operation(**raw))
    return found
