"""Queries of Grafana dashboards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Longest first, because a name can be a prefix of another.
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
    """Yield titles and queries of a dashboard's panels."""
    for panel in document["panels"]:
        for target in panel.get("targets") or ():
            yield panel["title"], target["expr"]


def share_queries(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield titles and queries of the panels in percent."""
    for panel in document["panels"]:
        if panel.get("fieldConfig", {}).get("defaults", {}).get("unit") == "percentunit":
            yield from panel_queries({"panels": [panel]})


def substituted(query: str) -> str:
    """Return a query as Grafana sends it with all values selected."""
    for name, value in VALUES.items():
        query = query.replace(name, value)
    return query
