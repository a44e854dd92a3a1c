"""Observer interface for one request's life cycle, with a no-op implementation for when telemetry is off."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import context as otel_context

from nvcf_otel import spans
from nvcf_worker.function.response import Outcome


class RequestObserver:
    """Gets the events of one request: each at most once, in this order, and `end` in any case."""

    __slots__ = ()

    def handler_begins(self) -> None:
        """The handler is called next."""

    def handler_failed(self, error: BaseException) -> None:
        """The handler raised."""

    def handler_answered(self, response: Outcome) -> Outcome:
        """The handler has a response. A stream has to be read from the response that is returned."""
        return response

    def delivering(self, response: Outcome) -> None:
        """The response is sent to whoever waits."""

    def delivered(self) -> None:
        """The response has arrived."""

    def failed(self, error: BaseException) -> None:
        """The request failed, or its response did not arrive."""

    def end(self) -> None:
        """The request is over."""


class NoopObserver(RequestObserver):
    """Records nothing. The trace context still passes on to the function's own spans."""

    def __init__(self, trace: Mapping[str, str] | None) -> None:
        parent = None if trace is None else spans.parse(trace)
        self._token = (
            None
            if parent is None
            else otel_context.attach(spans.with_baggage(trace or {}, spans.below(parent)))
        )

    def end(self) -> None:
        if self._token is not None:
            otel_context.detach(self._token)
