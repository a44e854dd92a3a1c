"""Timing decisions: retry delays and the refresh of worker tokens. Seconds throughout."""

from __future__ import annotations

from dataclasses import dataclass

from nvcf_proto import settings

RETRY_AFTER_EXPIRY = 5.0


@dataclass(frozen=True)
class Backoff:
    """Exponential delays `first, first*factor, ...` up to `limit`, each shortened by up to `jitter`."""

    first: float
    limit: float
    factor: float = 2.0
    jitter: float = 0.25

    def delay(self, attempt: int, randomness: float) -> float:
        """Delay before retry number `attempt` (from 0). `randomness` is a number in [0, 1)."""
        # The exponent is bounded so that a retry that has gone on for days cannot overflow.
        full = min(self.limit, self.first * self.factor ** min(attempt, 64))
        return full * (1.0 - self.jitter * randomness)


def refresh_delay(now: float, expires_at: float | None, randomness: float) -> float:
    """When to call ConnectOnce again (protocol.md section 5, token life).

    20 to 30 minutes from `now`, or at 90 % of the token's remaining life if that is sooner. A
    token without expiry only follows the first rule; one that has expired is renewed at once.
    """
    span = settings.CONNECT_REFRESH_MAX - settings.CONNECT_REFRESH_MIN
    regular = settings.CONNECT_REFRESH_MIN + span * randomness
    if expires_at is None:
        return regular
    life = expires_at - now
    if life <= 0:
        return 0.0
    return min(regular, life * settings.CONNECT_REFRESH_LIFE_SHARE)


def in_progress_interval(ack_wait: float) -> float:
    """Seconds between in-progress signals of a consumer with this ack wait.

    The contract's 10 s, or a third of the ack wait when that is shorter, so that one lost signal
    never costs a redelivery.
    """
    return min(settings.IN_PROGRESS_INTERVAL, ack_wait / 3)
