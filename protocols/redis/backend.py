"""Redis as the control plane sees it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from musidecar.protocols.backend import (
    Ask,
    Backend,
    Check,
    Claim,
    Copy,
    Held,
    Points,
    Prepared,
    Wanted,
)

from . import KIND, backlog, checks, commands, driver, keeping, rdb
from .admin import Connection


class Redis(Backend):
    """One Redis."""

    kind = KIND
    keeps_data = True

    @classmethod
    def check_binary(cls, binary: str) -> Check:
        return checks.server_program(binary)

    def check_running(self, answer_s: float, brings_data: bool, runs: bool, replace_line: str) -> Iterator[Check]:
        return checks.running(self.address, answer_s, self.wanted.timeout_ms, brings_data, runs, replace_line)

    def start(self) -> None:
        wanted = self.wanted
        if not wanted.spawn:
            driver.attach(self.address)
            return
        place = Path(wanted.address.path)
        self.server = driver.spawn(wanted.home, place, binary=wanted.binary, password=wanted.address.password)
        self.address = self.server.address

    def look(self, timeout_s: float) -> None:
        driver.attach(self.address, timeout_s)

    def prepare(self, ask: Ask) -> driver.Prepared:
        return driver.prepare(
            self.address, token=self.wanted.token, backend_timeout_ms=self.wanted.timeout_ms, joining=ask.joining,
            rejoins=ask.rejoins, follows=ask.follows, replace_data=ask.replace_data, replace_line=ask.replace_line,
        )  # fmt: skip

    def local_pid(self, told: int) -> int | None:
        return driver.local_pid(self.address, told)

    def table(self, prepared: Prepared) -> Any:
        assert isinstance(prepared, driver.Prepared)
        return commands.command_table(commands.rows(prepared.commands))

    def engine_fields(self, prepared: Prepared) -> dict[str, Any]:
        assert isinstance(prepared, driver.Prepared)
        return {
            "databases": prepared.databases,
            "backend_version": prepared.version.encode(),
            "bulk_bytes_max": prepared.bulk_bytes_max,
            "password_needed": prepared.password_needed,
        }

    def copy(self, at_least: int, wait_s: float, points: Points) -> Copy:
        return rdb.capture(self.address, at_least, wait_s=wait_s)

    def changes(self, after: int, until: int, wait_s: float) -> Copy:
        return backlog.take(self.address, after, until, wait_s=wait_s)

    def count(self) -> int:
        """Keys and function libraries."""
        with Connection(self.address) as connection:
            return driver.count_keys(connection) + driver.count_functions(connection)

    def outlived(self) -> bool:
        return self.server is None and driver.knows(self.address, self.wanted.token)

    def disown(self) -> None:
        driver.forget(self.address, self.wanted.token)

    def restore(self, saved: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.link(saved, self.wanted.home / "dump.rdb")

    def last_look(self, known: Mapping[str, Any], save_to: Path | None) -> tuple[Held | None, str]:
        return keeping.last_look(known, self.address, save_to)

    def judge(self, held: Held) -> str | None:
        return keeping.judge(held, self.address)

    def claim(self, held: Held | None) -> Claim | None:
        return keeping.claim(self.address, held)

    def refuses(self) -> str | None:
        return driver.would_refuse(self.address)


BACKEND = Redis


def make(wanted: Wanted) -> Redis:
    """A Redis that is not there yet."""
    return Redis(wanted)
