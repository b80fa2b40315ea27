"""The data plane, written in C and bound with cffi: `from musidecar._ffi import ffi, lib`. The contract is cdef.txt."""

from musidecar._ffi._core import ffi, lib

__all__ = ["ffi", "lib"]
