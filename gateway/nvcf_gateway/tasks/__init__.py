"""Tasks over HTTP (protocol.md, section 12.1): submitted, listed, ended, and what they have reported."""
