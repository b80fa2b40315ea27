"""Is a history linearizable? Wing and Gong's search with Lowe's memory ("Testing for linearizability", 2017): one key
at a time, which is enough because linearizability is local (Herlihy and Wing, 1990).

The search takes, again and again, an operation that was called before any other one that is still to be placed came
back, and places it next if the model allows its answer. When an operation that has come back cannot be placed, it goes
back one step. What was reached once (the set of operations placed, the state) is never searched again.

An operation of unknown outcome never came back: it may be placed anywhere after its call, or nowhere; placed means with
effect. One that was refused is left out: if it was done all the same, the others' answers contradict.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from tests.fault.history import DONE, REFUSED, UNKNOWN, Operation, by_key

# (state, operation) -> (allowed, state afterwards). States can be hashed; the first one is None.
Model = Callable[[Hashable, Operation], tuple[bool, Hashable]]

CLOCK_SLACK_NS = 5_000_000  # Redis counts expiry in ms, by a clock it reads once per event or command
_NO = (False, None)


# ---- models ----------------------------------------------------------------------------------------------------------


def register(state: Hashable, op: Operation) -> tuple[bool, Hashable]:
    """SET, GET."""
    if op.name == "SET":
        return True, op.argument
    return op.outcome != DONE or op.result == state, state


def counter(state: Hashable, op: Operation) -> tuple[bool, Hashable]:
    """INCR, GET. Answers are integers, GET's None while there is none."""
    if op.name == "INCR":
        value = (state or 0) + 1  # type: ignore[operator]
        return op.outcome != DONE or op.result == value, value
    return op.outcome != DONE or op.result == state, state


def append_list(state: Hashable, op: Operation) -> tuple[bool, Hashable]:
    """RPUSH (answers the length), LRANGE 0 -1."""
    items: tuple[str, ...] = state or ()  # type: ignore[assignment]
    if op.name == "RPUSH":
        items = (*items, op.argument)
        return op.outcome != DONE or op.result == len(items), items
    return op.outcome != DONE or op.result == items, state


def lock(state: Hashable, op: Operation) -> tuple[bool, Hashable]:
    """LOCK = SET key owner NX PX ms (answers OK or nil), GET (owner or nil), UNLOCK = DEL (1 or 0).

    The state is the LOCK that holds it. When that one was done is known to lie within its call and return, so it ends
    at some moment between `ends` and `ends_last`; an answer "free" needs that the first has come when it came back, an
    answer "held" that the last had not when it was called.
    """
    held: tuple[str, int, int] | None = state  # type: ignore[assignment]
    known = op.outcome == DONE
    may_be_over = held is None or not known or op.back_ns + CLOCK_SLACK_NS >= held[1]
    may_be_held = held is not None and op.called_ns - CLOCK_SLACK_NS <= held[2]
    if op.name == "LOCK":
        if not known or op.result == "OK":
            last = op.back_ns + op.px_ms * 1_000_000 if known else 1 << 62
            return may_be_over, (op.argument, op.called_ns + op.px_ms * 1_000_000, last)
        return may_be_held, held
    if op.name == "UNLOCK":
        if not known:
            return True, None
        return (may_be_held, None) if op.result == 1 else (may_be_over, None)
    if not known:
        return True, state
    if op.result is None:
        return may_be_over, None
    return may_be_held and held is not None and held[0] == op.result, held


def swapped(state: Hashable, op: Operation) -> tuple[bool, Hashable]:
    """SET, GET, and CAS with the argument "old>new", which answers STORED or EXISTS. A token that was handed out before
    another node led matches nothing, so EXISTS says nothing of what is there."""
    if op.name != "CAS":
        return register(state, op)
    old, _, new = op.argument.partition(">")
    if op.outcome == DONE and op.result != "STORED":
        return True, state
    return state == old, new


MODELS: dict[str, Model] = {"r": register, "c": counter, "l": append_list, "k": lock, "s": swapped}


def model_of(key: str) -> Model:
    """A key's kind is its first letter."""
    return MODELS[key[0]]


# ---- the search ------------------------------------------------------------------------------------------------------


class _Entry:
    """A call or a return in the list of what is still to be placed."""

    __slots__ = ("back", "bit", "next", "op", "previous")

    def __init__(self, op: Operation | None, bit: int) -> None:
        self.op = op  # None: a return
        self.bit = bit
        self.back: _Entry | None = None  # of a call: its return
        self.previous: _Entry = self
        self.next: _Entry | None = None


def _unlink(entry: _Entry) -> None:
    entry.previous.next = entry.next
    if entry.next is not None:
        entry.next.previous = entry.previous


def _relink(entry: _Entry) -> None:
    entry.previous.next = entry
    if entry.next is not None:
        entry.next.previous = entry


