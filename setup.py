"""What pyproject.toml cannot say: the C extension is built by cffi, and two packages are links into the tree."""

from pathlib import Path

from setuptools import setup

# An sdist holds no links to folders: make them again (MANIFEST.in keeps the files from being packed twice).
for link, target in (("musidecar/_ffi", "../ffi"), ("musidecar/protocols", "../protocols")):
    if not Path(link).exists():
        Path(link).symlink_to(target)

setup(
    cffi_modules=["ffi/build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
