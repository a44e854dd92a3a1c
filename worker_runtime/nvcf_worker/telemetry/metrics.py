"""Metrics of a worker: numbers written on the request path, and gauges read at collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from opentelemetry import metrics as otel_metrics
from opentelemetry.metrics import CallbackOptions, Meter, Observation

from nvcf_otel import compatible as peer
from nvcf_otel import instruments as common
from nvcf_otel import names
from nvcf_otel import worker_instruments as own
from nvcf_otel.histograms import Series, alias, histogram
from nvcf_otel.instrument import Instrument
from nvcf_otel.process import LoopLag

if TYPE_CHECKING:
    from nats.aio.client import Client


class WorkerMetrics:
    """Counters and histograms of one worker. Written on the event loop, read from any thread.

    attributes: of all metrics. peer_attributes: of the metrics that have the names of NVIDIA's worker.
    """

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
        self.dropped: Counter[str] = Counter()
        self.queue = histogram(own.REQUEST_QUEUE_DURATION).series(attributes)
        self.first_item = histogram(own.STREAM_FIRST_ITEM_DURATION).series(attributes)
        latency, same = peer.LATENCY
        self.latency = histogram(latency).series(peer_attributes)
        alias(same, latency)
        self._handler: dict[str, Series] = {}

    def handler(self, outcome: str) -> Series:
        """Return the histogram of handler durations with this outcome."""
        found = self._handler.get(outcome)
        if found is None:
            attributes = {**self.attributes, names.OUTCOME: outcome}
            found = self._handler[outcome] = histogram(own.HANDLER_DURATION).series(attributes)
        return found


@dataclass(frozen=True)
class GaugeSources:
    """Where values come from: slots, overdue requests, broker connection, regions, lag of the event loop."""

    slots: Callable[[], int]
    busy: Callable[[], int]
    lost: Callable[[], int]
    overdue: Callable[[], int]
    connection: Callable[[], Client | None]
    regions: Callable[[], tuple[str, ...]]
    broker_address: str
    lag: LoopLag


def observe(metrics: WorkerMetrics, running: Mapping[int, float], sources: GaugeSources) -> None:
    """Make metrics and gauges available to readers, which call back on their own threads.

    running: the arrival times of the requests in flight, by `perf_counter`.
    """
    meter = otel_metrics.get_meter("nvcf_worker")

    def one(instrument: Instrument, value: Callable[[], float]) -> None:
        _create(meter, (instrument,), metrics.attributes, "", lambda: {"": value()})

    def pair(instruments: tuple[Instrument, ...], value: Callable[[], float], **more: str) -> None:
        _create(meter, instruments, {**metrics.peer_attributes, **more}, "", lambda: {"": value()})

    def busy_seconds() -> float:
        now = perf_counter()
        return metrics.busy_seconds + sum(now - since for since in tuple(running.values()))

    def connected() -> int:
        connection = sources.connection()
        return int(connection is not None and connection.is_connected)

    one(own.WORKER_SLOTS, sources.slots)
    one(own.WORKER_SLOTS_BUSY, sources.busy)
    one(own.WORKER_SLOTS_LOST, sources.lost)
    one(own.REQUESTS_OVERDUE, sources.overdue)
    one(own.STREAM_ITEMS, lambda: metrics.items)
    one(own.REQUEST_REDELIVERIES, lambda: metrics.redeliveries)
    _create(meter, (own.REQUESTS_DROPPED,), metrics.attributes, names.REASON, lambda: dict(metrics.dropped))
    one(common.BROKER_CONNECTED, connected)
    one(common.BROKER_RECONNECTS, lambda: metrics.broker["reconnects"])
    sources.lag.observe(meter, metrics.attributes)

    pair(peer.REQUESTS, lambda: metrics.requests)
    pair(peer.RESPONSE_BYTES, lambda: metrics.response_bytes)
    pair(peer.THREADS, sources.slots)
    pair(peer.BUSY_SECONDS, busy_seconds)
    pair(peer.PRE_INFERENCE, lambda: metrics.before_seconds)
    pair(peer.POST_INFERENCE, lambda: metrics.after_seconds)
    pair(peer.INFERENCE, lambda: metrics.handler_seconds)
    pair(peer.SESSIONS, lambda: metrics.sessions)
    pair(peer.TOKEN_REFRESH_FAILURES, lambda: metrics.refresh_failures, token_type="worker")  # noqa: S106
    pair(peer.NATS_ERRORS, lambda: metrics.broker["errors"])
    pair(peer.NATS_RECONNECT_TOTAL, lambda: metrics.broker["reconnects"])
    pair(peer.NATS_DISCONNECTS, lambda: metrics.broker["disconnects"])
    pair(peer.NATS_LAME_DUCK, lambda: metrics.broker["lame_duck"])

    def several(
        instruments: tuple[Instrument, ...], attribute: str, values: Callable[[], Mapping[str, float]]
    ) -> None:
        _create(meter, instruments, metrics.peer_attributes, attribute, values)

    def statistic(name: str) -> Callable[[], Mapping[str, float]]:
        def read() -> Mapping[str, float]:
            connection = sources.connection()
            return {} if connection is None else {"": connection.stats[name]}

        return read

    def other_regions() -> Mapping[str, float]:
        others = ",".join(sources.regions()[1:])
        return {others: 1} if others else {}

    several(peer.RESPONSES, "error_code", lambda: {"0": metrics.answered, "500": metrics.failed})
    several(peer.HEALTH_CHECKS, "result", lambda: dict(metrics.health_checks))
    several(peer.NATS_OUT_BYTES, "", statistic("out_bytes"))
    several(peer.NATS_IN_BYTES, "", statistic("in_bytes"))
    several(peer.NATS_OUT_MESSAGES, "", statistic("out_msgs"))
    several(peer.NATS_IN_MESSAGES, "", statistic("in_msgs"))
    several(peer.NATS_RECONNECTS, "", statistic("reconnects"))
    several(peer.NATS_SERVER, "nats_fqdn", lambda: {sources.broker_address: connected()})
    several(peer.NATS_PRIMARY_REGION, "region", lambda: dict.fromkeys(sources.regions()[:1], 1))
    several(peer.NATS_OTHER_REGIONS, "regions", other_regions)


def _create(
    meter: Meter,
    instruments: tuple[Instrument, ...],
    shared: Mapping[str, str],
    attribute: str,
    values: Callable[[], Mapping[str, float]],
) -> None:
    """Create instruments with one observation for each value of `attribute`; without one if it is empty."""

    def observed(_: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(value, {**shared, attribute: key} if attribute else shared)
            for key, value in values().items()
        ]

    for instrument in instruments:
        instrument.create(meter, observed)
