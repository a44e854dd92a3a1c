"""Who waits for the answer of one request, and when they are told how far it is. Decisions only.

Compatibility mode (protocol.md sections 2, 4 and 5): whoever waits, the first caller or a poll, is answered
202 at the end of its poll time or when there is progress to tell; what is finished goes to all who wait then.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nvcf_proto import headers as names
from nvcf_worker.function.response import Reply, encode_body
from nvcf_worker.message import Door

MARGIN = 0.5
"""Seconds before the end of a poll time at which its 202 is due; the gateway waits 2 s beyond it."""

LATE = MARGIN + 1.0
"""Seconds after `due` within which a 202 still finds its gateway waiting, the time it takes included."""

NEVER = float("inf")
HOLD_SECONDS = 3600.0
"""How long a finished answer waits for a poll: as long as the gateway's record of the request lives."""
RESCUE_SECONDS = 60.0
"""How long a way to the caller is looked for when its gateway is gone and it was not told to poll."""


@dataclass(eq=False, slots=True)
class Waiter:
    """A caller or a poll. `due` is the Unix time at which it gets a 202 at the latest."""

    door: Door
    due: float


@dataclass(slots=True)
class Waiters:
    """Everybody who waits for one request. `percent` and `partial` are the newest progress."""

    waiting: list[Waiter] = field(default_factory=list)
    percent: float = 0.0
    partial: Any = None
    told: bool = False
    """Whether somebody was answered 202 and may come back."""
    news: bool = False
    """Whether there is progress that nobody has been told."""

    @property
    def next_due(self) -> float:
        """When the next 202 is due, Unix time."""
        return min((waiter.due for waiter in self.waiting), default=NEVER)

    def add(self, waiter: Waiter) -> list[Waiter]:
        """Somebody new waits; returns whom to tell at once: the newcomer when there is untold progress."""
        self.waiting.append(waiter)
        return self._tell([waiter]) if self.news and waiter.due != NEVER else []

    def progressed(self, percent: float, partial: Any) -> list[Waiter]:
        """There is progress; returns whom to tell. `percent` is cut to 0..100."""
        self.percent = min(100.0, max(0.0, percent))
        self.partial = partial
        self.news = True
        return self._tell([waiter for waiter in self.waiting if waiter.due != NEVER])

    def overdue(self, now: float) -> list[Waiter]:
        """Whose time is over; they are to be told."""
        return self._tell([waiter for waiter in self.waiting if waiter.due <= now])

    def take_all(self) -> list[Waiter]:
        """Everybody, to be answered for good."""
        found, self.waiting = self.waiting, []
        return found

    def _tell(self, found: list[Waiter]) -> list[Waiter]:
        if found:
            self.waiting = [waiter for waiter in self.waiting if waiter not in found]
            self.told, self.news = True, False
        return found

    def progress_reply(self) -> Reply:
        """The 202 (protocol.md section 4). Raises TypeError or ValueError when JSON cannot say `partial`."""
        headers = [(names.NVCF_PERCENT_COMPLETE.lower(), str(int(self.percent)))]
        if self.partial is None:
            return Reply(202, headers, b"")
        body, media_type = encode_body(self.partial)
        return Reply(202, [*headers, ("content-type", media_type)], body)


def wanted_again(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether a caller may come back for the answer although its connection is lost. Lower-case names."""
    keep = names.NVCF_KEEP_QUEUED.lower()
    return any(
        name == "idempotency-key" or (name == keep and value.strip().lower() == "true")
        for name, value in headers
    )


class Step(enum.Enum):
    """What to do with a finished answer that nobody present takes."""

    ABANDON = "nobody wants the answer any more"
    WAIT = "look again a little later"
    GIVE_UP = "leave the request to be delivered again"


def next_step(*, refused: bool, gone: bool, told: bool, waited: float) -> Step:
    """What to do when no gateway offered another way back.

    refused: a gateway said that nobody can want the answer. gone: a gateway said that the caller has left
    or answered already. told: somebody was answered 202 and may poll. waited: seconds since the answer was
    ready.
    """
    if refused or (gone and not told):
        return Step.ABANDON
    if waited < (HOLD_SECONDS if told else RESCUE_SECONDS):
        return Step.WAIT
    return Step.ABANDON if told else Step.GIVE_UP


def compatible(headers: Iterable[tuple[str, str]], *, disabled: bool) -> bool:
    """Whether a request is served in compatibility mode: not pass-through, not an event stream.

    `headers` by lower-case names; `disabled` is V3_BACKWARDS_COMPATIBILITY_DISABLED.
    """
    if disabled:
        return False
    for name, value in headers:
        if name == names.NVCF_FEATURE_DISABLE_COMPATIBILITY and value.strip().lower() == "true":
            return False
        if name == "accept" and value.strip().lower() == names.EVENT_STREAM:
            return False
    return True


def read_progress(text: bytes) -> tuple[float, Any]:
    """Percent and partial response of a progress file (protocol.md section 5). Raises ValueError."""
    try:
        members = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(members, dict):
        raise ValueError("it is no JSON object")
    percent = members.get("progress", 0)
    if isinstance(percent, bool) or not isinstance(percent, int | float):
        raise ValueError(f"progress is {percent!r}; it must be a number from 0 to 100")
    try:
        return float(percent), members.get("partialResponse")
    except OverflowError as error:
        raise ValueError("progress must be a number from 0 to 100") from error
