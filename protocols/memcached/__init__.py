"""memcached: framing, classification and decisions in C, the backend driver in Python."""
