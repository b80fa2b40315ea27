"""The one thing pyproject.toml cannot say: the C extension is built by cffi (ffi/build.py)."""

from setuptools import setup

setup(
    cffi_modules=["ffi/build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
