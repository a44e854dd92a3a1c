"""Grafana dashboards, generated: `python -m nvcf_otel.dashboards` writes `otel/dashboards/*.json`.

Needs the extra `dashboards`. Queries take the names of metrics from `nvcf_otel.instruments`, so a query
cannot name a metric that no process exports.
"""
