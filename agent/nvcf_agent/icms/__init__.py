"""The agent as a client of the control plane over HTTP (protocol.md, section 6.5)."""
