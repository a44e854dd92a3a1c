"""PromQL built from instruments. Pure, without Grafana's library."""

from __future__ import annotations

import re
from collections.abc import Iterable

from nvcf_otel import instruments, names
from nvcf_otel.instruments import Instrument, Kind

WINDOW = "$__rate_interval"
VERSION = names.FUNCTION_VERSION_ID
NAME = names.FUNCTION_NAME


def label(attribute: str) -> str:
    """Return an attribute's name in Prometheus."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", attribute)


def instrument(name: str) -> Instrument:
    """Return the instrument of that OpenTelemetry name. Raises KeyError."""
    return {each.name: each for each in instruments.ALL}[name]


def series(of: str, where: str = "", suffix: str = "") -> str:
    """Return a selector: `of` is an instrument's name, `where` are label matchers."""
    found = instrument(of)
    if suffix and found.kind is not Kind.HISTOGRAM:
        raise ValueError(f"{of} is no histogram")
    return f"{found.prometheus_name}{suffix}" + (f"{{{where}}}" if where else "")


def total(of: str, by: Iterable[str] = (), where: str = "") -> str:
    """Sum a gauge."""
    return f"sum{_by(by)} ({series(of, where)})"


def highest(of: str, by: Iterable[str] = (), where: str = "") -> str:
    """Return the maximum of a gauge."""
    return f"max{_by(by)} ({series(of, where)})"


def rate(of: str, by: Iterable[str] = (), where: str = "", window: str = WINDOW) -> str:
    """Return the rate of a counter per second; for a histogram, the rate of its values."""
    suffix = "_count" if instrument(of).kind is Kind.HISTOGRAM else ""
    return f"sum{_by(by)} (rate({series(of, where, suffix)}[{window}]))"


def increase(of: str, by: Iterable[str] = (), where: str = "", window: str = "$__range") -> str:
    """Return the growth of a counter over a time."""
    suffix = "_count" if instrument(of).kind is Kind.HISTOGRAM else ""
    return f"sum{_by(by)} (increase({series(of, where, suffix)}[{window}]))"


def mean(of: str, by: Iterable[str] = (), where: str = "", window: str = WINDOW) -> str:
    """Return the mean of a histogram's values."""
    added = f"sum{_by(by)} (rate({series(of, where, '_sum')}[{window}]))"
    return f"{added} / {rate(of, by, where, window)}"


def quantile(share: float, of: str, by: Iterable[str] = (), where: str = "", window: str = WINDOW) -> str:
    """Return a quantile of a histogram's values."""
    buckets = f"sum{_by(['le', *by])} (rate({series(of, where, '_bucket')}[{window}]))"
    return f"histogram_quantile({share:g}, {buckets})"


def quantile_now(share: float, of: str, where: str = "") -> str:
    """Return a quantile over the present processes, of an event that happens once in each.

    A rate would show nothing: the value exists before the first scrape.
    """
    return f"histogram_quantile({share:g}, sum by (le) ({series(of, where, '_bucket')}))"


def buckets(of: str, where: str = "", window: str = WINDOW) -> str:
    """Return a histogram's buckets, for a heat map."""
    return f"sum by (le) (increase({series(of, where, '_bucket')}[{window}]))"


def share(part: str, whole: str) -> str:
    """Return a share of a whole, 0..1: 0 without a part, nothing without a whole."""
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


def share_of_ended(part: str, whole: str) -> str:
    """Return a share, at most 1, whose part is counted when a call begins and whose whole when it ends."""
    return f"clamp_max({share(part, whole)}, 1)"


def legend(*attributes: str) -> str:
    """Return the legend of lines by these attributes."""
    return " ".join(f"{{{{{label(each)}}}}}" for each in attributes)


def percentiles(of: str, *shares: float, where: str = "") -> list[tuple[str, str]]:
    """Return a line for each of these quantiles of a histogram's values."""
    return [(f"p{share * 100:g}", quantile(share, of, where=where)) for share in shares]


def or_zero(query: str) -> str:
    """Return 0 where the query has no series."""
    return f"{query} or on () vector(0)"


def by_name(query: str, merge: str = "sum") -> str:
    """Replace version ids by function names. `merge` is the operator over a function's versions."""
    ids, name = label(VERSION), label(NAME)
    info = f"max by ({ids}, {name}) ({series('nvcf.function.info')})"
    return f"{merge} by ({name}) ({query} * on ({ids}) group_left ({name}) {info})"


def matches(attribute: str, variable: str) -> str:
    """Return a matcher for a dashboard's variable."""
    return f'{label(attribute)}=~"${variable}"'


def living() -> str:
    """Return a matcher for instances that have not ended. Ended ones stay listed for some minutes."""
    return f'{label(names.INSTANCE_STATE)}!~"COMPLETED|FAILED"'


def _by(by: Iterable[str]) -> str:
    listed = ", ".join(label(each) for each in by)
    return f" by ({listed})" if listed else ""
