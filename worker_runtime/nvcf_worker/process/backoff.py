"""Delays between retries and between in-progress signals, in seconds. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from nvcf_proto import settings


@dataclass(frozen=True)
class Backoff:
    """Exponential delays `first, first*factor, ...` up to `limit`, each shortened by up to `jitter`."""

    first: float
    limit: float
    factor: float = 2.0
    jitter: float = 0.25

    def delay(self, attempt: int, randomness: float) -> float:
        """Return the delay before retry number `attempt` (from 0). `randomness` is a number in [0, 1)."""
        # The exponent is bounded so that days of retries cannot overflow.
        full = min(self.limit, self.first * self.factor ** min(attempt, 64))
        return full * (1.0 - self.jitter * randomness)


def in_progress_interval(ack_wait: float) -> float:
    """Return the seconds between in-progress signals of a consumer with this ack wait.

    The contract's 10 s, or a third of the ack wait if that is shorter, so that one lost signal does not cause
    a redelivery.
    """
    return min(settings.IN_PROGRESS_INTERVAL, ack_wait / 3)
