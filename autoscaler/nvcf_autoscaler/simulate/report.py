"""Summary of a run, and the table that compares policies."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nvcf_autoscaler.simulate.model import FunctionResult, SimulatedFunction


@dataclass(frozen=True, slots=True)
class Summary:
    """Results of one policy on a set of functions. Times in seconds, shares from 0 to 1.

    Percentiles are over all requests together; `p99_mean` is the mean of each function's own 99th percentile,
    `p99_median` the middle one; nine of ten functions stay below `p99_most`. `cost` is of all GPU time.
    `utilisation` is work over GPU time; it passes 1 where instances serve several requests at a time.
    """

    policy: str
    functions: int
    requests: int
    gpu_seconds: float
    utilisation: float
    p50: float
    p95: float
    p99: float
    p99_mean: float
    p99_median: float
    p99_most: float
    cost: float
    attainment: float
    cold_share: float
    starts: int
    stops: int
    refused: int
    decisions: int


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value that `share` of a sorted sequence does not exceed (nearest rank); 0 for none."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def attainment(results: Sequence[FunctionResult]) -> float:
    """Return the share of requests that started within their function's SLO."""
    total = sum(len(result.waits) for result in results)
    timely = sum(sum(1 for wait in result.waits if wait <= result.wait_slo + 1e-9) for result in results)
    return timely / total if total else 1.0


def summarise(policy: str, results: Sequence[FunctionResult], price: float = 0.0) -> Summary:
    """Summarise the results of all functions. `price` is of one GPU-hour."""
    waits = array("d")
    own = []
    for result in results:
        waits.extend(result.waits)
        if result.waits:
            own.append(percentile(sorted(result.waits), 0.99))
    own.sort()
    ordered = sorted(waits)
    gpu_seconds = sum(result.gpu_seconds for result in results)
    work = sum(result.work_seconds for result in results)
    return Summary(
        policy=policy,
        functions=len(results),
        requests=len(ordered),
        gpu_seconds=gpu_seconds,
        utilisation=work / gpu_seconds if gpu_seconds else 0.0,
        p50=percentile(ordered, 0.5),
        p95=percentile(ordered, 0.95),
        p99=percentile(ordered, 0.99),
        p99_mean=sum(own) / len(own) if own else 0.0,
        p99_median=percentile(own, 0.5),
        p99_most=percentile(own, 0.9),
        cost=gpu_seconds / 3600 * price,
        attainment=attainment(results),
        cold_share=sum(result.cold for result in results) / len(ordered) if ordered else 0.0,
        starts=sum(result.starts for result in results),
        stops=sum(result.stops for result in results),
        refused=sum(result.refused for result in results),
        decisions=sum(result.decisions for result in results),
    )


def by_function(
    functions: Sequence[SimulatedFunction], results: Mapping[str, Sequence[FunctionResult]], price: float
) -> list[dict[str, str | float]]:
    """Return a row for each policy and function: load, where the GPU-hours went, and waits in seconds.

    `load` is the slots that it would keep busy all the time. `price` is of one GPU-hour.
    """
    return [
        _row(policy, function, result, price)
        for policy, found in results.items()
        for function, result in zip(functions, found, strict=True)
    ]


def _row(
    policy: str, function: SimulatedFunction, result: FunctionResult, price: float
) -> dict[str, str | float]:
    waits = sorted(result.waits)
    hours = {
        "gpuHours": result.gpu_seconds,
        "servingHours": result.serving_seconds,
        "idleHours": result.idle_seconds,
        "startingHours": result.starting_seconds,
    }
    return {
        "policy": policy,
        "function": function.name,
        "family": function.family,
        "requests": len(waits),
        "load": round(sum(function.durations) / function.horizon, 5) if function.horizon else 0.0,
        **{name: round(seconds / 3600, 5) for name, seconds in hours.items()},
        "cost": round(result.gpu_seconds / 3600 * price, 4),
        "starts": result.starts,
        "cold": result.cold,
        **{f"p{share}": round(percentile(waits, share / 100), 3) for share in (50, 95, 99)},
        "longest": round(waits[-1], 3) if waits else 0.0,
        "inSlo": round(attainment([result]), 5),
    }


_COLUMNS = "policy,GPU-hours,x oracle,p50 s,p95 s,p99 s,mean p99 s,in SLO %,cold %,starts,stops"


def table(summaries: Sequence[Summary], limit: float | None = None) -> str:
    """Return the comparison as text; `limit` is the oracle's GPU-seconds."""
    priced = any(one.cost for one in summaries)
    columns = _COLUMNS.split(",")
    rows = [[*columns[:3], "cost", *columns[3:]] if priced else columns]
    for one in summaries:
        ratio = f"{one.gpu_seconds / limit:.2f}" if limit else "-"
        waits = [f"{wait:.2f}" for wait in (one.p50, one.p95, one.p99, one.p99_mean)]
        shares = [f"{share * 100:.1f}" for share in (one.attainment, one.cold_share)]
        counts = [str(one.starts), str(one.stops)]
        cost = [f"{one.cost:.2f}"] if priced else []
        rows.append([one.policy, f"{one.gpu_seconds / 3600:.1f}", ratio, *cost, *waits, *shares, *counts])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
