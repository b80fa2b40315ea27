"""HERD (https://github.com/efficient/rdma_bench): a key-value cache that is spoken to by RDMA, behind a gate.

Nobody can connect to a HERD that runs, nor again to one that it was connected to. So a node starts a gate, a process of
this package, which is HERD's only client and its registry, and HERD with it.
"""

import sys

from musidecar.protocols import Kind

OPTIONS = ("answer_ms", "herd_main", "keys_max", "port_index", "registry", "start_ms", "workers")

# What a node starts is an interpreter that has this package; the gate starts HERD.
KIND = Kind(
    "herd", "HERD", sys.executable, "python3", frozenset(OPTIONS),
    program="herd_main", lone_address="registry", ready_s=180.0,
)  # fmt: skip
