"""Finds Debian's python3-pyverbs from a virtual environment that does not see the system's packages.

Only the package `pyverbs` is taken from there: with that folder on the path, every other system package would shadow
those of the environment. PyPI's pyverbs needs the libibverbs of its own version and is not what Debian has.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

SYSTEM_PACKAGES = "/usr/lib/python3/dist-packages"
REMEDY = "apt-get install python3-pyverbs ibverbs-providers"


class PyverbsMissing(Exception):
    """pyverbs cannot be used here. The text says why, and what to install."""


def load(folder: str = SYSTEM_PACKAGES) -> ModuleType:
    """The package `pyverbs`; its modules can be imported by name afterwards. Raises PyverbsMissing."""
    if "pyverbs" in sys.modules:
        return sys.modules["pyverbs"]
    spec = importlib.util.find_spec("pyverbs") or importlib.machinery.PathFinder.find_spec("pyverbs", [folder])
    if spec is None or spec.loader is None:
        raise PyverbsMissing(f"no pyverbs in this environment or in {folder}: {REMEDY}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pyverbs"] = module
    try:
        spec.loader.exec_module(module)
        importlib.import_module("pyverbs.device")
    except ImportError as error:
        del sys.modules["pyverbs"]
        raise PyverbsMissing(f"pyverbs is there and does not load: {error}: {REMEDY}") from None
    return module
