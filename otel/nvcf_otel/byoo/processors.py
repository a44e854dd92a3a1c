"""The collector's processors: filters and added attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nvcf_otel.byoo.exporters import Config
from nvcf_proto.models import TelemetrySettings

BATCH = "batch"

# By OTLP names and by Prometheus names.
PLATFORM_METRICS = r"(nvcf|nvct|http|rpc|messaging|process|hw|gen_ai|nv_inference|otelcol)[._][a-zA-Z0-9_.:]+"
# Metrics that a scrape produces about itself.
_SCRAPE_METRICS = r"(up|scrape_[a-z_]+)"
DEFAULT_SLOW_SECONDS = 1.0


def batch() -> Config:
    """Batch into few large requests, with a delay of at most 0.2 seconds."""
    return {"send_batch_size": 2048, "send_batch_max_size": 4096, "timeout": "200ms"}


def resource(attributes: Mapping[str, str]) -> dict[str, Config]:
    """Set attributes on all telemetry, whatever the sender has set."""
    if not attributes:
        return {}
    actions = [
        {"action": "upsert", "key": key, "value": value.replace("$", "$$")}
        for key, value in sorted(attributes.items())
    ]
    return {"resource": {"attributes": actions}}


def metrics_filter(allowed: Sequence[str]) -> dict[str, Config]:
    """Drop the scrape's own metrics and, if a list is given, every metric that is not on it."""
    conditions = [f'IsMatch(name, "^{_SCRAPE_METRICS}$$")']
    if allowed:
        patterns = "|".join(f"({pattern})" for pattern in (PLATFORM_METRICS, *allowed))
        conditions.append(f'not IsMatch(name, "^({_quoted(patterns)})$$")')
    return {"filter/metrics": {"error_mode": "ignore", "metrics": {"metric": conditions}}}


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def scrape_relabelling() -> list[Config]:
    """Keep only the platform's metrics of a scraped endpoint."""
    return [{"source_labels": ["__name__"], "regex": PLATFORM_METRICS, "action": "keep"}]


def tail_sampling(settings: TelemetrySettings) -> dict[str, Config]:
    """Keep a share of the traces, and all with errors or long durations. Empty when all are wanted."""
    if settings.sampled_percent is None or settings.sampled_percent >= 100:
        return {}
    slow = DEFAULT_SLOW_SECONDS if settings.slow_seconds is None else settings.slow_seconds
    policies: list[Config] = [
        {"name": "errors", "type": "status_code", "status_code": {"status_codes": ["ERROR"]}},
        {"name": "slow", "type": "latency", "latency": {"threshold_ms": max(1, round(slow * 1000))}},
    ]
    if settings.sampled_percent > 0:
        share = {"sampling_percentage": settings.sampled_percent}
        policies.append({"name": "share", "type": "probabilistic", "probabilistic": share})
    return {"tail_sampling": {"decision_wait": "10s", "num_traces": 50_000, "policies": policies}}
