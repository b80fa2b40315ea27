"""One node of an shm fabric as a process of its own, told what to do over a socket:
`python -m tests.fault.shm_member FD`.

Each packet is a JSON object {"do": verb, ...} with file descriptors beside it; so is each answer.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from collections.abc import Callable
from typing import Any

from musidecar._ffi import ffi, lib

Answer = tuple[dict[str, Any], list[int]]
PACKET_BYTES = 1 << 16


class Member:
    def __init__(self, node: int, nodes: int, log_bytes: int, fence: int, hazard_us: int) -> None:
        config = {"self": node, "nodes": nodes, "log_bytes": log_bytes, "background_bytes": 4096}
        config |= {"hazard_us": hazard_us, "force_fence": fence}
        self.shm = lib.shm_new(ffi.new("struct shm_config *", config))
        assert self.shm
        self.fabric = lib.shm_fabric(self.shm)
        self.log = ffi.buffer(lib.shm_log(self.shm), log_bytes)
        self.posts = 0
        fds = lib.shm_fds(self.shm)
        self.fds = [fds.log, fds.background, fds.doorbell]

    def attach(self, fds: list[int], peer: int, pid: int) -> Answer:
        given = ffi.new("struct shm_descriptors *", dict(zip(("log", "background", "doorbell"), fds, strict=True)))[0]
        return {"result": lib.shm_attach(self.shm, peer, given, pid)}, []

    def fence(self, fds: list[int], peer: int) -> Answer:
        mapping = ffi.new("uint64_t *")
        fd = lib.shm_fence_fd(self.shm, peer, mapping)
        return {"mapping": mapping[0]}, [fd] if fd >= 0 else []

    def set_fence(self, fds: list[int], peer: int, mapping: int) -> Answer:
        return {"result": lib.shm_set_fence(self.shm, peer, fds[0] if fds else -1, mapping)}, []

    def open(self, fds: list[int], peer: int) -> Answer:
        return {"result": lib.shm_open_link(self.shm, peer)}, []

    def enter(self, fds: list[int]) -> Answer:
        return {"result": lib.shm_enter(self.shm)}, []

    def write(self, fds: list[int], peer: int, offset: int, byte: int, length: int, region: int = 0) -> Answer:
        self.posts += 1
        data = bytes([byte]) * length
        self.fabric.ops.post_write(self.fabric, peer, region, offset, ffi.from_buffer(data), length, self.posts)
        return {}, []

    def poll(self, fds: list[int]) -> Answer:
        return {"statuses": [one.status for one in self.completions()]}, []

    def completions(self) -> list[Any]:
        out = ffi.new("struct fabric_completion[64]")
        return [out[i] for i in range(self.fabric.ops.poll(self.fabric, out, 64))]

    def flood(self, fds: list[int], peer: int, length: int) -> Answer:
        """Fills the start of the peer's log with ever larger numbers until one is not done."""
        number, status = 0, 0
        while status == 0:
            number += 1
            data = number.to_bytes(8, "little") * (length // 8)
            self.fabric.ops.post_write(self.fabric, peer, 0, 0, ffi.from_buffer(data), length, number)
            (completion,) = self.completions()
            status = completion.status
        return {"done": number - 1, "status": status}, []

    def revoke(self, fds: list[int]) -> Answer:
        self.fabric.ops.revoke(self.fabric)
        return {}, []

    def grant(self, fds: list[int], peer: int) -> Answer:
        return {"epoch": self.fabric.ops.grant(self.fabric, peer)}, []

    def accept(self, fds: list[int], peer: int, epoch: int) -> Answer:
        self.fabric.ops.accept(self.fabric, peer, epoch)
        return {}, []

    def counters(self, fds: list[int]) -> Answer:
        counters = lib.shm_counters(self.shm)
        names = ("writes", "refused", "revocations", "fences", "fence_ns_max")
        return {name: getattr(counters, name) for name in names} | {"fence": lib.shm_fence_kind(self.shm)}, []

    def deaths(self, fds: list[int], count: int) -> Answer:
        """The ids of the dead, once there are `count`."""
        dead = 0
        while dead.bit_count() < count:
            select.select([lib.shm_wait_fd(self.shm)], [], [])
            dead |= lib.shm_drain(self.shm)
        return {"dead": [i for i in range(8) if dead >> i & 1]}, []

    def free(self, fds: list[int]) -> Answer:
        lib.shm_free(self.shm)
        return {}, []

    def leave(self, fds: list[int]) -> Answer:
        """Ends the process as an uncaught error would: nothing is freed."""
        os._exit(3)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    member: Member | None = None
    while True:
        packet, fds, _, _ = socket.recv_fds(control, PACKET_BYTES, 4)
        if not packet:
            return
        order: dict[str, Any] = json.loads(packet)
        verb = order.pop("do")
        answer: Answer
        if verb == "new":
            member = Member(**order)
            answer = {}, member.fds
        else:
            does: Callable[..., Answer] = getattr(member, verb)
            answer = does(fds, **order)
        socket.send_fds(control, [json.dumps(answer[0]).encode()], answer[1])


if __name__ == "__main__":
    main()
