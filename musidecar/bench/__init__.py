"""The measurements behind `musidecar bench` and `make bench`: paired, with real processes, printed as tables."""
