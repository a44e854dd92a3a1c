"""Limits on requests in work."""
