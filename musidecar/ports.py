"""Neighbouring ports for a cluster that is tried out, which no other cluster on this host is given meanwhile.

That nothing listens on a port says nothing about who is just starting there. So ports are given out in blocks, and a
block belongs to the process that holds its name, an abstract Unix socket: names are seen exactly as far as the ports
are (the network namespace), and the kernel gives back those of a process that has died.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

FIRST, END, BLOCK = 21_000, 32_000, 10  # below those that the kernel gives to clients
_BLOCKS = (END - FIRST) // BLOCK

_held: dict[int, socket.socket] = {}  # first port of a block -> its name
_next = itertools.count(os.getpid() * 7)  # not the block given back last: there is still traffic to it


class NoPorts(Exception):
    """All are taken."""


def free_ports(count: int) -> int:
    """The first of `count` neighbouring loopback ports that are free now, and this process's until give_back().

    NoPorts when there are none. ValueError when count is more than a block has.
    """
    if not 0 < count <= BLOCK:
        raise ValueError(f"{count} ports: at most {BLOCK}")
    for number in itertools.islice(_next, _BLOCKS):
        first = FIRST + number % _BLOCKS * BLOCK
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(f"\0musidecar ports {first}")
            _probe(first, count)
        except OSError:
            name.close()
            continue
        _held[first] = name
        return first
    raise NoPorts("no free ports on the loopback interface")


def give_back(first: int) -> None:
    """Others may have the block that begins here. Nothing happens when it is not this process's."""
    with contextlib.suppress(KeyError):
        _held.pop(first).close()


def _probe(first: int, count: int) -> None:
    """OSError when a port is in use."""
    with contextlib.ExitStack() as probes:
        for port in range(first, first + count):
            probe = probes.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what ended a moment ago does not count
            probe.bind(("127.0.0.1", port))
            probe.listen()  # whoever is bound, and does not listen yet, may have said the same
