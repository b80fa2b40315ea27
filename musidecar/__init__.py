"""musidecar: a transparent replicating sidecar, made fault-tolerant with the Mu protocol (OSDI'20)."""

__version__ = "0.1.0"
