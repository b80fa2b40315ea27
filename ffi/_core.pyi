"""Types of the compiled module. cdef.txt declares its functions; cffi checks their arguments at run time."""

from typing import Any

from cffi import FFI

ffi: FFI
lib: Any
