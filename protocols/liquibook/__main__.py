"""python -m musidecar.protocols.liquibook: liquibookd."""

import sys

from .server import main

sys.exit(main())
