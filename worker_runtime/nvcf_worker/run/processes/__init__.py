"""Handlers in child processes: what kills a child costs its own requests at most, never the worker."""
