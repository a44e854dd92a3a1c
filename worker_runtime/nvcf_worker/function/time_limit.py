"""How long one request may run: the least of what deployment, `serve` and caller say. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nvcf_proto.environment import NVCF_MAX_EXECUTION_SECONDS as VARIABLE
from nvcf_proto.headers import NVCF_MAX_EXECUTION_SECONDS as HEADER
from nvcf_worker.errors import BadInput, ConfigurationError, HandlerError

LONGEST = 86_400
_HEADER = HEADER.lower()


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """A limit in seconds, and who set it."""

    seconds: float
    source: str

    def __str__(self) -> str:
        return f"{self.seconds:g} s, the limit of {self.source}"


def configured(argument: float | None, environ: Mapping[str, str]) -> TimeLimit | None:
    """Return the lower limit of `serve(time_limit=)` and of the deployment; None without any.

    Raises HandlerError, or ConfigurationError for the variable.
    """
    found = []
    if argument is not None:
        if isinstance(argument, bool) or not isinstance(argument, int | float) or not 0 < argument <= LONGEST:
            raise HandlerError(f"time_limit is {argument!r}; it must be seconds, above 0 and up to {LONGEST}")
        found.append(TimeLimit(float(argument), "serve(time_limit=...)"))
    text = environ.get(VARIABLE, "").strip()
    if text:
        seconds = _seconds(text)
        if seconds is None:
            raise ConfigurationError(f"{VARIABLE} is {text[:32]!r}; it must be 1 to {LONGEST} seconds")
        found.append(TimeLimit(seconds, "the deployment (maxExecutionSeconds)"))
    return min(found, key=lambda limit: limit.seconds, default=None)


def of_request(limit: TimeLimit | None, headers: Iterable[tuple[str, str]]) -> TimeLimit | None:
    """Return the limit of one request, which its caller can only shorten. Raises BadInput.

    Header names are lower-case.
    """
    for name, value in headers:
        if name == _HEADER:
            seconds = _seconds(value.strip())
            if seconds is None:
                raise BadInput(f"{HEADER} is {value[:32]!r}; it must be 1 to {LONGEST} seconds")
            if limit is None or seconds < limit.seconds:
                return TimeLimit(seconds, f"the caller ({HEADER})")
    return limit


def _seconds(text: str) -> float | None:
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= LONGEST:
        return None
    return float(text)
