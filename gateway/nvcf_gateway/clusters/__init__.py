"""The ICMS side of the compute plane: orders, streams, reports, clusters (protocol.md, section 6)."""
