"""python -m musidecar.protocols.herd: the gate before HERD."""

import sys

from .server import main

sys.exit(main())
