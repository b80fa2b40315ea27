"""A replicated counter. In three terminals: python counter.py cluster.toml 1 (2, 3); then type numbers anywhere."""

import sys

from musidecar.api import Replica


class Counter:
    value = 0

    def apply(self, index: int, record: bytes) -> bytes:
        if record.strip().isdigit():
            self.value += int(record)
        return b"%d" % self.value

    def snapshot(self) -> bytes:
        return b"%d" % self.value

    def restore(self, data: bytes) -> None:
        self.value = int(data)


if __name__ == "__main__":
    with Replica(sys.argv[1], node=int(sys.argv[2]), machine=Counter()) as replica:
        print("ready", flush=True)
        for line in sys.stdin.buffer:
            print(replica.propose(line).decode(), flush=True)
        print("in the end:", replica.read(lambda counter: counter.value), flush=True)
