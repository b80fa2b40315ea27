"""python -m musidecar.protocols.liquibook: liquibookd; with --fix as the first word, a FIX port (fix_edge.py)."""

import sys
from pathlib import Path

try:
    if sys.argv[1:2] == ["--fix"]:
        from .fix_edge import main
    else:
        from .server import main
except ModuleNotFoundError as error:
    if error.name not in ("liquibook", "simplefix"):
        raise
    asked = Path(sys.executable).name
    sys.exit(f"{asked} has no package {error.name}: {sys.executable} -m pip install 'musidecar[liquibook]'")

sys.exit(main())
