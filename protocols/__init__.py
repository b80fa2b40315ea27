"""One folder per backend: its framing in C and its driver in Python.

What C must know of a protocol stands in protocol.h, what Python must know of a server in backend.py. A folder that has
a `KIND` in its `__init__.py` and a `make()` in its `backend.py` is one more backend: nothing else lists them.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Kind:
    """What is known of a backend before one runs. name: in the configuration. title: for people. binary: the server
    that a node starts, unless told, and package: Debian's that has it. options: keys of a node's `backend` table that
    mean something to it, beside those that every backend has. embedded: it is a part of the user's own program, which
    runs the node, too (musidecar.api). program: the key that names the server; not `binary` where that is what stands
    before it. lone_address: a key with an address of the host that no two nodes can share.
    ready_s: a node may take so long to serve."""

    name: str
    title: str
    binary: str
    package: str
    options: frozenset[str] = field(default_factory=frozenset)
    embedded: bool = False
    program: str = "binary"
    lone_address: str = ""
    ready_s: float = 60.0


def names() -> list[str]:
    """Of the backends that there are, the default first."""
    found = [each.name for each in pkgutil.iter_modules(__path__) if each.ispkg and _is_backend(each.name)]
    return sorted(found, key=lambda name: (name != "redis", name))


def _is_backend(name: str) -> bool:
    return any(Path(folder, name, "backend.py").exists() for folder in __path__)


def kind(name: str) -> Kind:
    """The backend of this name. KeyError when there is none."""
    if name not in names():
        raise KeyError(name)
    found: Kind = importlib.import_module(f"{__name__}.{name}").KIND
    return found
