"""Grafana dashboards, generated: `python -m nvcf_otel.dashboards` writes `otel/dashboards/*.json`.

Needs the extra `dashboards`. Metrics are named by `nvcf_otel.instruments`, so that a query cannot name one
that nobody exports.
"""
