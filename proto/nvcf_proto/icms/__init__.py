"""The contract between the control plane (ICMS) and the agents of clusters (protocol.md, section 6)."""
