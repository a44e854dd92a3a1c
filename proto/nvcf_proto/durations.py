"""ISO 8601 durations as the management API has them: days, hours, minutes and seconds, `P1DT2H30M1.5S`."""

from __future__ import annotations

import re
from functools import lru_cache

DURATION_PATTERN = (
    r"P(?=[0-9T])([0-9]{1,6}D)?(T(?=[0-9])([0-9]{1,6}H)?([0-9]{1,6}M)?([0-9]{1,6}(\.[0-9]{1,9})?S)?)?"
)
_PARTS = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?")
_SECONDS = (86_400.0, 3600.0, 60.0, 1.0)


@lru_cache(maxsize=1024)
def duration_seconds(text: str) -> float:
    """Return the seconds of a duration that matches DURATION_PATTERN. Raises ValueError for other texts."""
    found = re.fullmatch(DURATION_PATTERN, text) and _PARTS.fullmatch(text)
    if not found:
        raise ValueError(f"not an ISO 8601 duration like PT10S: {text[:64]!r}")
    return sum(float(part) * size for part, size in zip(found.groups(), _SECONDS, strict=True) if part)


def duration_text(seconds: float) -> str:
    """Return a duration as text, to the millisecond: `PT90M1.5S`."""
    minutes, rest = divmod(round(seconds * 1000), 60_000)
    return "PT" + (f"{minutes}M" if minutes else "") + (f"{rest / 1000:g}S" if rest or not minutes else "")
