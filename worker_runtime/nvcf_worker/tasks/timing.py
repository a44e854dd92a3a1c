"""When a task beats, has to stop, and is ended by force. No I/O; seconds of any steady clock."""

from __future__ import annotations

import enum


class Due(enum.Enum):
    """What it is time for."""

    BEAT = "heartbeat"
    STOP = "maximum run time"
    FORCE = "grace period over"


class Timing:
    """Clockwork of one task that began at `now`."""

    def __init__(self, now: float, *, heartbeat: float, max_seconds: float | None, grace: float) -> None:
        self._heartbeat = heartbeat
        self._grace = grace
        self._beat_at = now + heartbeat
        self._stop_at = None if max_seconds is None else now + max_seconds
        self._force_at: float | None = None

    @property
    def stopping(self) -> bool:
        """Whether the task has been told to end."""
        return self._force_at is not None

    def stop(self, now: float) -> None:
        """The task is told to end; its grace period begins. Only the first call counts."""
        if self._force_at is None:
            self._force_at = now + self._grace

    def due(self, now: float) -> list[Due]:
        """What it is time for; each heartbeat is told once."""
        found = []
        if now >= self._beat_at:
            self._beat_at = now + self._heartbeat
            found.append(Due.BEAT)
        if self._stop_at is not None and now >= self._stop_at and not self.stopping:
            found.append(Due.STOP)
        if self._force_at is not None and now >= self._force_at:
            found.append(Due.FORCE)
        return found

    def pause(self, now: float) -> float:
        """Seconds until something can be due."""
        times = [self._beat_at]
        if self._force_at is not None:
            times.append(self._force_at)
        elif self._stop_at is not None:
            times.append(self._stop_at)
        return max(0.0, min(times) - now)
