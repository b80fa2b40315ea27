"""The pieces a request passes through, one by one, with pytest-benchmark: `python -m pytest bench`.

Times include the call from Python through cffi (`test_call` is that alone). For the whole path there is
`musidecar bench proxy`, for the log alone `musidecar bench replicate`.
"""

from __future__ import annotations

from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from musidecar._ffi import ffi, lib
from musidecar.workload import encode

SET = encode((b"SET", b"key:000000012345", b"x" * 64))
SALT = 0x1234


def test_call(benchmark: BenchmarkFixture) -> None:
    assert benchmark(lib.record_span, 64) > 64


@pytest.mark.parametrize("pipeline", [1, 16])
def test_frame_requests(benchmark: BenchmarkFixture, pipeline: int) -> None:
    data = SET * pipeline
    buffer: Any = ffi.from_buffer("uint8_t[]", data)
    request = ffi.new("struct resp_request *")
    limits = ffi.new("struct resp_limits *", {"bulk_bytes_max": 1 << 29, "request_bytes_max": 1 << 30,
                                               "inline_bytes_max": 1 << 16, "authenticated": True})

    def frame_all() -> int:
        at = 0
        while at < len(data):
            lib.resp_request_reset(request)
            status = lib.resp_request_feed(request, buffer + at, len(data) - at, limits)
            assert status == lib.RESP_DONE
            at += request.length
        return at

    assert benchmark(frame_all) == len(data)


@pytest.mark.parametrize("payload_bytes", [64, 1024, 128 * 1024])
def test_seal_a_record(benchmark: BenchmarkFixture, payload_bytes: int) -> None:
    slot = ffi.new("uint64_t[]", lib.record_span(payload_bytes) // 8 + 8)
    header = ffi.cast("struct record_header *", slot)
    header.index, header.ballot, header.length, header.kind = 1, 1, payload_bytes, lib.RECORD_COMMAND
    benchmark(lib.record_seal, header, SALT)
