"""The poll time of a call, and the delay before a failed publish is tried again.

See protocol.md, section 4.3.
"""

from __future__ import annotations

import re

from nvcf_gateway.errors import HttpProblem
from nvcf_proto import settings
from nvcf_proto.headers import EVENT_STREAM, NVCF_POLL_SECONDS

_WHOLE = re.compile(r"[+-]?[0-9]+")


def poll_seconds(value: str | None, *, accept: str | None, path_route: bool) -> int:
    """Return how many seconds the caller waits for a response.

    `value` is the caller's NVCF-POLL-SECONDS: whole seconds, less than 1 counts as 1, more than 3600 is
    refused. Without it 60, or 1200 for an event stream on exec and pexec. Raises HttpProblem 400.
    """
    if value is None:
        if path_route and accept == EVENT_STREAM:
            return settings.POLL_SECONDS_EVENT_STREAM
        return settings.POLL_SECONDS_DEFAULT
    text = value.strip()
    if not _WHOLE.fullmatch(text) or len(text) > 18:
        raise HttpProblem(400, f"header {NVCF_POLL_SECONDS} must be a number of whole seconds")
    return checked_poll_seconds(int(text), f"header {NVCF_POLL_SECONDS}")


def checked_poll_seconds(seconds: int, what: str) -> int:
    """Return `seconds`, at least the minimum. Raises HttpProblem 400 above the maximum."""
    if seconds > settings.POLL_SECONDS_MAX:
        raise HttpProblem(400, f"{what} is at most {settings.POLL_SECONDS_MAX}")
    return max(settings.POLL_SECONDS_MIN, seconds)


def publish_delay(attempt: int, chance: float) -> float | None:
    """Return the seconds before retry `attempt` (1 = the first one); None when there is none.

    `chance` in [0, 1) is the jitter: it takes up to half of the delay off.
    """
    if attempt > settings.PUBLISH_ATTEMPTS:
        return None
    return settings.PUBLISH_FIRST_DELAY * 2.0 ** (attempt - 1) * (1.0 - chance / 2)
