"""ICMS against an independent agent: docs/reference/protocol.md, section 6."""
