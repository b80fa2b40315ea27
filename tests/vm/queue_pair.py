"""A bare RC queue pair by pyverbs: what anybody with an RDMA card and the numbers of ours can do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from musidecar import pyverbs

pyverbs.load()

from pyverbs import enums as e  # noqa: E402
from pyverbs.addr import GID, AHAttr, GlobalRoute  # noqa: E402
from pyverbs.cq import CQ  # noqa: E402
from pyverbs.device import Context  # noqa: E402
from pyverbs.mr import MR  # noqa: E402
from pyverbs.pd import PD  # noqa: E402
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr  # noqa: E402
from pyverbs.wr import SGE, SendWR  # noqa: E402

GID_INDEX = 1  # RoCE v2 over IPv4, on rxe
PORT = 1
PSN = 7
REFUSALS = (e.IBV_WC_REM_INV_REQ_ERR, e.IBV_WC_REM_ACCESS_ERR)  # without write access: rxe's word, and the cards'
EVERYTHING = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ


@dataclass(frozen=True)
class Place:
    """Where a queue pair can be reached, and the memory to write there."""

    qpn: int
    gid: str
    psn: int = PSN
    address: int = 0
    rkey: int = 0


class Peer:
    """A device opened, a region of it registered for everybody, and one RC queue pair."""

    def __init__(self, device: str, region_bytes: int = 4096, access: int = EVERYTHING) -> None:
        self.access = access
        self.context: Any = Context(name=device)
        self.pd: Any = PD(self.context)
        self.cq: Any = CQ(self.context, 64)
        self.region: Any = MR(self.pd, region_bytes, EVERYTHING)
        capacity = QPCap(max_send_wr=16, max_recv_wr=1, max_inline_data=64)
        init = QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self.cq, rcq=self.cq, cap=capacity, sq_sig_all=1)
        attr = QPAttr(port_num=PORT)
        attr.qp_access_flags = access
        self.qp: Any = QP(self.pd, init, attr)

    @property
    def place(self) -> Place:
        gid = str(self.context.query_gid(PORT, GID_INDEX))
        return Place(self.qp.qp_num, gid, PSN, self.region.buf, self.region.rkey)

    def connect(self, other: Place, psn: int = PSN) -> None:
        """INIT to RTS towards the other end."""
        route = GlobalRoute(dgid=GID(other.gid), sgid_index=GID_INDEX)
        attr = QPAttr(port_num=PORT)
        attr.path_mtu, attr.dest_qp_num, attr.rq_psn, attr.sq_psn = e.IBV_MTU_1024, other.qpn, other.psn, psn
        attr.max_dest_rd_atomic = attr.max_rd_atomic = 1
        attr.min_rnr_timer, attr.timeout, attr.retry_cnt, attr.rnr_retry = 12, 10, 2, 2
        attr.ah_attr = AHAttr(gr=route, is_global=1, port_num=PORT)
        attr.qp_access_flags = self.access
        self.qp.to_rts(attr)

    def write(self, data: bytes, address: int, rkey: int, timeout_s: float = 10.0) -> int:
        """RDMA WRITE; the completion's status (enums.IBV_WC_...). TimeoutError when there is none."""
        self.region.write(data, len(data))
        return self._post(e.IBV_WR_RDMA_WRITE, len(data), address, rkey, timeout_s)

    def read(self, length: int, address: int, rkey: int, timeout_s: float = 10.0) -> tuple[int, bytes]:
        """RDMA READ; the completion's status and what came."""
        status = self._post(e.IBV_WR_RDMA_READ, length, address, rkey, timeout_s)
        return status, bytes(self.region.read(length, 0))

    def _post(self, opcode: int, length: int, address: int, rkey: int, timeout_s: float) -> int:
        piece = SGE(self.region.buf, length, self.region.lkey)
        work = SendWR(opcode=opcode, num_sge=1, sg=[piece], send_flags=e.IBV_SEND_SIGNALED)
        work.set_wr_rdma(rkey, address)
        self.qp.post_send(work)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            count, done = self.cq.poll(1)
            if count:
                return int(done[0].status)
        raise TimeoutError("no completion")

    def close(self) -> None:
        for part in (self.qp, self.region, self.cq, self.pd, self.context):
            part.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
