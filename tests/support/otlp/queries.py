"""Queries of Grafana dashboards, and Prometheus to ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Longest first: `$version` must not be taken for a part of another.
VALUES = {
    "$__rate_interval": "1m",
    "$__interval": "1m",
    "$__range": "5m",
    "$function": ".*",
    "$version": ".*",
    "$cluster": ".*",
    "$price": "2",
    "$gpu": ".*",
}


def panel_queries(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Titles and queries of a dashboard's panels."""
    for panel in document["panels"]:
        for target in panel.get("targets") or ():
            yield panel["title"], target["expr"]


def share_queries(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Those of panels that show shares in percent."""
    for panel in document["panels"]:
        if panel.get("fieldConfig", {}).get("defaults", {}).get("unit") == "percentunit":
            yield from panel_queries({"panels": [panel]})


def substituted(query: str) -> str:
    """A query as Grafana sends it with everything chosen."""
    for name, value in VALUES.items():
        query = query.replace(name, value)
    return query
