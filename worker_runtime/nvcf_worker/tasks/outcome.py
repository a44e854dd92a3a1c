"""How a task ended, and what that means to the platform. No I/O."""

from __future__ import annotations

import enum

from nvcf_worker.process.exit_reason import ExitReason

COMPLETED = 0
FAILED = 1
MAX_RUNTIME_EXCEEDED = 124
"""As `timeout(1)`."""
TERMINATED = 143
"""As a shell reports a process that SIGTERM ended."""


class Stop(enum.Enum):
    """Why a task was told to end before it was done."""

    TERMINATED = "terminated"
    MAX_RUNTIME = "max-runtime-exceeded"


def outcome(stop: Stop | None, why: str, error: BaseException | None) -> ExitReason:
    """The exit reason of a task whose main function has ended.

    stop, why: what told it to end and in which words, if anything did; then it is not complete, however it
    ended. error: what main raised. `sys.exit(n)` in main ends the task with code n.
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
    """The exit reason of a task that was told to end."""
    return ExitReason(MAX_RUNTIME_EXCEEDED if stop is Stop.MAX_RUNTIME else TERMINATED, stop.value, why)
