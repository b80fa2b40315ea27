"""A machine of the user's own: a deterministic Python object, replicated by musidecar.api (docs/api.md)."""

import sys

from musidecar.protocols import Kind

KIND = Kind("own", "machine", sys.executable, "python3", embedded=True)
