"""The data plane, in C, bound with cffi: `from musidecar._ffi import ffi, lib`. Contract: cdef.txt."""

from musidecar._ffi._core import ffi, lib

__all__ = ["ffi", "lib"]
