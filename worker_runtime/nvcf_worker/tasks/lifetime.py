"""Decide when a task has to end and how its end is reported. No I/O."""

from __future__ import annotations

import enum

from nvcf_worker.process.exit_reason import ExitReason

COMPLETED = 0
FAILED = 1
MAX_RUNTIME_EXCEEDED = 124
"""The code that `timeout(1)` uses."""
TERMINATED = 143
"""The code that a shell reports for a process that SIGTERM ended."""


class Stop(enum.Enum):
    """Why a task was asked to end before it had finished."""

    TERMINATED = "terminated"
    MAX_RUNTIME = "max-runtime-exceeded"


def outcome(stop: Stop | None, why: str, error: BaseException | None) -> ExitReason:
    """Return the exit reason of a task whose main function has ended.

    stop, why: what asked the task to end, if anything did. Such a task never counts as complete.
    error: what main raised. After `sys.exit(n)` in main the exit code is n.
    """
    if stop is not None:
        return stopped(stop, why)
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        code = error.code or COMPLETED
        if code:
            return ExitReason(code, "failed", f"the task ended with exit code {code}")
        error = None
    if error is None:
        return ExitReason(COMPLETED, "completed", "the task is complete")
    return ExitReason(FAILED, "failed", f"{type(error).__name__}: {error}")


def stopped(stop: Stop, why: str) -> ExitReason:
    """Return the exit reason of a task that was asked to end."""
    return ExitReason(MAX_RUNTIME_EXCEEDED if stop is Stop.MAX_RUNTIME else TERMINATED, stop.value, why)


class Due(enum.Enum):
    """What has to be done now."""

    HEARTBEAT = "heartbeat"
    STOP = "maximum run time"
    KILL = "grace period over"


class Timing:
    """Timers of one task that started at `now`. All times are seconds of any steady clock."""

    def __init__(self, now: float, *, heartbeat: float, max_seconds: float | None, grace: float) -> None:
        self._heartbeat = heartbeat
        self._grace = grace
        self._heartbeat_at = now + heartbeat
        self._stop_at = None if max_seconds is None else now + max_seconds
        self._kill_at: float | None = None

    def stop(self, now: float) -> None:
        """Start the grace period. Only the first call has an effect."""
        if self._kill_at is None:
            self._kill_at = now + self._grace

    def due(self, now: float) -> list[Due]:
        """Return what has to be done at `now`, and start the time to the next heartbeat."""
        found = []
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + self._heartbeat
            found.append(Due.HEARTBEAT)
        if self._stop_at is not None and now >= self._stop_at and self._kill_at is None:
            found.append(Due.STOP)
        if self._kill_at is not None and now >= self._kill_at:
            found.append(Due.KILL)
        return found

    def pause(self, now: float) -> float:
        """Return the seconds until something can be due."""
        end = self._stop_at if self._kill_at is None else self._kill_at
        return max(0.0, min(self._heartbeat_at, self._heartbeat_at if end is None else end) - now)
