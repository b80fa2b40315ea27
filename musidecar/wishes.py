"""What an operator may ask of a running node: the mesh's questions `switchover` and `pause`, carried to its engine."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from musidecar.engine import NOBODY, Engine, Event

TIMES_MS_MAX = 600_000  # of what may be asked to wait for


class Wishes:
    """with_engine: calls an action with the engine, unless there is none (False). Any thread."""

    def __init__(
        self, with_engine: Callable[[Callable[[Engine], None]], bool], nodes: Sequence[int], takeover_timeout_ms: int
    ) -> None:
        self._with_engine, self._nodes, self._takeover_timeout_ms = with_engine, nodes, takeover_timeout_ms
        self._numbers = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[Event]] = {}  # for the outcome of which hand-over

    def heard(self, event: Event) -> None:
        """An ENGINE_HANDOVER has come."""
        if (outcome := self._waiting.pop(event.b, None)) is not None:
            outcome.put(event)

    def switchover(self, question: dict[str, Any]) -> dict[str, Any]:
        """`to` (an id or null), `prepare_ms`, `hold_ms`. The answer: `to`, the successor; `why` it did not come to that
        ("": it leads); `pause_us`: for how long nothing was acknowledged."""
        to, prepare_ms, hold_ms = question.get("to"), question.get("prepare_ms"), question.get("hold_ms")
        if not (to is None or to in self._nodes) or not _is_time(prepare_ms) or not _is_time(hold_ms):
            return {"to": None, "why": "the question is malformed", "pause_us": 0}
        outcome: queue.SimpleQueue[Event] = queue.SimpleQueue()
        number = next(self._numbers)
        self._waiting[number] = outcome
        try:
            if not self._with_engine(lambda engine: engine.hand_over(to, prepare_ms, hold_ms, number)):
                return {"to": to, "why": "it is not running yet", "pause_us": 0}
            event = outcome.get(timeout=(prepare_ms + hold_ms + self._takeover_timeout_ms) / 1000 + 1)
        except queue.Empty:
            return {"to": to, "why": "its engine does not say what came of it", "pause_us": 0}
        finally:
            self._waiting.pop(number, None)
        return {"to": None if event.level == NOBODY else event.level + 1, "why": event.text, "pause_us": event.a}

    def pause(self, question: dict[str, Any]) -> dict[str, Any]:
        """`paused`: whether automatic fail-over is to be. The status tells when it is so."""
        paused = question.get("paused")
        if not isinstance(paused, bool):
            return {"accepted": False}
        return {"accepted": self._with_engine(lambda engine: engine.pause(paused))}


def _is_time(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= TIMES_MS_MAX
