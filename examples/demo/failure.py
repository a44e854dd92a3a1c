"""What ends the demo before its end."""

from __future__ import annotations


class DemoFailure(Exception):
    """One line for the person who started the demo: what went wrong, and what to do where that is known."""
