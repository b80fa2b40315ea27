"""Redis: RESP framing and command table in C, the backend driver in Python."""
