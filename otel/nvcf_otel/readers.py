"""How many series a reader lets through. Imports the SDK; imported when it is used."""

from __future__ import annotations

import inspect
from typing import Any

from opentelemetry.sdk.metrics import ObservableCounter, ObservableGauge, ObservableUpDownCounter
from opentelemetry.sdk.metrics.export import MetricReader

from nvcf_otel.cardinality import LIMIT

SERIES_A_VERSION = 16
"""States, phases, clusters and GPUs of a version together, at most; beyond that the SDK adds the rest up."""


def series_limits() -> dict[str, Any]:
    """Arguments of a reader. The SDK's own limit of 2,000 series an instrument is two of each version.

    Earlier SDKs have none.
    """
    if "cardinality_limits" not in inspect.signature(MetricReader.__init__).parameters:
        return {}
    kinds = (ObservableCounter, ObservableGauge, ObservableUpDownCounter)
    return {"cardinality_limits": dict.fromkeys(kinds, SERIES_A_VERSION * LIMIT)}
