"""Stateful sessions: tunnels between a gateway and the function's own server."""
