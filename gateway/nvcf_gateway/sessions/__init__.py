"""Stateful sessions: gRPC and WebSocket callers reach a worker through a tunnel (protocol.md, section 7)."""
