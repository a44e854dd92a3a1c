"""What the way of a request reports to telemetry, and what becomes of it without any."""

from __future__ import annotations

from typing import Protocol

from opentelemetry import context as otel_context

from nvcf_otel import spans
from nvcf_worker.function.response import Outcome
from nvcf_worker.queue.delivery import ActiveRequest


class Told(Protocol):
    """What the way of a request reports; each at most once, in this order, and `end` in any case."""

    def handler_begins(self) -> None:
        """The handler is called next."""

    def handler_failed(self, error: BaseException) -> None:
        """It raised."""

    def handler_answered(self, outcome: Outcome) -> Outcome:
        """It has an answer; streams are to be read from the one that is returned."""

    def delivering(self, outcome: Outcome) -> None:
        """The answer goes to whoever waits."""

    def delivered(self) -> None:
        """It has arrived."""

    def failed(self, error: BaseException) -> None:
        """The request came to nothing, or the answer did not arrive."""

    def end(self) -> None:
        """The request is over."""


class Untold:
    """Without telemetry. The trace context goes on to the function's own spans all the same."""

    def __init__(self, active: ActiveRequest) -> None:
        parent = None if active.work.trace is None else spans.parse(active.work.trace)
        self._token = None if parent is None else otel_context.attach(spans.below(parent))

    def handler_begins(self) -> None:
        return None

    def handler_failed(self, error: BaseException) -> None:
        return None

    def handler_answered(self, outcome: Outcome) -> Outcome:
        return outcome

    def delivering(self, outcome: Outcome) -> None:
        return None

    def delivered(self) -> None:
        return None

    def failed(self, error: BaseException) -> None:
        return None

    def end(self) -> None:
        if self._token is not None:
            otel_context.detach(self._token)
