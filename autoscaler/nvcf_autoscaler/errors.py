"""What can go wrong before a decision is made."""

from __future__ import annotations


class AutoscalerError(Exception):
    """Root of this package's errors."""


class InvalidSettings(AutoscalerError, ValueError):
    """Scaling settings that contradict themselves. The text names the setting and its bounds."""


class InvalidTrace(AutoscalerError, ValueError):
    """An arrival trace or a simulator option that cannot be used. The text names file, line and column."""
