"""Scaling policy: how many instances a function version should have. Pure."""
