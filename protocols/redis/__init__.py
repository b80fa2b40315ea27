"""Redis: RESP framing and command table in C, the backend driver in Python."""

from musidecar.protocols import Kind

KIND = Kind("redis", "Redis", "redis-server", "redis-server", frozenset({"user", "password_file"}))
