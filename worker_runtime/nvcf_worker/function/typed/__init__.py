"""Typed parameters of handlers: from JSON, path and query to values, by annotations."""
