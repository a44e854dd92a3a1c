"""Figures that are read off what the gateway knows anyway, whenever somebody collects them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from nvcf_gateway.queue.demand import Demand
from nvcf_gateway.telemetry.metrics import Figures, Ids, attributes_of
from nvcf_gateway.telemetry.sessions import SessionTelemetry
from nvcf_otel import instruments, names


def observe(figures: Figures, demand: Demand, sessions: SessionTelemetry) -> None:
    """Let them be collected; on the reader's thread, so only whole values are read."""
    meter = metrics.get_meter("nvcf_gateway")

    def active(_: CallbackOptions) -> Iterable[Observation]:
        waiting: Counter[Ids] = Counter()
        for version_id, count in demand.waiting():
            waiting[figures.known_ids(version_id)] += count
        return [Observation(count, attributes_of(ids)) for ids, count in waiting.items()]

    def cold_starts(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(count, attributes_of(ids)) for ids, count in list(figures.cold_starts.items())]

    def refused(_: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(count, {names.ROUTE: kind, names.REASON: reason})
            for (kind, reason), count in list(figures.refused.items())
        ]

    def linked(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(sessions.active)]

    def tunnelled(_: CallbackOptions) -> Iterable[Observation]:
        to_workers, to_callers = sessions.bytes()
        return [
            Observation(to_workers, {names.DIRECTION: "to-worker"}),
            Observation(to_callers, {names.DIRECTION: "to-caller"}),
        ]

    instruments.INVOCATION_ACTIVE.create(meter, active)
    instruments.INVOCATION_COLD_STARTS.create(meter, cold_starts)
    instruments.INVOCATION_REJECTED.create(meter, refused)
    instruments.SESSIONS_ACTIVE.create(meter, linked)
    instruments.TUNNEL_BYTES.create(meter, tunnelled)
