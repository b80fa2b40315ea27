"""What can be wrong about a Replica before it runs, and what is said of it; what is said after it has ended."""

from __future__ import annotations

import asyncio
import re
import subprocess
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from musidecar.api import AsyncReplica, Closed, ConfigError, Replica
from musidecar.bench.machines import write_config
from musidecar.config import load, parse
from musidecar.protocols.backend import BackendError
from musidecar.protocols.own.replicated import Replicated
from musidecar.protocols.own.server import Ended, Server

Command = Callable[..., subprocess.CompletedProcess[str]]
Kind = type[Replica] | type[AsyncReplica]


class Machine:
    def apply(self, index: int, record: bytes) -> bytes:
        return b""

    def snapshot(self) -> bytes:
        return b""

    def restore(self, data: bytes) -> None:
        pass


class NoSnapshot:
    restore = None

    def apply(self, index: int, record: bytes) -> bytes:
        return b""


@pytest.fixture
def config(folder: Path, free_port: int) -> Path:
    return write_config(folder, free_port)


@pytest.mark.parametrize("kind", [Replica, AsyncReplica])
@pytest.mark.parametrize(
    ("machine", "said"),
    [
        (NoSnapshot(), r"NoSnapshot has no snapshot\(\) and no restore\(\): a machine has apply\(index, record\), "),
        (Machine, r"machine is the class Machine, not one of its objects: write Machine\(\)"),
        (None, r"NoneType has no apply\(\)"),
    ],
)
def test_what_is_no_machine(config: Path, kind: Kind, machine: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        kind(config, 1, machine)


@pytest.mark.parametrize("kind", [Replica, AsyncReplica])
def test_a_configuration_that_cannot_be_used(folder: Path, config: Path, kind: Kind) -> None:
    with pytest.raises(ConfigError, match=r"missing.toml: No such file"):
        kind(folder / "missing.toml", 1, Machine())
    with pytest.raises(ConfigError, match=r"cluster.toml: no node 4: it has 1, 2, 3"):
        kind(str(config), 4, Machine())
    redis = folder / "redis.toml"
    redis.write_text(config.read_text().replace('"own"', '"redis"'))
    with pytest.raises(ConfigError, match=r'redis.toml: nodes\[0\].backend.kind: redis: .* write kind = "own"'):
        kind(load(redis), 1, Machine())
    spawned = folder / "spawned.toml"
    spawned.write_text(config.read_text().replace('-1.sock"', '-1.sock", spawn = true'))
    with pytest.raises(ConfigError, match=r"nodes\[0\].backend.spawn: is for a server; kind = 'own' is a part of your"):
        kind(spawned, 1, Machine())


def test_before_it_is_started_and_after_it_was_closed(config: Path) -> None:
    replica = Replica(config, 1, Machine())
    with pytest.raises(Closed, match=r"was not started: use it in a `with`, or call start\(\)"):
        replica.propose(b"")
    replica.close()
    replica.close()
    assert list(replica.events()) == [replica.leadership]
    with pytest.raises(Closed, match="closed"):
        replica.start()
    with pytest.raises(Closed):
        replica.read(lambda machine: machine)


def test_the_same_of_one_that_is_awaited(config: Path) -> None:
    async def main() -> None:
        replica = AsyncReplica(config, 1, Machine())
        with pytest.raises(Closed, match="was not started"):
            await replica.propose(b"")
        await replica.close()
        with pytest.raises(Closed):
            await replica.start()

    asyncio.run(main())


@pytest.mark.parametrize("wrong", ["secret", "port", "socket"])
def test_what_start_finds_out(config: Path, folder: Path, free_port: int, wrong: str) -> None:
    said = {"secret": "others may read the secret", "port": "cannot listen for clients", "socket": "is in use"}[wrong]
    server = Server(folder / "machine-1.sock", Replicated(Machine()), lambda error: None)
    if wrong == "secret":
        (folder / "secret").chmod(0o644)
    elif wrong == "socket":
        server.start()
    text = config.read_text()
    if wrong == "port":
        config.write_text(text.replace(f"127.0.0.1:{free_port}", f"192.0.2.1:{free_port}"))
    with pytest.raises((ConfigError, BackendError), match=said):
        with Replica(config, 1, Machine()):
            pass
    server.stop()
    server.close()


def test_the_same_node_twice(config: Path) -> None:
    first, second = Replica(config, 1, Machine()), Replica(config, 1, Machine())

    def start() -> None:
        with pytest.raises(Closed):
            first.start()

    waits = threading.Thread(target=start)  # for two other nodes
    waits.start()
    try:
        while not (config.parent / "machine-1.sock").exists():
            waits.join(0.01)
        with pytest.raises(ConfigError, match=r"cluster.toml: node 1 is running already \(pid \d+\)"):
            second.start()
    finally:
        first.close()
        waits.join()


def test_nobody_else_starts_a_machine(config: Path, command: Command) -> None:
    ran = command("run", "--config", config, "--node", "1")
    assert ran.returncode == 1
    assert "served by the program that makes a musidecar.api.Replica (docs/api.md)" in ran.stderr
    local = command("local", "--backend", "own")
    assert local.returncode == 2
    assert "--backend own: your own program serves it, and runs its node, too: docs/api.md" in local.stderr
    doctor = command("doctor", "--config", config)
    assert "served by the program that makes a musidecar.api.Replica" in " ".join(doctor.stdout.split())
    status = command("status", "--config", config)
    assert "Traceback" not in status.stderr + doctor.stderr


def test_a_machine_that_has_ended_answers_nobody(folder: Path) -> None:
    server = Server(folder / "machine.sock", Replicated(Machine()), lambda error: None)
    server.start()
    assert (folder / "machine.sock").stat().st_mode & 0o777 == 0o600
    assert server.call(lambda state: state.applied) == 0
    with pytest.raises(ZeroDivisionError):
        server.call(lambda state: 1 // state.applied)
    came: list[BaseException | None] = []
    server.when(1 << 60, lambda machine: machine, lambda result, error: came.append(error))
    server.stop()
    server.close()
    assert isinstance(came[0], Ended) and not server.alive and not (folder / "machine.sock").exists()
    with pytest.raises(Ended):
        server.call(lambda state: state.applied)


def test_the_documentation_shows_the_examples_as_they_are(root: Path) -> None:
    text = (root / "docs/api.md").read_text()
    code, toml = (
        re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[0] for kind in ("python", "toml")
    )
    example = (root / "examples/counter.py").read_text()
    assert example.endswith(code) and example.removesuffix(code).startswith('"""A replicated counter.')
    config = parse(tomllib.loads(toml), root / "docs" / "cluster.toml")
    assert config.kind == "own" and len(config.nodes) == 3
