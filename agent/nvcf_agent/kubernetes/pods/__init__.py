"""Pods of container functions: what they are made of, and what becomes of them. Pure."""
