"""memcached: framing, classification and decisions in C, the backend driver in Python."""

from musidecar.protocols import Kind

MEMORY_BYTES = 64 << 20  # memcached's own default
KIND = Kind(
    "memcached",
    "memcached",
    "memcached",
    "memcached",
    frozenset({"memory_bytes", "item_bytes_max", "threads", "consistency"}),
)
