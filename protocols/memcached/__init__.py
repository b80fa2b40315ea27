"""Memcached: framing and decisions in C, the backend driver in Python."""

from musidecar.protocols import Kind

KIND = Kind(
    "memcached", "memcached", "memcached", "memcached", frozenset({"memory_bytes", "item_bytes_max", "threads"})
)
