"""What `musidecar doctor` finds where a host lacks something; the verb itself: test_cli.py."""

from __future__ import annotations

import os

import pytest

from musidecar import doctor


def test_a_host_on_which_no_takeover_can_be_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    found = doctor._priority()
    assert found.verdict == "note" and "LimitRTPRIO=1" in found.remedy


def test_whoever_looks_is_not_in_front_afterwards() -> None:
    before = os.sched_getscheduler(0)
    doctor._priority()
    assert os.sched_getscheduler(0) == before
