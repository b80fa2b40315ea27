"""The cluster's secret: a file of its own, for its owner only, by which mesh links recognise members.

The file holds 64 hexadecimal digits (32 random bytes) and a newline. Whoever can read it is a member.
"""

import os
import secrets
import stat
from pathlib import Path

from musidecar.config import ConfigError

SECRET_BYTES = 32


def create(path: Path) -> None:
    """Write a new secret, readable by its owner only. FileExistsError when there is one."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(secrets.token_hex(SECRET_BYTES) + "\n")
        file.flush()
        os.fsync(fd)


def load(path: Path) -> bytes:
    """The secret's 32 bytes. ConfigError when it is missing, malformed, another user's or public."""
    make = f"make one with: (umask 077; openssl rand -hex {SECRET_BYTES} > {path})"
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            text = file.read(4096).strip()
    except FileNotFoundError:
        raise ConfigError([f"{path}: no secret file: {make}"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot read the secret: {error.strerror}"]) from None
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigError([f"{path}: the secret belongs to user {found.st_uid}, not to {os.geteuid()}"])
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError([f"{path}: others may read the secret: chmod 600 {path}"])
    try:
        value = bytes.fromhex(text.decode("ascii"))
    except (UnicodeDecodeError, ValueError):
        value = b""
    if len(value) != SECRET_BYTES:
        raise ConfigError([f"{path}: not {2 * SECRET_BYTES} hexadecimal digits: {make}"])
    return value
