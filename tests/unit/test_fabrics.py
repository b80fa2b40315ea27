"""What two nodes on shared memory say of each other when they cannot work together."""

import os
from pathlib import Path

import pytest

from musidecar.config import load
from musidecar.engine import replica_config
from musidecar.fabrics import ShmFabric
from musidecar.formation import Unfit


def shm(folder: Path, node: int, ring: str) -> ShmFabric:
    path = folder / f"{node}.toml"
    node_toml = '[[nodes]]\nid={0}\nclient="127.0.0.1:700{0}"\nbackend={{socket="{0}.sock"}}\n'
    nodes = "".join(node_toml.format(i) for i in (1, 2, 3))
    path.write_text(f'[cluster]\nname="x"\nsecret_file="secret"\ndirectory="."\n[limits]\nring_bytes="{ring}"\n{nodes}')
    config = load(path)
    return ShmFabric(config, node, replica_config(config, node, b""))


@pytest.mark.parametrize(("ring", "is_fit"), [("8 MiB", False), ("4 MiB", True)])
def test_nodes_with_rings_of_two_sizes_are_told_what_to_do(tmp_path: Path, ring: str, is_fit: bool) -> None:
    one, two = shm(tmp_path, 1, "4 MiB"), shm(tmp_path, 2, ring)
    try:
        offer, fds = two.offer(2)
        copies = [os.dup(fd) for fd in fds]
        if is_fit:
            one.attach(2, offer, copies, os.getpid())
        else:
            with pytest.raises(Unfit, match=r"node 2's log does not fit.*one configuration file"):
                one.attach(2, offer, copies, os.getpid())
    finally:
        one.close()
        two.close()
