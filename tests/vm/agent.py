"""Runs in the guest: pytest, on the tests that the host names, with every report sent back as it comes.

Messages to the host, one line of JSON each: {"hello"}, then for each test {"start": id}, {"report": ...} for each phase
and {"finish": id}; {"end": exit status} last. From the host: {"run": [ids], "options": [...]}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.vm import hosts

PORT = "musidecar"


class Port:
    """The virtio port that leads to the host."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]

    def receive(self) -> dict[str, Any]:
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self._fd, 65536)
        message: dict[str, Any] = json.loads(line)
        return message


def find_port() -> str:
    """The device of the port with our name."""
    for name in Path("/sys/class/virtio-ports").glob("*/name"):
        if name.read_text().strip() == PORT:
            return f"/dev/{name.parent.name}"
    raise FileNotFoundError(f"no virtio port {PORT}")


class Reporter:
    """Sends what pytest reports to the host."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.config: pytest.Config | None = None

    def pytest_configure(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.port.send({"start": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        assert self.config is not None
        self.port.send({"report": self.config.hook.pytest_report_to_serializable(config=self.config, report=report)})

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.port.send({"finish": nodeid})


def main() -> int:
    port = Port(find_port())
    hosts.add_lone_device()  # before any test is imported: some ask at once whether there are verbs
    port.send({"hello": os.uname().release, "uptime_s": time.clock_gettime(time.CLOCK_BOOTTIME)})
    order = port.receive()
    # Only what is needed: pytest-benchmark asks git about the tree at every start, which over 9p takes a minute.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ["-p", "pytest_timeout", "-p", "_hypothesis_pytestplugin"]
    options += ["-p", "no:cacheprovider", "-q", "--no-header", "--no-summary", "--color=no", *order["options"]]
    status = pytest.main([*options, *order["run"]], plugins=[Reporter(port)])
    port.send({"end": int(status)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
