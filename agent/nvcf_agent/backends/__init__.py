"""Backends that run instances."""
