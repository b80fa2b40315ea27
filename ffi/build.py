"""Builds the extension `musidecar._ffi._core` (cffi, API mode) from every C file of ffi/ and protocols/.

What Python can see is `cdef.txt`: the reviewed contract. A line `// include "core/replica.h"` there says
which header a section's declarations come from. Test drivers and fuzz mains live under tests/, not in it.
Paths are relative to the root of the source tree, where setuptools runs.
"""

import re
from glob import glob
from pathlib import Path

from cffi import FFI

CDEF = "ffi/cdef.txt"
SOURCES = sorted(
    path
    for folder in ("ffi/core", "ffi/fabric", "ffi/engine", "ffi/bench", "protocols/*")
    for path in glob(f"{folder}/*.c")
)
HEADERS = sorted(glob("ffi/**/*.h", recursive=True) + glob("protocols/**/*.h", recursive=True))

_declarations = Path(CDEF).read_text()
_includes = re.findall(r'^// include ("[^"]+"|<[^>]+>)$', _declarations, re.MULTILINE)

ffibuilder = FFI()
ffibuilder.cdef(_declarations)
ffibuilder.set_source(
    "musidecar._ffi._core",
    "\n".join(f"#include {name}" for name in _includes),
    sources=SOURCES,
    depends=[*HEADERS, CDEF],
    include_dirs=[".", "ffi"],
    libraries=["pthread", "dl"],
    extra_compile_args=["-std=c11", "-D_GNU_SOURCE", "-O2", "-fvisibility=hidden", "-g", "-Wall", "-Wextra"],
)
