"""A replicated NumPy array, by asyncio: python vector.py cluster.toml NODE ROUNDS. Every node adds its own vectors, all
at once; what one of them sees in the end is what all of them hold.

The array is of integers. Floats added one by one are the same on all nodes, too; a sum over an array may be taken in
another order by another processor or NumPy, and then differs in its last bit.
"""

import asyncio
import sys

import numpy as np

from musidecar.api import AsyncReplica

LENGTH = 8
TYPE = np.dtype("<i8")


class Vector:
    def __init__(self) -> None:
        self.total = np.zeros(LENGTH, TYPE)

    def apply(self, index: int, record: bytes) -> bytes:
        self.total += np.frombuffer(record, TYPE)
        return self.total.tobytes()

    def snapshot(self) -> bytes:
        return self.total.tobytes()

    def restore(self, data: bytes) -> None:
        self.total = np.frombuffer(data, TYPE).copy()


async def main(config: str, node: int, rounds: int) -> None:
    async with AsyncReplica(config, node, Vector()) as replica:
        own = np.arange(LENGTH, dtype=TYPE) * 10**node
        await asyncio.gather(*(replica.propose(own.tobytes()) for _ in range(rounds)))
        print("added", flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until the others have, too
        total = await replica.read(lambda vector: vector.total.copy())
        print(*total.tolist(), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
