"""The error that ends the demo early."""

from __future__ import annotations


class DemoFailure(Exception):
    """One line for the user: the cause, and the remedy if it is known."""
