"""Who waits for the response of one request, and when they get a 202. Decisions only, no I/O.

Compatibility mode (protocol.md, sections 2.8 and 5.5): whoever waits, the first caller or a poll, gets 202 at
the end of its poll time or when there is new progress; the finished response goes to all who wait then.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nvcf_proto import headers as names
from nvcf_worker.function.response import Reply, encode_body
from nvcf_worker.message import ReplyAddress

MARGIN = 0.5
"""Seconds before the end of a poll time at which its 202 is due; the gateway waits 2 s beyond it."""

LATE = MARGIN + 1.0
"""Seconds after `due` within which a 202 still finds its gateway waiting, the time it takes included."""

NEVER = float("inf")
_KEEP = names.NVCF_KEEP_QUEUED.lower()
RETENTION_SECONDS = 3600.0
"""How long a finished response waits for a caller that comes back: as long as the record of the request."""
FALLBACK_SECONDS = 60.0
"""How long a gateway is looked for when no caller can come back."""


@dataclass(eq=False, slots=True)
class Waiter:
    """A caller or a poll. `due` is the Unix time at which it gets a 202 at the latest."""

    address: ReplyAddress
    due: float


@dataclass(slots=True)
class Waiters:
    """Everybody who waits for one request. `percent` and `partial` are the newest progress."""

    waiting: list[Waiter] = field(default_factory=list)
    percent: float = 0.0
    partial: Any = None
    may_poll: bool = False
    """Whether somebody got a 202 and so may poll."""
    unsent: bool = False
    """Whether nobody has been sent the newest progress."""

    @property
    def next_due(self) -> float:
        """Return when the next 202 is due, Unix time."""
        return min((waiter.due for waiter in self.waiting), default=NEVER)

    def add(self, waiter: Waiter) -> list[Waiter]:
        """Add a waiter; return who gets a 202 at once: the new one, when there is unsent progress."""
        self.waiting.append(waiter)
        return self._take([waiter]) if self.unsent and waiter.due != NEVER else []

    def progressed(self, percent: float, partial: Any) -> list[Waiter]:
        """Store new progress; return who gets a 202. `percent` is cut to 0..100."""
        self.percent = min(100.0, max(0.0, percent))
        self.partial = partial
        self.unsent = True
        return self._take([waiter for waiter in self.waiting if waiter.due != NEVER])

    def overdue(self, now: float) -> list[Waiter]:
        """Return those whose poll time has expired; they get a 202."""
        return self._take([waiter for waiter in self.waiting if waiter.due <= now])

    def take_all(self) -> list[Waiter]:
        """Remove and return everybody; they get the response."""
        found, self.waiting = self.waiting, []
        return found

    def _take(self, found: list[Waiter]) -> list[Waiter]:
        if found:
            self.waiting = [waiter for waiter in self.waiting if waiter not in found]
            self.may_poll, self.unsent = True, False
        return found

    def progress_reply(self) -> Reply:
        """Make the 202 (protocol.md, section 5.5). Raises TypeError, ValueError when `partial` is no JSON."""
        headers = [(names.NVCF_PERCENT_COMPLETE.lower(), str(int(self.percent)))]
        if self.partial is None:
            return Reply(202, headers, b"")
        body, media_type = encode_body(self.partial)
        return Reply(202, [*headers, ("content-type", media_type)], body)


def wanted_again(headers: Iterable[tuple[str, str]]) -> bool:
    """Return whether a caller may come back when its connection is lost. Header names are lower-case."""
    for name, value in headers:
        if name == "idempotency-key" or (name == _KEEP and value.strip().lower() == "true"):
            return True
    return False


class Step(enum.Enum):
    """What to do with a finished response that nobody has taken."""

    ABANDON = "nobody wants the response any more"
    WAIT = "try again a little later"
    GIVE_UP = "leave the request to be delivered again"


def next_step(*, refused: bool, gone: bool, may_poll: bool, has_fallback: bool, waited: float) -> Step:
    """Decide what to do when no fallback gateway was found.

    refused: a fallback lookup was answered: nobody can want the response. gone: the request's gateway does
    not know its token; it may have restarted. may_poll: somebody may come back for the response.
    has_fallback: gateways answer lookups, so that only their answer is consent to drop it. Without them the
    contract applies: the token lives as long as the caller waits, the record of a 202 one hour. waited:
    seconds since the response was ready.
    """
    if refused or (gone and not may_poll and not has_fallback):
        return Step.ABANDON
    if waited < (RETENTION_SECONDS if may_poll else FALLBACK_SECONDS):
        return Step.WAIT
    return Step.ABANDON if may_poll and not has_fallback else Step.GIVE_UP


def compatible(headers: Iterable[tuple[str, str]], *, disabled: bool) -> bool:
    """Return whether a request is served in compatibility mode: not pass-through, not an event stream.

    Header names are lower-case. disabled: V3_BACKWARDS_COMPATIBILITY_DISABLED.
    """
    if disabled:
        return False
    for name, value in headers:
        if name == names.NVCF_FEATURE_DISABLE_COMPATIBILITY and value.strip().lower() == "true":
            return False
        if name == "accept" and value.strip().lower() == names.EVENT_STREAM:
            return False
    return True
