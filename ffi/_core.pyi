"""Types of the compiled module. cdef.txt declares its functions and structures; cffi checks them at run time."""

from typing import Any

ffi: Any
lib: Any
