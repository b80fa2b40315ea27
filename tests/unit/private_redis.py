"""A redis-server of the test's own: the oracle of the RESP tests."""

import contextlib
from collections.abc import Iterator

from private_server import PrivateServer


class PrivateRedis(PrivateServer):
    """Without persistence."""

    def __init__(self, *options: str) -> None:
        super().__init__(
            "redis-server",
            lambda path: ["--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(path.parent), *options],
        )
        assert self.process.stdout is not None
        log = b""
        for line in self.process.stdout:
            log += line
            if b"ready to accept connections" in line.lower():
                return
        self.stop()
        raise RuntimeError(f"redis-server did not start:\n{log.decode()}")

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
        assert server.directory.is_dir()
        server.stop()
