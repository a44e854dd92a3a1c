"""Placement: which clusters get instances, and how versions share short GPUs. Pure."""
