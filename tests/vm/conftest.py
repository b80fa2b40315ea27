"""Tests of the verbs fabric run in a virtual machine: ordinary items from the host, collected here and run there.

`python -m pytest tests/vm` (with -k, -x, node ids, as ever) boots a guest at the first item of tests/vm/guest and hands
it all of them; the guest's reports become this session's. A guest that dies or hangs fails the item it was at, with its
console, and the next item boots another one. Without QEMU or a kernel the items are skipped with the reason, unless
MUSIDECAR_VM=required, as in CI.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.vm.machine import TREE, Machine, MachineError, why_not

IN_GUEST = os.environ.get("MUSIDECAR_GUEST") == "1"
GUEST_TESTS = Path(__file__).parent / "guest"
ITEM_TIMEOUT_S = 180.0
BOOT_ATTEMPTS = 3  # a kernel emulated on a crowded host now and then loses its timer, and stands still
GRACE_S = 30.0  # for the guest's own time limit to strike first
GUEST = pytest.StashKey["Guest"]()


def is_guest_item(item: pytest.Item) -> bool:
    """Whether this item runs in the virtual machine."""
    return item.path.is_relative_to(GUEST_TESTS)


class Guest:
    """The virtual machine of this session, and what it is still to run."""

    def __init__(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        self.config = config
        self.waiting = [item.nodeid for item in items]
        self.machine: Machine | None = None

    def run(self, item: pytest.Item) -> list[pytest.TestReport]:
        """The reports of one item."""
        assert self.waiting[0] == item.nodeid
        reports: list[pytest.TestReport] = []
        try:
            if self.machine is None:
                self.boot()
            self._collect(item, reports)
        except MachineError as error:
            log = self.machine.log() if self.machine else ""
            reports.append(lost(item, str(error), log))
            self.close()
        for report in reports:
            if report.failed and self.machine is not None:
                report.sections.append(("guest's console", self.machine.log()))
        self.waiting.pop(0)
        if not self.waiting and self.machine is not None:
            self.machine.wait_end(GRACE_S)
            self.close()
        return reports

    def boot(self) -> None:
        """A fresh guest, with everything that waits as its orders."""
        for attempt in range(1, BOOT_ATTEMPTS + 1):
            self.machine = Machine()
            try:
                self.machine.wait_ready()
                break
            except MachineError:
                if attempt == BOOT_ATTEMPTS:
                    raise
                self.close()
        options = ["-o", f"timeout={ITEM_TIMEOUT_S:g}", "-m", self.config.option.markexpr or ""]
        options += ["--capture", self.config.option.capture]  # with -s the guest's console has the words
        self.machine.send({"run": self.waiting, "options": options})

    def _collect(self, item: pytest.Item, reports: list[pytest.TestReport]) -> None:
        assert self.machine is not None
        while True:
            message = self.machine.receive(time_limit_s(item) + GRACE_S)
            if "report" in message:
                hook = self.config.hook
                report = hook.pytest_report_from_serializable(config=self.config, data=message["report"])
                if report.skipped:
                    report.longrepr = tuple(report.longrepr)  # JSON has none
                reports.append(report)
            elif "finish" in message:
                if message["finish"] != item.nodeid:
                    raise MachineError(f"the guest ran {message['finish']} when {item.nodeid} was wanted")
                return
            elif "end" in message:
                raise MachineError(f"pytest ended in the guest with {message['end']}")

    def close(self) -> None:
        """Ends the guest, if there is one."""
        if self.machine is not None:
            self.machine.close()
            self.machine = None


def time_limit_s(item: pytest.Item) -> float:
    """How long the item may take in the guest."""
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker is not None and marker.args else ITEM_TIMEOUT_S


def lost(item: pytest.Item, why: str, log: str) -> pytest.TestReport:
    """A failure of the guest itself."""
    text = f"{why}\n---- guest's console\n{log}" if log else why
    return pytest.TestReport(item.nodeid, item.location, dict.fromkeys(item.keywords, 1), "failed", text, "call")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the guest's items together and gives them one guest."""
    if IN_GUEST:
        return
    guests = [item for item in items if is_guest_item(item)]
    if not guests or config.option.collectonly:
        return
    reason = why_not()
    if reason and os.environ.get("MUSIDECAR_VM") == "required":
        raise pytest.UsageError(f"tests/vm: {reason}")
    if reason:
        for item in guests:
            item.add_marker(pytest.mark.skip(reason=reason))
        return
    items[:] = [item for item in items if not is_guest_item(item)] + guests
    config.stash[GUEST] = Guest(config, guests)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """A guest's item is run there."""
    guest = item.config.stash.get(GUEST, None)
    if guest is None or not is_guest_item(item):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in guest.run(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    """The guest keeps its own time; here only a guest that is silent is cut off (Guest._collect)."""
    return True if GUEST in item.config.stash and is_guest_item(item) else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Whatever happened, no guest stays."""
    guest = session.config.stash.get(GUEST, None)
    if guest is not None:
        guest.close()


def pytest_report_header() -> str | None:
    """Says in which world this is."""
    return "guest of tests/vm" if IN_GUEST else None


__all__ = ["TREE"]