def _entries(operations: Sequence[Operation]) -> _Entry:
    """The list, behind a head of its own. At equal times calls come first: then they were concurrent."""
    moments: list[tuple[int, int, _Entry]] = []
    for i, op in enumerate(operations):
        call = _Entry(op, 1 << i)
        moments.append((op.called_ns, 0, call))
        if op.outcome == DONE:
            call.back = _Entry(None, 0)
            moments.append((op.back_ns, 1, call.back))
    moments.sort(key=lambda moment: moment[:2])
    head = at = _Entry(None, 0)
    for _, _, entry in moments:
        at.next, entry.previous = entry, at
        at = entry
    return head


@dataclass
class Verdict:
    """One key's: `linearizable`, or the longest order that could be found and the operations that did not fit in."""

    key: str
    linearizable: bool
    steps: int
    placed: list[Operation] = field(default_factory=list)
    left: list[Operation] = field(default_factory=list)

    def explain(self) -> str:
        """For people: where it got to, and what then contradicted."""
        lines = [f"{self.key}: not linearizable; an order up to here was found:"]
        lines += [f"  {op}" for op in self.placed[-12:]]
        lines += ["none of these can come next:"]
        lines += [f"  {op}" for op in self.left[:12]]
        return "\n".join(lines)


def check_key(operations: Sequence[Operation], model: Model) -> Verdict:
    """Searches an order of one key's operations."""
    key = operations[0].key if operations else ""
    sought = [op for op in operations if op.outcome == DONE or (op.outcome == UNKNOWN and op.name not in _READS)]
    head = _entries(sought)
    left = sum(op.outcome == DONE for op in sought)
    state: Hashable = None
    placed, steps = 0, 0
    stack: list[tuple[_Entry, Hashable]] = []
    best: list[_Entry] = []
    seen: set[tuple[int, Hashable]] = set()
    entry = head.next
    while left:
        assert entry is not None  # somebody has not come back: its return stands at the end of the list at the latest
        if entry.op is not None:
            steps += 1
            allowed, after = model(state, entry.op)
            reached = (placed | entry.bit, after)
            if allowed and reached not in seen:
                seen.add(reached)
                stack.append((entry, state))
                placed, state = reached
                _unlink(entry)
                if entry.back is not None:
                    _unlink(entry.back)
                    left -= 1
                entry = head.next
            else:
                entry = entry.next
            continue
        if len(stack) > len(best):
            best = [each for each, _ in stack]
        if not stack:
            return _refuted(key, steps, sought, best)
        entry, state = stack.pop()
        placed ^= entry.bit
        if entry.back is not None:
            _relink(entry.back)
            left += 1
        _relink(entry)
        entry = entry.next
    return Verdict(key, True, steps)


_READS = frozenset({"GET", "LRANGE"})


def _refuted(key: str, steps: int, sought: Sequence[Operation], best: Sequence[_Entry]) -> Verdict:
    order = [entry.op for entry in best if entry.op is not None]
    placed = set(map(id, order))
    left = sorted((op for op in sought if id(op) not in placed), key=lambda op: op.called_ns)
    first_back = min((op.back_ns for op in left if op.outcome == DONE), default=0)
    return Verdict(key, False, steps, order, [op for op in left if op.called_ns <= first_back])


def check(history: Sequence[Operation]) -> list[Verdict]:
    """The verdicts of the keys whose operations have no order; empty when the history is linearizable."""
    verdicts = (check_key(operations, model_of(key)) for key, operations in by_key(history).items())
    return [verdict for verdict in verdicts if not verdict.linearizable]


# ---- plain counting --------------------------------------------------------------------------------------------------


def lost_and_doubled(operations: Sequence[Operation]) -> tuple[int, int]:
    """Of one counter or list: acknowledged writes that the last answer to a read lacks, and writes that it has too
    many. It needs no search, and says how bad it is where the search says only that it is."""
    reads = [op for op in operations if op.outcome == DONE and op.name in _READS]
    writes = [op for op in operations if op.name in ("INCR", "RPUSH")]
    if not reads or not writes:
        return 0, 0
    last = max(reads, key=lambda op: op.called_ns)
    acknowledged = [op for op in writes if op.outcome == DONE and op.back_ns < last.called_ns]
    possible = [op for op in writes if op.outcome != REFUSED and op.called_ns < last.back_ns]
    if writes[0].name == "INCR":
        value = int(last.result or 0)  # type: ignore[arg-type]
        return max(len(acknowledged) - value, 0), max(value - len(possible), 0)
    items: tuple[str, ...] = last.result or ()  # type: ignore[assignment]
    there = set(items)
    return sum(op.argument not in there for op in acknowledged), len(items) - len(there)
