"""A server of the test's own, on a Unix socket in a directory of its own: the oracle of a protocol's tests."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

ANSWER_TIMEOUT_S = 60.0


class PrivateServer:
    """A running server; `stop()` ends it and removes its directory. arguments: of the socket's path."""

    def __init__(self, program: str, arguments: Callable[[Path], list[str]]) -> None:
        binary = shutil.which(program)
        if binary is None:
            raise FileNotFoundError(program)
        self.directory = Path(tempfile.mkdtemp(prefix=f"{program}-"))
        self.path = str(self.directory / "socket")
        self.process = subprocess.Popen(
            [binary, *arguments(Path(self.path))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
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
        """All that the server answers to `data` and the end of input behind it; for answers of up to 64 KB: some
        servers drop what they have not written by then."""
        with self.connect() as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(1 << 16):
                    answer += part
        return answer
