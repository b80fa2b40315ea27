"""A memcached of the test's own: the oracle of the protocol's tests."""

import contextlib
import os
import pwd
import time
from collections.abc import Iterator
from pathlib import Path

from private_server import PrivateServer

START_TIMEOUT_S = 30.0


class PrivateMemcached(PrivateServer):
    """Of `item_bytes_max` (-I).

    `no_threads`: none that looks after the LRU, which now and then holds an item, so that a number that gets shorter is
    not filled up with blanks.
    """

    def __init__(self, item_bytes_max: int = 1 << 20, memory_mb: int = 64, no_threads: bool = False) -> None:
        options = "no_modern" if no_threads else "slab_automove=0,no_slab_reassign"
        if item_bytes_max < 1 << 19:
            options += f",slab_chunk_max={item_bytes_max}"  # half a megabyte by itself

        def arguments(path: Path) -> list[str]:
            words = ["-s", str(path), "-U", "0", "-m", str(memory_mb), "-I", str(item_bytes_max), "-t", "1"]
            return [*words, "-o", options] + (["-u", pwd.getpwuid(0).pw_name] if os.geteuid() == 0 else [])

        super().__init__("memcached", arguments)
        until = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                self.connect().close()
                return
            if self.process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError("memcached did not start")
            time.sleep(0.005)


@contextlib.contextmanager
def private_memcached(item_bytes_max: int = 1 << 20, memory_mb: int = 64) -> Iterator[PrivateMemcached]:
    server = PrivateMemcached(item_bytes_max, memory_mb)
    try:
        yield server
    finally:
        server.stop()
