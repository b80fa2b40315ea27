"""The exchange: liquibookd around the package `liquibook`, its line protocol (PROTOCOL.md), and its FIX edge."""

import sys

from musidecar.protocols import Kind

# The server is a module of this package, so what a node starts is an interpreter that has it.
KIND = Kind("liquibook", "liquibookd", sys.executable, "python3", frozenset({"symbols"}))
