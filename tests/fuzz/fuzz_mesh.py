"""The mesh as a stranger, or a member gone wrong, meets it: frames, both sides of the handshake, questions.

An input is two bytes of choice, then what comes over the wire: raw bytes, or the value of one field of an otherwise
right message (a byte 0xfe, a character and n stand for 8 n of that character: nesting is deep). Whatever comes, the
mesh answers with a MeshError, its text one printable line; it takes nobody for a member who is not; frames are
what a plain reading of the bytes finds.

    fuzz_mesh.py [libFuzzer's options] FOLDER...        fuzzed with atheris
    fuzz_mesh.py --replay FILE-OR-FOLDER...             once on each
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FUZZING = "--replay" not in sys.argv and __name__ == "__main__"
if FUZZING:
    import atheris

    with atheris.instrument_imports(include=["musidecar.mesh"]):
        from musidecar import mesh
else:
    from musidecar import mesh

NONCE = "ab" * mesh.NONCE_BYTES
MEMBER = mesh.Member("demo", 1, (1, 2, 3), Path("nowhere"), b"s" * 32, "cd" * mesh.INCARNATION_BYTES)
HELLO: dict[str, Any] = {
    "musidecar": mesh.VERSION,
    "cluster": "demo",
    "role": "peer",
    "node": 2,
    "to": 1,
    "incarnation": "ef" * mesh.INCARNATION_BYTES,
    "nonce": "12" * mesh.NONCE_BYTES,
}
ANSWER: dict[str, Any] = {
    "musidecar": mesh.VERSION,
    "node": 2,
    "incarnation": "ef" * mesh.INCARNATION_BYTES,
    "nonce": "12" * mesh.NONCE_BYTES,
}


CREDENTIALS = struct.pack("3i", os.getpid(), os.geteuid(), os.getegid())


class Wire:
    """What Connection needs of a socket, in memory: bytes that came before the other side was lost."""

    family = socket.AF_UNIX

    def __init__(
        self, incoming: bytes, on_send: Callable[[Wire, bytes], None] | None = None, in_parts: bool = False
    ) -> None:
        self.incoming, self.at, self.on_send, self.in_parts = incoming, 0, on_send, in_parts
        self.sent: list[bytes] = []

    def settimeout(self, timeout_s: float | None) -> None:
        assert timeout_s is None or timeout_s > 0

    def getsockopt(self, level: int, name: int, length: int) -> bytes:
        return CREDENTIALS

    def sendall(self, chunk: bytes) -> None:
        self.sent.append(chunk)
        if self.on_send is not None:
            self.on_send(self, chunk)

    def recv_into(self, view: memoryview) -> int:
        n = min(len(view), len(self.incoming) - self.at)
        if self.in_parts:
            n = min(n, 1 + self.at * 31 % 97)
        view[:n] = self.incoming[self.at : self.at + n]
        self.at += n
        return n

    def recvmsg(self, length: int, room: int, flags: int) -> tuple[bytes, list[Any], int, None]:
        chunk = self.incoming[self.at : self.at + length]
        self.at += len(chunk)
        return chunk, [], 0, None

    def close(self) -> None:
        self.incoming = b""


def connection(wire: Wire, frame_bytes_max: int) -> mesh.Connection:
    peer = mesh.Peer(2, "peer", "", 1, 0)
    return mesh.Connection(wire, peer, frame_bytes_max)  # type: ignore[arg-type]


def unfolded(text: bytes) -> bytes:
    """With its runs written out."""
    out = bytearray()
    i = 0
    while i < len(text):
        if text[i] == 0xFE and i + 2 < len(text):
            out += bytes(text[i + 1 : i + 2]) * (8 * text[i + 2])
            i += 3
        else:
            out.append(text[i])
            i += 1
    return bytes(out)


def frame(body: bytes, kind: bytes = b"J") -> bytes:
    return struct.pack(">cI", kind, len(body)) + body


Without = list[tuple[bytes, bytes]]


def without_each(message: dict[str, Any]) -> Without:
    """The message as JSON without one of its fields, and that one's name; and as it is, with a name it has not."""
    return [
        (json.dumps({key: each for key, each in message.items() if key != name}).encode(), json.dumps(name).encode())
        for name in [*message, "more", "refused", "fds", "proof"]
    ]


def with_field(message: Without, choice: int, value: bytes) -> bytes:
    """The message with one of its fields (or one more) as these bytes spell it; without it where there are none."""
    text, name = message[choice % len(message)]
    return text if not value else b"%s,%s:%s}" % (text[:-1], name, value)


def refused(call: Callable[[], Any]) -> Any:
    """What the call gives, or the MeshError it raised: nothing else may come out."""
    try:
        return call()
    except mesh.MeshError as error:
        assert str(error).isprintable() and len(str(error)) < 400, repr(error)
        return error


# ---- what is fuzzed --------------------------------------------------------------------------------------------------


