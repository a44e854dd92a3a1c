"""Durations: those in settings, delays between retries, intervals of in-progress signals. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nvcf_proto import settings
from nvcf_worker.errors import ConfigurationError

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_PART = re.compile(rf"({_NUMBER})(ns|us|µs|ms|s|m|h|d)")
_PLAIN = re.compile(rf"{_NUMBER}")
_ISO = re.compile(
    rf"P(?:(?P<d>{_NUMBER})D)?(?:T(?:(?P<h>{_NUMBER})H)?(?:(?P<m>{_NUMBER})M)?(?:(?P<s>{_NUMBER})S)?)?",
    re.IGNORECASE,
)


def parse_duration(text: str) -> float:
    """Return the seconds of `90`, `1.5`, `1m30s`, `500ms` (Go's format) or `PT1M30S` (ISO 8601).

    Raises ValueError for anything else, also for negative durations.
    """
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return float(text)
    iso = _ISO.fullmatch(text)
    if iso is not None and any(iso.groupdict().values()):
        return sum(float(value) * _UNITS[unit] for unit, value in iso.groupdict().items() if value)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text[:32]!r} is not a duration; write 90, 1m30s or PT1M30S")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def ready_seconds(given: float | str | None) -> float:
    """Return the seconds that a server may take to be ready, by default 30 min. Raises ConfigurationError."""
    if given is None:
        return settings.INFERENCE_READY_TIMEOUT
    try:
        seconds = parse_duration(str(given))
    except ValueError as error:
        raise ConfigurationError(f"the ready time-out: {error}") from error
    if seconds <= 0:
        raise ConfigurationError(f"the ready time-out is {given}; it must be above 0")
    return seconds


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
