"""Limits of the number of series of a reader. Imports the SDK; import it only when needed."""

from __future__ import annotations

import inspect
from typing import Any

from opentelemetry.sdk.metrics import ObservableCounter, ObservableGauge, ObservableUpDownCounter
from opentelemetry.sdk.metrics.export import MetricReader

from nvcf_otel.cardinality import LIMIT

SERIES_A_VERSION = 16
"""Maximum of a version's combinations of states, phases, clusters and GPUs. The SDK merges the rest."""


def series_limits() -> dict[str, Any]:
    """Return a reader's arguments. The SDK's default limit of 2,000 series means two for each version.

    Earlier SDKs have no limit.
    """
    if "cardinality_limits" not in inspect.signature(MetricReader.__init__).parameters:
        return {}
    kinds = (ObservableCounter, ObservableGauge, ObservableUpDownCounter)
    return {"cardinality_limits": dict.fromkeys(kinds, SERIES_A_VERSION * LIMIT)}
