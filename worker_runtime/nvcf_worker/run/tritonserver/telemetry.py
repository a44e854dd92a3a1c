"""Triton's statistics as metrics of the worker, under Triton's own names."""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry import metrics as otel_metrics
from opentelemetry.metrics import CallbackOptions, Observation

from nvcf_otel import names
from nvcf_otel.instrument import Instrument
from nvcf_otel.worker_instruments import BATCH_SIZE, TRITON
from nvcf_worker.run.tritonserver.slots import Totals
from nvcf_worker.telemetry.measurements import measure
from nvcf_worker.telemetry.setup import current
from nvcf_worker.telemetry.worker import WorkerTelemetry

MOST_BATCHES = 1000
"""Executions of one size in a second that are recorded one by one; more of them say no more."""
_MICROSECONDS = 1e6

_totals: dict[str, Totals] = {}
_observed: WorkerTelemetry | None = None


def report(model: str, totals: Totals, done: Totals) -> None:
    """Report the statistics of a model: `totals` so far, and what was `done` since the last report."""
    telemetry = current()
    if not isinstance(telemetry, WorkerTelemetry):
        return
    _totals[model] = totals
    _observe(telemetry)
    for size, count in done.batches.items():
        for _ in range(min(count, MOST_BATCHES)):
            measure(BATCH_SIZE.name, size, {names.BATCH_FUNCTION: model})


def _observe(telemetry: WorkerTelemetry) -> None:
    global _observed  # there is one worker per process
    if _observed is telemetry:
        return
    _observed = telemetry
    meter = otel_metrics.get_meter("nvcf_worker.triton")
    shared = telemetry.metrics.attributes
    for instrument, value in zip(TRITON, _VALUES, strict=True):
        _create(meter, instrument, value, shared)


def _create(meter: otel_metrics.Meter, instrument: Instrument, value: str, shared: dict[str, str]) -> None:
    def observed(_: CallbackOptions) -> Iterable[Observation]:
        # Called on a reader's thread.
        for model, totals in tuple(_totals.items()):
            number = getattr(totals, value)
            if isinstance(number, float):
                number = int(number * _MICROSECONDS)
            yield Observation(number, {**shared, names.TRITON_MODEL: model})

    instrument.create(meter, observed)


_VALUES = (
    "requests",
    "failures",
    "inferences",
    "executions",
    "duration",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
)
"""The attributes of `Totals`, in the order of the instruments."""
