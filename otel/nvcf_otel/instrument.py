"""One metric: name, kind, unit, description and attributes. Does not import the SDK.

Names and units follow OpenTelemetry's conventions; `prometheus_name` is the name in Prometheus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

from opentelemetry.metrics import Meter


class Kind(Enum):
    """OpenTelemetry's kinds of instruments. Observed ones call back for their values at a collection."""

    COUNTER = "counter"
    UP_DOWN = "up_down_counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    OBSERVED_COUNTER = "observable_counter"
    OBSERVED_UP_DOWN = "observable_up_down_counter"
    OBSERVED_GAUGE = "observable_gauge"


@dataclass(frozen=True)
class Instrument:
    """Description of one metric. `buckets` are a histogram's inclusive upper bounds."""

    kind: Kind
    name: str
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    buckets: tuple[float, ...] | None = None

    @property
    def prometheus_name(self) -> str:
        """Return its name in Prometheus."""
        return prometheus_name(self.name, self.kind, self.unit)

    def create(self, meter: Meter, *callbacks: Any) -> Any:
        """Create the meter's instrument. An observed one takes its callbacks."""
        if self.kind in _OBSERVED:
            make = getattr(meter, f"create_{self.kind.value}")
            return make(self.name, callbacks=list(callbacks), unit=self.unit, description=self.description)
        if self.kind is Kind.HISTOGRAM:
            return meter.create_histogram(
                self.name, self.unit, self.description, explicit_bucket_boundaries_advisory=self.buckets
            )
        return getattr(meter, f"create_{self.kind.value}")(self.name, self.unit, self.description)


_OBSERVED = (Kind.OBSERVED_COUNTER, Kind.OBSERVED_UP_DOWN, Kind.OBSERVED_GAUGE)
_UNITS = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "%": "percent", "V": "volts", "Hz": "hertz"}


def prometheus_name(name: str, kind: Kind, unit: str) -> str:
    """Return the name by OpenTelemetry's "Prometheus and OpenMetrics compatibility" specification."""
    text = re.sub(r"_+", "_", re.sub(r"[^a-zA-Z0-9_:]", "_", name))
    counts = kind in (Kind.COUNTER, Kind.OBSERVED_COUNTER)
    suffix = "" if unit.startswith("{") else _UNITS.get(unit, "")
    if unit == "1" and kind in (Kind.GAUGE, Kind.OBSERVED_GAUGE):
        suffix = "ratio"
    if counts:
        text = text.removesuffix("_total")
    if suffix and not text.endswith(suffix):
        text = f"{text}_{suffix}"
    return f"{text}_total" if counts else text


counter = partial(Instrument, Kind.COUNTER)
histogram = partial(Instrument, Kind.HISTOGRAM)
observed_counter = partial(Instrument, Kind.OBSERVED_COUNTER)
observed_up_down = partial(Instrument, Kind.OBSERVED_UP_DOWN)
observed_gauge = partial(Instrument, Kind.OBSERVED_GAUGE)
