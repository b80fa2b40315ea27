"""A redis-server of the test's own, on a Unix socket in a directory of its own: the oracle of the RESP tests."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

ANSWER_TIMEOUT_S = 60.0


class PrivateRedis:
    """A running redis-server without persistence; `stop()` ends it and removes its directory."""

    def __init__(self, *options: str) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise FileNotFoundError("redis-server")
        self.directory = Path(tempfile.mkdtemp(prefix="resp-"))
        self.path = str(self.directory / "redis")
        self._process = subprocess.Popen(
            [
                binary,
                "--port",
                "0",
                "--unixsocket",
                self.path,
                "--save",
                "",
                "--dir",
                self.directory,
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        log = b""
        for line in self._process.stdout:
            log += line
            if b"ready to accept connections" in line.lower():
                return
        self.stop()
        raise RuntimeError(f"redis-server did not start:\n{log.decode()}")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        shutil.rmtree(self.directory)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(ANSWER_TIMEOUT_S)
        connection.connect(self.path)
        return connection

    def answer(self, data: bytes) -> bytes:
        """All that the server answers to `data` and the end of input behind it; for answers of up to 64 KB, as Redis
        drops what it has not written by then."""
        with self.connect() as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(1 << 16):
                    answer += part
        return answer

    def long_answer(self, data: bytes, last: bytes) -> bytes:
        """What the server answers to `data`, up to and with `last`."""
        with self.connect() as connection:
            connection.sendall(data)
            answer = bytearray()
            while not answer.endswith(last):
                part = connection.recv(1 << 16)
                assert part, "the server closed the connection"
                answer += part
        return bytes(answer)


@contextlib.contextmanager
def private_redis(*options: str) -> Iterator[PrivateRedis]:
    server = PrivateRedis(*options)
    try:
        yield server
    finally:
        assert os.path.isdir(server.directory)
        server.stop()
