"""One folder per backend: its framing in C and its driver in Python."""