def plain_frames(raw: bytes, frame_bytes_max: int) -> list[Any]:
    """The frames at the front of these bytes, read the simple way."""
    found: list[Any] = []
    while len(raw) >= 5:
        kind, length = raw[:1], int.from_bytes(raw[1:5], "big")
        body = raw[5 : 5 + length]
        if kind not in b"JB" or length > frame_bytes_max or len(body) < length:
            break
        if kind == b"J":
            try:
                message = json.loads(body)
            except (ValueError, RecursionError):
                break
            if not isinstance(message, dict):
                break
            found.append(message)
        else:
            found.append(body)
        raw = raw[5 + length :]
    return found


def frames(choice: int, raw: bytes) -> None:
    limit = 64 if choice & 1 else 4096
    link = connection(Wire(raw, in_parts=True), limit)
    found = []
    while not isinstance(got := refused(lambda: link.recv_any(5.0)), mesh.MeshError):
        found.append(got)
    assert repr(found) == repr(plain_frames(raw, limit))
    link = connection(Wire(raw), limit)
    while not isinstance(got := refused(lambda: link.recv_fds(5.0)), mesh.MeshError):
        assert isinstance(got[0], dict) and "fds" not in got[0]
        mesh.close_all(got[1])


def welcome(choice: int, raw: bytes) -> None:
    """A stranger dials: it has no secret, or (the last choices) it has, and its hello is what is odd."""
    member_knows = choice & 1
    value, _, reply = raw.partition(b"\0")
    hello = with_field(HELLOS, choice >> 1, value)

    def on_send(wire: Wire, chunk: bytes) -> None:
        if len(wire.sent) != 1 or not member_knows:
            return
        answer = json.loads(chunk[5:])
        answer.pop("proof", None)
        try:
            said = json.loads(hello)
            said.pop("fds", None)
            proof = mesh._proof(MEMBER.secret, "dialler", said, answer)
        except (ValueError, RecursionError, AttributeError):
            return
        wire.incoming += frame(json.dumps({"proof": proof}).encode())

    wire = Wire(frame(hello) + (b"" if member_knows else frame(reply)), on_send)
    deadline = time.monotonic() + 5.0
    got = refused(lambda: mesh._welcome(MEMBER, wire, deadline))  # type: ignore[arg-type]
    if isinstance(got, mesh.Peer):
        assert member_knows and got.node in (0, 2, 3) and got.role in mesh.ROLES and len(got.incarnation) == 32
        assert (got.node == 0) <= (got.role == "ask")


def greet(choice: int, raw: bytes) -> None:
    """What listens is a stranger, or (the last choices) a member whose answer is odd."""
    member_knows = choice & 1
    value, _, verdict = raw.partition(b"\0")
    answer = with_field(ANSWERS, choice >> 1, value)

    def on_send(wire: Wire, chunk: bytes) -> None:
        if len(wire.sent) != 1:
            return
        text = answer
        if member_knows:
            try:
                said = json.loads(answer)
                said.pop("fds", None)
                said.pop("proof", None)
                proof = mesh._proof(MEMBER.secret, "listener", json.loads(chunk[5:]), said)
                text = b'%s,"proof":"%s"}' % (answer[:-1], proof.encode())
            except (ValueError, RecursionError, AttributeError):
                pass
        wire.incoming += frame(text) + frame(verdict or b'{"welcome":true}')

    wire = Wire(b"", on_send)
    deadline = time.monotonic() + 5.0
    got = refused(lambda: mesh._greet(MEMBER, wire, 2, "peer", deadline))  # type: ignore[arg-type]
    if isinstance(got, mesh.Peer):
        assert member_knows and got.node == 2 and len(got.incarnation) == 32


HELLOS, ANSWERS, QUESTIONS = map(without_each, (HELLO, ANSWER, {"question": "status"}))
NODE = mesh.Mesh(MEMBER)
NODE.questions["status"] = lambda asked: {"asked": len(asked)}


def question(choice: int, raw: bytes) -> None:
    wire = Wire(frame(with_field(QUESTIONS, choice, raw)))
    refused(lambda: NODE._answer(connection(wire, mesh.FRAME_BYTES_MAX)))
    for chunk in wire.sent:
        assert set(json.loads(chunk[5:])) <= {"answer", "error"}


WAYS = (frames, welcome, greet, question)


def test_one_input(data: bytes) -> None:
    """As libFuzzer calls it."""
    if len(data) >= 2:
        WAYS[data[0] % len(WAYS)](data[1], unfolded(data[2:]))


def replay(paths: list[str]) -> int:
    files = [file for path in map(Path, paths) for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    for file in files:
        test_one_input(file.read_bytes())
    print(f"{len(files)} inputs")
    return 0 if files else 1


if __name__ == "__main__":
    mesh.secrets.token_hex = lambda count=None: NONCE[: 2 * (count or 32)]  # the same input does the same
    if not FUZZING:
        sys.exit(replay(sys.argv[sys.argv.index("--replay") + 1 :]))
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
