"""Measures responses of an engine by OpenTelemetry's conventions for generative AI."""

from __future__ import annotations

import time

from opentelemetry import trace

from nvcf_otel import names
from nvcf_otel.worker_instruments import TIME_PER_OUTPUT_TOKEN, TIME_TO_FIRST_TOKEN, TOKEN_USAGE
from nvcf_worker.run.llm.usage import OPERATIONS, Usage, usage_in_events, usage_of
from nvcf_worker.telemetry.measurements import measure


class Measured:
    """One request to an engine. Routes that make no tokens are not measured.

    provider: the kind of engine, empty if unknown. model: the engine's name of it, empty if it has several.
    """

    def __init__(self, target: str, provider: str, model: str) -> None:
        operation = OPERATIONS.get(target.partition("?")[0])
        self._operation = operation
        self._attributes = {
            **({names.GEN_AI_OPERATION: operation} if operation else {}),
            **({names.GEN_AI_PROVIDER: provider} if provider else {}),
            **({names.GEN_AI_MODEL: model} if model else {}),
        }
        self._span = trace.get_current_span()
        self._began = time.monotonic()
        self._first: float | None = None
        self._last = self._began
        self._usage: Usage | None = None

    def events(self, whole: bytes) -> None:
        """Note whole events of a stream as they arrive."""
        self._last = time.monotonic()
        self._usage = usage_in_events(whole) or self._usage
        if self._first is None and self._operation is not None:
            self._first = self._last
            self._measure(TIME_TO_FIRST_TOKEN.name, self._first - self._began)

    def ended(self) -> None:
        """Report a stream that has ended, also one that broke off or whose caller left. Counts once."""
        usage, self._usage = self._usage, None
        if usage is None or self._first is None:
            return
        self._tokens(usage)
        if usage.output is not None and usage.output > 1:
            self._measure(TIME_PER_OUTPUT_TOKEN.name, (self._last - self._first) / (usage.output - 1))

    def complete(self, body: bytes, *, events: bool) -> None:
        """Report a response that came as a whole; events: a stream that ended before it was looked at."""
        if self._operation is None:
            return
        if events:
            self._measure(TIME_TO_FIRST_TOKEN.name, time.monotonic() - self._began)
        if (usage := usage_in_events(body) if events else usage_of(body)) is not None:
            self._tokens(usage)

    def _tokens(self, usage: Usage) -> None:
        for kind, count in (("input", usage.input), ("output", usage.output)):
            if count is not None:
                self._measure(TOKEN_USAGE.name, count, {names.GEN_AI_TOKEN_TYPE: kind})

    def _measure(self, name: str, value: float, more: dict[str, str] | None = None) -> None:
        measure(name, value, {**self._attributes, **(more or {})}, self._span)
