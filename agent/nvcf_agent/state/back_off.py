"""Pauses of creations that met no free capacity, per GPU name. Pure."""

from nvcf_agent.timings import Timings, growing_pause


class RoomBackOff:
    """Which GPUs are not tried, and for how long. Times are of a monotonic clock.

    While a GPU is skipped, a smaller request does not overtake the one that waits for it.
    """

    def __init__(self, timings: Timings) -> None:
        self._timings = timings
        self._until: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    def left(self, gpu: str, now: float) -> float:
        """Return for how long a GPU is still skipped."""
        return max(0.0, self._until.get(gpu, 0.0) - now)

    def no_room(self, gpu: str, now: float, chance: float) -> float:
        """Skip a GPU for a while, and return for how long. `chance` in [0, 1) is the jitter."""
        self._failures[gpu] = self._failures.get(gpu, 0) + 1
        times = self._timings
        pause = growing_pause(times.room_first, times.room_longest, self._failures[gpu], chance)
        self._until[gpu] = now + pause
        return pause

    def placed(self, gpu: str) -> None:
        """Start again with short pauses: a request found room."""
        self._failures.pop(gpu, None)

    def freed(self) -> None:
        """Try all GPUs again: something has ended."""
        self._until.clear()
