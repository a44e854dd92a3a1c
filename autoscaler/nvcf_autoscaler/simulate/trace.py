"""Arrival traces from CSV files.

A header names the columns: `time` (seconds from the beginning, any order), `duration` (seconds of service),
and optionally `tokens` and `function`. Where `duration` is missing or empty, tokens times
`seconds_per_token` is it. Rows of several functions may be mixed; without the column all rows are one
function.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections import defaultdict
from pathlib import Path

from nvcf_autoscaler.errors import InvalidTrace
from nvcf_autoscaler.simulate.model import SimulatedFunction, SimulatedSpecification


def read_csv(
    path: Path,
    specifications: tuple[SimulatedSpecification, ...],
    *,
    wait_slo: float = 5.0,
    horizon: float | None = None,
    seconds_per_token: float | None = None,
) -> list[SimulatedFunction]:
    """Read a trace. Without a horizon it ends with the last arrival. Raises InvalidTrace."""
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            _check_header(path, reader.fieldnames or ())
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                name = row.get("function") or path.stem
                rows[name].append((_number(row, "time", where), _duration(row, seconds_per_token, where)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidTrace(f"cannot read {path}: {error}") from error
    if not rows:
        raise InvalidTrace(f"{path} has no requests")
    end = horizon if horizon is not None else max(at for requests in rows.values() for at, _ in requests)
    functions = []
    for name, requests in sorted(rows.items()):
        kept = sorted(request for request in requests if request[0] <= end)
        functions.append(
            SimulatedFunction(
                name,
                array("d", (at for at, _ in kept)),
                array("d", (duration for _, duration in kept)),
                end,
                specifications,
                path.stem,
                wait_slo,
            )
        )
    return functions


def write_csv(path: Path, functions: list[SimulatedFunction]) -> None:
    """Write functions as a trace that `read_csv` reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("time", "duration", "function"))
        for function in functions:
            for arrival, duration in zip(function.arrivals, function.durations, strict=True):
                writer.writerow((f"{arrival:.3f}", f"{duration:.4f}", function.name))


def _check_header(path: Path, names: object) -> None:
    known = set(names) if isinstance(names, list | tuple) else set()
    if "time" not in known:
        raise InvalidTrace(f"{path}: the first line must name the columns, 'time' among them")
    if not known & {"duration", "tokens"}:
        raise InvalidTrace(f"{path}: a column 'duration' or 'tokens' is needed")


def _duration(row: dict[str, str], seconds_per_token: float | None, where: str) -> float:
    if row.get("duration"):
        return _number(row, "duration", where)
    if seconds_per_token is None:
        raise InvalidTrace(f"{where}: no duration; give --seconds-per-token to take it from the tokens")
    return _number(row, "tokens", where) * seconds_per_token


def _number(row: dict[str, str], column: str, where: str) -> float:
    text = row.get(column)
    try:
        value = float(text or "")
    except ValueError:
        raise InvalidTrace(f"{where}, column {column}: {text!r} is not a number") from None
    if not (math.isfinite(value) and value >= 0):
        raise InvalidTrace(f"{where}, column {column}: {text} is not a number of at least 0")
    return value
