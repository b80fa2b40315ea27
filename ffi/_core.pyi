"""Types of the compiled module. Its functions are declared in cdef.txt; cffi checks their arguments at run time."""

from typing import Any

from cffi import FFI

ffi: FFI
lib: Any
