"""Notices that the wall clock was set: by hand, by NTP, or by a machine that slept. Pure."""

STEP_SECONDS = 5.0
"""Smaller corrections change nothing that is decided here."""


class WallClock:
    """Compares the wall clock with the monotonic one. Times are seconds."""

    def __init__(self, wall: float, monotonic: float) -> None:
        self._offset = wall - monotonic

    def step(self, wall: float, monotonic: float) -> float:
        """Return by how much the wall clock was set since the last call; 0 for less than STEP_SECONDS."""
        before, self._offset = self._offset, wall - monotonic
        step = self._offset - before
        return step if abs(step) >= STEP_SECONDS else 0.0
