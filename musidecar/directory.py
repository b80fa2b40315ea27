"""The folder where the nodes of one host meet: private to its owner, and locked by whoever uses it.

`lock` is held by `musidecar local` for as long as its cluster lives, `node-<id>.lock` by each running node. The locks
are flock()s: the kernel drops them with the process, so a folder left by a dead cluster is never taken for a live one.
"""

import errno
import fcntl
import os
import shutil
import stat
import time
from pathlib import Path
from typing import Self

from musidecar import protocols
from musidecar.config import ConfigError

# What a cluster leaves in its folder: all that reclaiming one removes.
_HOMES = tuple(f"{name}-*" for name in protocols.names())  # of the nodes' servers
_LEFT = ("*.log", "*.sock", "*.rdb", "*.lock", *_HOMES, "mesh", "cluster.toml", "secret")
_KEPT = "kept.rdb"  # what the servers of a cluster that was stopped in order held: never removed
_DYING_S = 5.0  # the nodes of a killed cluster are gone by then


def node_lock(directory: Path, node_id: int) -> Path:
    """The file whose lock a running node holds."""
    return directory / f"node-{node_id}.lock"


def default_directory() -> Path:
    """Where `local` puts its cluster and `status` looks for one, unless told: one place for each user."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime, "musidecar")
    return Path(f"/tmp/musidecar-{os.geteuid()}")


def ensure_private(path: Path) -> None:
    """Make the folder (0700) if it is missing. ConfigError unless it is then its owner's only, and the owner is us."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except FileExistsError:
        raise ConfigError([f"{path}: is not a folder"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot make this folder: {error.strerror}: choose another"]) from None
    if found.st_uid != os.geteuid():
        raise ConfigError([f"{path}: belongs to user {found.st_uid}, not to {os.geteuid()}: choose another folder"])
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError([f"{path}: others may enter this folder: chmod 700 {path}"])
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError([f"{path}: cannot write here: choose another folder"])


class Lock:
    """An exclusive lock on a file, for as long as this process lives or until `release()`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def acquire(self, wait_s: float = 0.0) -> bool:
        """True once the lock is held; False when another keeps it for `wait_s`. OSError when it cannot be made."""
        deadline = time.monotonic() + wait_s
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno == errno.EWOULDBLOCK and time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                os.close(fd)
                if error.errno == errno.EWOULDBLOCK:
                    return False
                raise
            break
        os.ftruncate(fd, 0)
        os.write(fd, b"%d\n" % os.getpid())
        self._fd = fd
        return True

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def is_held(path: Path) -> bool:
    """Does a living process hold the lock? False also when it cannot be told."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    return False


def holder(path: Path) -> str:
    """Who wrote the lock file last, for a message: `"pid 4711"`, or `"another process"`."""
    try:
        text = path.read_text().strip()
    except OSError:
        text = ""
    return f"pid {text}" if text.isdigit() else "another process"


def claim(path: Path) -> Lock:
    """Take a folder for a cluster: made if missing, emptied if a dead cluster left it that kept no data.

    ConfigError when a live cluster has it, when it is not ours, or when it holds anything no cluster has put there.
    """
    lock_file = path / "lock"
    try:
        fresh = not path.is_dir() or not any(path.iterdir())
        if fresh and path.is_dir() and path.stat().st_uid == os.geteuid():
            path.chmod(0o700)
    except OSError as error:
        raise ConfigError([f"{path}: cannot use this folder: {error.strerror}: choose another"]) from None
    ensure_private(path)
    if not fresh and not lock_file.is_file():
        raise ConfigError([f"{path}: holds other files: give a new or an empty folder with --dir"])
    lock = Lock(lock_file)
    try:
        if not lock.acquire():
            raise ConfigError(
                [f"{path}: a cluster is running here ({holder(lock_file)}): stop it, or give another folder with --dir"]
            )
        _wait_for_nodes(path)
        _remove_leftovers(path, lock_file)
    except OSError as error:
        lock.release()
        raise ConfigError([f"{path}: cannot write here: {error.strerror}: choose another folder"]) from None
    except ConfigError:
        lock.release()
        raise
    return lock


def _wait_for_nodes(path: Path) -> None:
    """A killed cluster's nodes die with it, a moment later; one started by hand lives on."""
    for file in sorted(path.glob("node-*.lock")):
        with Lock(file) as lock:
            if not lock.acquire(_DYING_S):
                name = file.stem.replace("-", " ")
                raise ConfigError([f"{path}: {name} of an earlier cluster is still running ({holder(file)}): stop it"])


def keeps_data(path: Path) -> bool:
    """Has a cluster in this folder kept data for its next start?"""
    return any(file for home in _HOMES for file in path.glob(f"{home}/{_KEPT}"))


def _remove_leftovers(path: Path, lock_file: Path) -> None:
    for pattern in _LEFT if not keeps_data(path) else ("*.sock", "mesh"):
        for file in path.glob(pattern):
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            elif file != lock_file:
                file.unlink(missing_ok=True)
    for file in path.iterdir():
        if stat.S_ISSOCK(file.lstat().st_mode):
            file.unlink(missing_ok=True)
