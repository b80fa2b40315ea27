"""Makes the cluster fixtures known to all fault tests."""

from tests.fault.cluster import bed, node, shared_bed

__all__ = ["bed", "node", "shared_bed"]
