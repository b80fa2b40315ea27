"""The exchange: liquibookd around the package `liquibook`, its line protocol (PROTOCOL.md), and its FIX edge."""

import sys

from musidecar.protocols import Kind

FIX_NAME = "EXCHANGE"  # the FIX port's CompID, unless told
FIX_DECIMALS = 2  # of a price, unless told: the exchange counts in ticks

# The server is a module of this package, so what a node starts is an interpreter that has it.
OPTIONS = frozenset({"symbols", "fix_port", "fix_name", "fix_decimals"})
KIND = Kind("liquibook", "liquibookd", sys.executable, "python3", OPTIONS)
