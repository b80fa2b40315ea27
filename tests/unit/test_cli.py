"""The command line: help, exit codes, and errors that say what to do."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from musidecar import __version__, secret
from musidecar.config import ConfigError
from musidecar.directory import Lock, claim, default_directory, ensure_private, is_held

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_version_and_help(command: Command) -> None:
    assert command("--version").stdout == f"musidecar {__version__}\n"
    shown = command("--help").stdout
    verbs = "local demo run status switchover pause resume reinit member recover doctor bench completion"
    for verb in verbs.split():
        assert f"\n  {verb} " in shown
        assert command(verb, "--help").returncode == 0


def test_help_needs_neither_the_c_part_nor_pydantic() -> None:
    code = "import sys, musidecar.cli; print([m for m in ('pydantic', 'redis', 'rich.table') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_completes(command: Command, shell: str) -> None:
    assert "_MUSIDECAR_COMPLETE" in command("completion", shell).stdout


def test_completion_knows_the_verbs(command: Command) -> None:
    words = {"COMP_WORDS": "musidecar sta", "COMP_CWORD": "1", "_MUSIDECAR_COMPLETE": "bash_complete"}
    code = "from musidecar.cli import main; main(prog_name='musidecar')"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | words, capture_output=True, text=True)
    assert done.stdout == "plain,status\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["local", "--backend", "herd", "--binary", "main"], "HERD is spoken to by RDMA"),
        (["local", "--backend", "postgres"], "--backend postgres: unknown: this version works with redis"),
        (["demo", "--backend", "herd"], "HERD is spoken to by RDMA"),
        (["local", "--backend", "mysql"], "mysql: unknown"),
        (["local", "--fabric", "token-ring"], "token-ring: unknown"),
        (["local", "--nodes", "4"], "3 or 5"),
        (["local", "--port", "65535"], "node 3 would listen on 65537"),
        (["local", "--fix-port", "9880"], "--fix-port: is for --backend liquibook, and this is redis"),
        (["local", "--backend", "liquibook", "--fix-port", "65534"], "--fix-port 65534: node 3 would listen on 65536"),
        (["local", "--binary", "/nowhere/redis-server"], "not found on PATH: apt-get install redis-server"),
        (["local", "--frobnicate"], "No such option"),
        (["frobnicate"], "No such command"),
        (["run", "--node", "1"], "Missing option '--config'"),
        (["status", "--dir", "/nowhere/at/all"], "no cluster here: start one with `musidecar local --dir"),
        (["status", "--dir", "a", "--config", "b"], "not both"),
        (["doctor", "--config", "/nowhere.toml"], "/nowhere.toml: No such file"),
    ],
)
def test_wrong_usage_is_2_and_says_why(command: Command, arguments: list[str], expected: str) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_no_redis_server_on_path(command: Command, folder: Path) -> None:
    done = command("local", "--dir", folder / "c", PATH="/nowhere")
    assert done.returncode == 2
    assert "redis-server: not found on PATH" in done.stderr


@pytest.mark.parametrize("verb", ["local", "demo", "doctor", "bench failover", "bench proxy"])
def test_a_package_that_is_missing(command: Command, folder: Path, verb: str) -> None:
    package, missing = "liquibook", "No module named 'liquibook'"
    (folder / f"{package}.py").write_text(f"raise ModuleNotFoundError({missing!r}, name={package!r})")
    done = command(*verb.split(" "), "--backend", "liquibook", PYTHONPATH=str(folder))
    assert done.returncode == (1 if verb == "doctor" else 2)
    said = done.stdout + done.stderr
    assert f"no package {package}" in said
    assert "-m pip install 'musidecar[liquibook]'" in said
    assert "Traceback" not in said


def test_run_names_the_wrong_key(command: Command, folder: Path) -> None:
    path = folder / "cluster.toml"
    path.write_text('[cluster]\nname = "c"\nsecret_file = "s"\ndirectory = "d"\nsead = 1\n')
    done = command("run", "--config", path, "--node", "1")
    assert done.returncode == 2
    assert f"{path}: cluster.sead: unknown key: did you mean seed?" in done.stderr
    assert f"{path}: nodes: is missing" in done.stderr


def test_port_in_use_is_named(command: Command, folder: Path, free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port + 1)):
        done = command("local", "--dir", folder / "c", "--port", str(free_port))
    assert done.returncode == 2
    assert f"127.0.0.1:{free_port + 1}: Address already in use: choose other ports with --port" in done.stderr


def test_fix_port_in_use_is_named(command: Command, folder: Path, free_port: int) -> None:
    with socket.create_server(("127.0.0.1", free_port + 4)):
        ports = ("--port", str(free_port), "--fix-port", str(free_port + 3))
        done = command("local", "--backend", "liquibook", "--dir", folder / "c", *ports)
    assert done.returncode == 2
    assert f"127.0.0.1:{free_port + 4}: Address already in use: choose other ports with --fix-port" in done.stderr


def test_a_node_whose_fix_port_is_in_use_does_not_start(command: Command, folder: Path, free_port: int) -> None:
    backend = f'{{ kind = "liquibook", socket = "x.sock", spawn = true, fix_port = {free_port + 3} }}'
    nodes = "".join(
        f'[[nodes]]\nid = {i}\nclient = "127.0.0.1:{free_port + i - 1}"\n'
        f"backend = {backend.replace('x.sock', f'{i}.sock').replace(str(free_port + 3), str(free_port + 2 + i))}\n"
        for i in (1, 2, 3)
    )
    path = folder / "cluster.toml"
    path.write_text(f'[cluster]\nname = "c"\nsecret_file = "secret"\ndirectory = "run"\n{nodes}')
    secret.create(folder / "secret")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port + 3))
        taken.listen()
        done = command("run", "--config", path, "--node", "1")
        looked = command("doctor", "--config", path)
    assert done.returncode == 2
    assert f"cannot listen for FIX on 127.0.0.1:{free_port + 3}: Address already in use" in done.stderr
    assert looked.returncode == 1
    assert f"node 1 FIX: clients at 127.0.0.1:{free_port + 3}: Address already in use" in looked.stdout
    assert "choose another nodes[0].backend.fix_port" in looked.stdout


def test_doctor_names_the_port_and_the_remedy(command: Command, free_port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        done = command("doctor", "--port", str(free_port))
    assert done.returncode == 1
    assert f"clients 127.0.0.1:{free_port}: Address already in use" in done.stdout
    assert "choose other ports" in done.stdout


# ---- the folder --------------------------------------------------------------------------------------------------


def test_default_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    assert default_directory() == folder / "musidecar"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_directory() == Path(f"/tmp/musidecar-{os.geteuid()}")


def test_folder_is_made_private(folder: Path) -> None:
    path = folder / "a" / "b"
    ensure_private(path)
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o750)
    with pytest.raises(ConfigError, match="chmod 700"):
        ensure_private(path)
    (folder / "file").touch()
    with pytest.raises(ConfigError, match="is not a folder"):
        ensure_private(folder / "file")
    with pytest.raises(ConfigError, match="cannot make this folder"):
        ensure_private(Path("/proc/musidecar"))


def test_a_live_cluster_is_refused_and_a_dead_ones_folder_reclaimed(folder: Path) -> None:
    (folder / "c").mkdir(mode=0o755)
    lock = claim(folder / "c")
    with pytest.raises(ConfigError, match=rf"a cluster is running here \(pid {os.getpid()}\)"):
        claim(folder / "c")
    for name in ("cluster.toml", "secret", "1.log", "node-1.lock"):
        (folder / "c" / name).touch()
    (folder / "c" / "redis-1").mkdir()
    (folder / "c" / "notes.txt").touch()
    lock.release()
    with claim(folder / "c"):
        assert sorted(path.name for path in (folder / "c").iterdir()) == ["lock", "notes.txt"]


def test_a_folder_with_other_files_is_left_alone(folder: Path) -> None:
    (folder / "1.log").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        claim(folder)
    assert (folder / "1.log").read_text() == "mine"


def test_a_node_that_outlived_its_cluster_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musidecar.directory._DYING_S", 0.05)
    claim(folder).release()
    with Lock(folder / "node-2.lock") as lock:
        assert lock.acquire()
        with pytest.raises(ConfigError, match=r"node 2 of an earlier cluster is still running \(pid \d+\)"):
            claim(folder)
    claim(folder).release()


def test_a_lock_goes_with_its_process(folder: Path) -> None:
    path = folder / "lock"
    code = (
        "import pathlib, sys; from musidecar.directory import Lock; lock = Lock(pathlib.Path(sys.argv[1]));"
        "print(lock.acquire(), flush=True); sys.stdin.read()"
    )
    keeper = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert keeper.stdout is not None
    assert keeper.stdout.readline() == "True\n"
    assert is_held(path)
    assert not Lock(path).acquire()
    keeper.kill()
    keeper.communicate()
    assert not is_held(path)


# ---- children ----------------------------------------------------------------------------------------------------


def test_children_die_with_a_killed_parent() -> None:
    """kill -9 of the parent ends the child: the child's end of a pipe closes."""
    child = "import os, sys, time; from musidecar.process import die_with_parent; die_with_parent(int(sys.argv[1]));"
    child += "print(os.getpid(), flush=True); time.sleep(600)"
    parent = (
        "import os, subprocess, sys, time;"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())]); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, child], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child_pid = int(process.stdout.readline())
    os.kill(child_pid, 0)
    process.kill()
    assert process.stdout.read() == ""  # end of file: nobody holds the pipe any more
    process.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child_pid}").exists():  # until whoever adopts orphans here has collected it
        state = Path(f"/proc/{child_pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "Z" or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    else:
        return
    assert state == "Z"


def test_a_child_whose_parent_is_gone_ends_at_once() -> None:
    code = "from musidecar.process import die_with_parent; die_with_parent(1 << 30); print('lives')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")


def test_how_it_ended() -> None:
    from musidecar.process import how_it_ended

    assert how_it_ended(-signal.SIGKILL) == "killed by SIGKILL"
    assert how_it_ended(3) == "exit code 3"
