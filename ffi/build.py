"""Builds the extension `musidecar._ffi._core` (cffi, API mode) from every C file of ffi/ and protocols/.

What Python can see is `cdef.txt`: the reviewed contract. A line `// include "core/replica.h"` there says
which header a section's declarations come from. Test drivers and fuzz mains live under tests/, not in it.
Paths are relative to the root of the source tree, where setuptools runs.
"""

import os
import re
import shlex
import subprocess
import sysconfig
import tempfile
from glob import glob
from pathlib import Path

from cffi import FFI

CDEF = "ffi/cdef.txt"
SOURCES = sorted(
    path
    for folder in ("ffi/core", "ffi/fabric", "ffi/engine", "ffi/gate", "ffi/bench", "protocols/*")
    for path in glob(f"{folder}/*.c")
)
HEADERS = sorted(glob("ffi/**/*.h", recursive=True) + glob("protocols/**/*.h", recursive=True))

# Optimised as one program: a commit passes through a dozen small functions of several files.
AS_ONE = ["-flto=auto", "-O3"]


def optimises_as_one() -> bool:
    """Whether the compiler that will be used can: some lack the plug-in for their linker."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "one.c").write_text("int two(void);\nint one(void) { return two(); }\n")
        Path(folder, "two.c").write_text("int two(void) { return 2; }\n")
        command = [*compiler, *AS_ONE, "-fPIC", "-shared", "one.c", "two.c", "-o", "both.so"]
        try:
            return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0
        except OSError:  # no compiler: setuptools says so
            return False


_as_one = AS_ONE if optimises_as_one() else []
_declarations = Path(CDEF).read_text()
_includes = re.findall(r'^// include ("[^"]+"|<[^>]+>)$', _declarations, re.MULTILINE)

ffibuilder = FFI()
ffibuilder.cdef(_declarations)
ffibuilder.set_source(
    "musidecar._ffi._core",
    "\n".join(f"#include {name}" for name in _includes),
    sources=SOURCES,
    depends=[*HEADERS, CDEF, "ffi/build.py"],
    include_dirs=[".", "ffi"],
    libraries=["pthread", "dl"],
    extra_compile_args=["-std=c11", "-D_GNU_SOURCE", "-O2", "-fvisibility=hidden", "-g", "-Wall", "-Wextra", *_as_one],
    extra_link_args=[*_as_one],
)
