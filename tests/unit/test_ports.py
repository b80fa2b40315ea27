"""Ports are given to one at a time: within a process, between processes, and beside what listens already."""

import socket
import subprocess
import sys

import pytest

from musidecar import ports

HOLD = "from musidecar import ports; print(ports.free_ports(3), flush=True); input()"


def test_nobody_else_is_given_the_same_ones() -> None:
    own = [ports.free_ports(3) for _ in range(5)]
    others = [
        subprocess.Popen([sys.executable, "-P", "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    try:
        theirs = [int(each.stdout.readline()) for each in others if each.stdout is not None]
    finally:
        for each in others:
            each.communicate(b"\n")
        for first in own:
            ports.give_back(first)
    all_of_them = [port for first in own + theirs for port in range(first, first + 3)]
    assert len(theirs) == 3
    assert len(set(all_of_them)) == len(all_of_them)


def _begin_at(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """As a process would whose number leads it there."""
    monkeypatch.setattr(ports, "_next", iter(range(block, block + 100)))


def test_two_that_look_at_the_same_place_find_different_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for _ in range(3):
        _begin_at(monkeypatch, 17)
        found.add(ports.free_ports(2))
    for first in found:
        ports.give_back(first)
    assert len(found) == 3


def test_a_port_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ports.free_ports(3)
    block = (first - ports.FIRST) // ports.BLOCK
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", first + 2))
        taken.listen()
        ports.give_back(first)
        _begin_at(monkeypatch, block)
        other = ports.free_ports(3)
        ports.give_back(other)
        assert other != first


def test_what_is_given_back_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ports.free_ports(3)
    ports.give_back(first)
    ports.give_back(first)
    _begin_at(monkeypatch, (first - ports.FIRST) // ports.BLOCK)
    assert ports.free_ports(3) == first
    ports.give_back(first)


def test_all_taken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_next", iter(()))
    with pytest.raises(ports.NoPorts):
        ports.free_ports(1)
    with pytest.raises(ValueError, match="at most"):
        ports.free_ports(ports.BLOCK + 1)
