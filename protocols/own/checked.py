"""check=True: whatever is applied is applied once more, from the same snapshot, in another process, and compared.

The other process has other hash seeds, other addresses and other random numbers, and it is later there: what depends on
any of that comes out otherwise. So does a state that snapshot() does not hold all of.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection

from . import wire
from .replicated import Machine, MachineFailed, Replicated
from .wire import HEAD, REPLY_HEAD, STAMP_HEAD

SHOWN_BYTES = 60
STOP_S = 5.0

_environment = threading.Lock()


def check_copies(machine: Machine) -> None:
    """TypeError unless it can be brought into another process."""
    try:
        pickle.dumps(machine)
    except Exception as error:
        what = "check=True has pickle copy it into another process, and that fails"
        raise TypeError(f"machine: {what}: {error}") from None


class Checked(Replicated):
    """A machine with a twin. `close()` ends that."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_twin, args=(other, pickle.dumps(machine)), name="twin", daemon=True)
        with _environment:
            before = os.environ.pop("PYTHONHASHSEED", None)
            try:
                self._process.start()
            finally:
                if before is not None:
                    os.environ["PYTHONHASHSEED"] = before
        other.close()

    def close(self) -> None:
        self._pipe.close()
        self._process.join(STOP_S)

    def feed(self, data: bytes) -> tuple[bytes, int]:
        before, stamp = self.snapshot(), self.stamp
        replies, used = super().feed(data)
        if self.stamp != stamp:
            self._compare(before, data[:used], replies, self.snapshot())
        return replies, used

    def _compare(self, before: bytes, frames: bytes, replies: bytes, after: bytes) -> None:
        try:
            self._pipe.send_bytes(before)
            self._pipe.send_bytes(frames)
            failed, others, state = (self._pipe.recv_bytes() for _ in range(3))
        except (EOFError, OSError):
            hint = 'is the start of your program under `if __name__ == "__main__":`?'
            raise MachineFailed(f"the process that check=True compares with has ended: {hint}") from None
        if failed:
            raise MachineFailed(f"it went well here, and not a second time: {failed.decode()}")
        if others != replies:
            raise MachineFailed(_first_difference(frames, replies, others))
        if state != after:
            at = next((i for i, pair in enumerate(zip(after, state, strict=False)) if pair[0] != pair[1]), 0)
            here, there = after[at : at + SHOWN_BYTES], state[at : at + SHOWN_BYTES]
            what = "the same records gave the same results and another state"
            raise MachineFailed(f"{what}: snapshot() has {here!r} where the other process has {there!r}")


def _twin(pipe: Connection, machine: bytes) -> None:
    """The other process: every batch finds a machine there that has only been restored."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())  # the thread that started it has none
    while True:
        state = Replicated(pickle.loads(machine))
        try:
            before = pipe.recv_bytes()
            frames = pipe.recv_bytes()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        failed, replies, after = b"", b"", b""
        try:
            state.restore(before)
            replies, _ = state.feed(frames)
            after = state.snapshot()
        except MachineFailed as error:
            failed = str(error).encode()
        for part in (failed, replies, after):
            pipe.send_bytes(part)


def _first_difference(frames: bytes, replies: bytes, others: bytes) -> str:
    mine, theirs = list(_results(replies)), list(_results(others))
    for records, one, other in zip(_records(frames), mine, theirs, strict=False):
        for record, here, there in zip(records, one, other, strict=False):
            if here != there:
                shown = [repr(each[:SHOWN_BYTES]) for each in (record, here, there)]
                return f"apply() said {shown[1]} to {shown[0]} here, and {shown[2]} in another process"
    return "the same records gave other results in another process"


def _records(frames: bytes) -> Iterator[list[bytes]]:
    at = 0
    while at < len(frames):
        if frames[at] in (wire.PING, wire.STAMP):
            at += 1 if frames[at] == wire.PING else STAMP_HEAD.size
            continue
        kind, length, *_ = HEAD.unpack_from(frames, at)
        if kind == wire.PROPOSE:
            yield list(wire.parts(frames, at + HEAD.size, at + length))
        at += length


def _results(replies: bytes) -> Iterator[list[bytes]]:
    at = 0
    while at < len(replies):
        if replies[at] == wire.PING:
            at += 1
            continue
        kind, length, _ = REPLY_HEAD.unpack_from(replies, at)
        if kind == wire.RESULTS:
            yield list(wire.parts(replies, at + REPLY_HEAD.size, at + length))
        at += length
