"""Figures of one worker: plain numbers on the request path, read when somebody collects them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from nvcf_otel import compatible, names
from nvcf_otel import worker_instruments as instruments
from nvcf_otel.histograms import Series, alias, histogram


class Figures:
    """Written on the event loop, read from any thread. `attributes` go with all of them."""

    def __init__(self, attributes: Mapping[str, str], peer_attributes: Mapping[str, str]) -> None:
        self.attributes = dict(attributes)
        self.peer_attributes = dict(peer_attributes)
        self.requests = 0
        self.redeliveries = 0
        self.answered = 0
        self.failed = 0
        self.response_bytes = 0
        self.items = 0
        self.sessions = 0
        self.busy_seconds = 0.0
        self.before_seconds = 0.0
        self.handler_seconds = 0.0
        self.after_seconds = 0.0
        self.health_checks: Counter[str] = Counter()
        self.refresh_failures = 0
        self.broker: Counter[str] = Counter()
        self.queue = histogram(instruments.REQUEST_QUEUE_DURATION).series(attributes)
        self.first_item = histogram(instruments.STREAM_FIRST_ITEM_DURATION).series(attributes)
        latency, same = compatible.LATENCY
        self.latency = histogram(latency).series(peer_attributes)
        alias(same, latency)
        self._handler: dict[str, Series] = {}

    def handler(self, outcome: str) -> Series:
        """Durations of the handler with this outcome."""
        found = self._handler.get(outcome)
        if found is None:
            attributes = {**self.attributes, names.OUTCOME: outcome}
            found = self._handler[outcome] = histogram(instruments.HANDLER_DURATION).series(attributes)
        return found
