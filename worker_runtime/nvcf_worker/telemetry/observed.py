"""What is read off a worker when somebody collects its figures; on the reader's thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from nvcf_otel import compatible as peer
from nvcf_otel import instruments as common
from nvcf_otel import worker_instruments as own
from nvcf_otel.instrument import Instrument
from nvcf_otel.process import LoopLag

if TYPE_CHECKING:
    from nats.aio.client import Client

    from nvcf_worker.telemetry.worker import WorkerTelemetry

Observe = Callable[[CallbackOptions], Iterable[Observation]]


@dataclass(frozen=True)
class Sights:
    """Where the values are: places for requests and those taken, the broker connection, regions, the loop."""

    slots: Callable[[], int]
    busy: Callable[[], int]
    connection: Callable[[], Client | None]
    regions: Callable[[], tuple[str, ...]]
    broker_address: str
    lag: LoopLag


def observe(telemetry: WorkerTelemetry, sights: Sights) -> None:
    """Let them be collected."""
    figures = telemetry.figures
    meter = metrics.get_meter("nvcf_worker")
    mine, theirs = figures.attributes, figures.peer_attributes

    def ours(instrument: Instrument, value: Callable[[], float]) -> None:
        instrument.create(meter, lambda _: [Observation(value(), mine)])

    def both(pair: tuple[Instrument, ...], value: Callable[[], float], **more: str) -> None:
        attributes = {**theirs, **more}
        for instrument in pair:
            instrument.create(meter, lambda _: [Observation(value(), attributes)])

    def busy_seconds() -> float:
        now = perf_counter()
        return figures.busy_seconds + sum(now - since for since in tuple(telemetry.requests.running.values()))

    ours(own.WORKER_SLOTS, sights.slots)
    ours(own.WORKER_SLOTS_BUSY, sights.busy)
    ours(own.STREAM_ITEMS, lambda: figures.items)
    ours(own.REQUEST_REDELIVERIES, lambda: figures.redeliveries)
    ours(common.BROKER_CONNECTED, lambda: int(_is_connected(sights.connection())))
    ours(common.BROKER_RECONNECTS, lambda: figures.broker["reconnects"])
    sights.lag.observe(meter, mine)

    both(peer.REQUESTS, lambda: figures.requests)
    both(peer.RESPONSE_BYTES, lambda: figures.response_bytes)
    both(peer.THREADS, sights.slots)
    both(peer.BUSY_SECONDS, busy_seconds)
    both(peer.PRE_INFERENCE, lambda: figures.before_seconds)
    both(peer.POST_INFERENCE, lambda: figures.after_seconds)
    both(peer.INFERENCE, lambda: figures.handler_seconds)
    both(peer.SESSIONS, lambda: figures.sessions)
    both(peer.TOKEN_REFRESH_FAILURES, lambda: figures.refresh_failures, token_type="worker")  # noqa: S106
    _several(
        meter, peer.RESPONSES, theirs, "error_code", lambda: {"0": figures.answered, "500": figures.failed}
    )
    _several(meter, peer.HEALTH_CHECKS, theirs, "result", lambda: dict(figures.health_checks))
    _broker(meter, telemetry, sights)


def _broker(meter: metrics.Meter, telemetry: WorkerTelemetry, sights: Sights) -> None:
    theirs, counts = telemetry.figures.peer_attributes, telemetry.figures.broker

    def stats(name: str) -> Callable[[], Mapping[str, float]]:
        def found() -> Mapping[str, float]:
            connection = sights.connection()
            return {} if connection is None else {"": connection.stats[name]}

        return found

    def counted(name: str) -> Callable[[], Mapping[str, float]]:
        return lambda: {"": counts[name]}

    for pair, values in (
        (peer.NATS_OUT_BYTES, stats("out_bytes")),
        (peer.NATS_IN_BYTES, stats("in_bytes")),
        (peer.NATS_OUT_MESSAGES, stats("out_msgs")),
        (peer.NATS_IN_MESSAGES, stats("in_msgs")),
        (peer.NATS_RECONNECTS, stats("reconnects")),
        (peer.NATS_ERRORS, counted("errors")),
        (peer.NATS_RECONNECT_TOTAL, counted("reconnects")),
        (peer.NATS_DISCONNECTS, counted("disconnects")),
        (peer.NATS_LAME_DUCK, counted("lame_duck")),
    ):
        _several(meter, pair, theirs, "", values)
    _several(
        meter,
        peer.NATS_SERVER,
        theirs,
        "nats_fqdn",
        lambda: {sights.broker_address: int(_is_connected(sights.connection()))},
    )
    _several(
        meter,
        peer.NATS_PRIMARY_REGION,
        theirs,
        "region",
        lambda: dict.fromkeys(sights.regions()[:1], 1),
    )
    _several(
        meter,
        peer.NATS_OTHER_REGIONS,
        theirs,
        "regions",
        lambda: {",".join(sights.regions()[1:]): 1} if sights.regions()[1:] else {},
    )


def _several(
    meter: metrics.Meter,
    pair: tuple[Instrument, ...],
    shared: Mapping[str, str],
    attribute: str,
    values: Callable[[], Mapping[str, Any]],
) -> None:
    """One value for each value of an attribute; without a name of an attribute there is one."""

    def observed(_: CallbackOptions) -> Iterable[Observation]:
        return [
            Observation(value, {**shared, attribute: key} if attribute else shared)
            for key, value in values().items()
        ]

    for instrument in pair:
        instrument.create(meter, observed)


def _is_connected(connection: Client | None) -> bool:
    return connection is not None and connection.is_connected
