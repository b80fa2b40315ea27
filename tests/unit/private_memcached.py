"""A memcached of the test's own, on a Unix socket in a directory of its own: the oracle of the protocol's tests."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ANSWER_TIMEOUT_S = 10.0
START_TIMEOUT_S = 30.0


class PrivateMemcached:
    """A running memcached of `item_bytes_max` (-I); `stop()` ends it and removes its directory.

    `no_threads`: none that looks after the LRU, which now and then holds an item, so that a number that gets shorter is
    not filled up with blanks.
    """

    def __init__(self, item_bytes_max: int = 1 << 20, memory_mb: int = 64, no_threads: bool = False) -> None:
        binary = shutil.which("memcached")
        if binary is None:
            raise FileNotFoundError("memcached")
        self.directory = Path(tempfile.mkdtemp(prefix="memcached-"))
        self.path = str(self.directory / "memcached")
        command = [binary, "-s", self.path, "-U", "0", "-m", str(memory_mb), "-I", str(item_bytes_max), "-t", "1"]
        options = "no_modern" if no_threads else "slab_automove=0,no_slab_reassign"
        if item_bytes_max < 1 << 19:
            options += f",slab_chunk_max={item_bytes_max}"  # half a megabyte by itself
        command += ["-o", options]
        if os.geteuid() == 0:
            command += ["-u", pwd.getpwuid(0).pw_name]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                self.connect().close()
                return
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError("memcached did not start")
            time.sleep(0.005)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
        shutil.rmtree(self.directory)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(ANSWER_TIMEOUT_S)
            connection.connect(self.path)
        except OSError:
            connection.close()
            raise
        return connection

    def answer(self, data: bytes) -> bytes:
        """All that the server answers to `data` and the end of input behind it."""
        with self.connect() as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(1 << 16):
                    answer += part
        return answer


@contextlib.contextmanager
def private_memcached(item_bytes_max: int = 1 << 20, memory_mb: int = 64) -> Iterator[PrivateMemcached]:
    server = PrivateMemcached(item_bytes_max, memory_mb)
    try:
        yield server
    finally:
        server.stop()
