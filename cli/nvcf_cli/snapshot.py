"""What `nvcf top` shows, made from what the API returns. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from nvcf_cli.api import Json, objects
from nvcf_cli.catalog import INACTIVE
from nvcf_cli.clusters import name_of
from nvcf_cli.screen import cell

_LIVING = ("RUNNING", "STARTING", "PENDING", "TERMINATING")
_BARS = "▁▂▃▄▅▆▇█"


class Row(msgspec.Struct, frozen=True, rename="camel"):
    """One deployed version. Rates are per second, latencies and ages seconds; None: not known."""

    function: str
    version_id: str
    status: str
    instances: dict[str, int]
    queued: int | None = None
    in_flight: int | None = None
    oldest: float | None = None
    waiting: int = 0
    arrivals: float = 0.0
    answers: float = 0.0
    failures: float = 0.0
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """Everything at one instant."""

    at: str
    rows: tuple[Row, ...]
    decisions: tuple[Json, ...]
    answered: tuple[float, ...] = ()
    """Answers per second of the last minutes, oldest first."""
    step_seconds: float = 5.0
    """Time of one of these values."""
    gateways: tuple[int, int] = (1, 1)
    """How many answered, of how many."""
    clusters: tuple[Json, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON members, for `--json`."""
        return {
            "at": self.at,
            "gateways": {"answered": self.gateways[0], "known": self.gateways[1]},
            "functions": [msgspec.to_builtins(row) for row in self.rows],
            "clusters": list(self.clusters),
            "decisions": list(self.decisions),
        }

    def total(self, name: str) -> float:
        """Return the sum of a member over all versions; unknown values count as 0."""
        return float(sum(getattr(row, name) or 0 for row in self.rows))

    @property
    def instances(self) -> Counter[str]:
        """Living instances by state."""
        total: Counter[str] = Counter()
        for row in self.rows:
            total.update(row.instances)
        return total


def snapshot(
    metrics: Json,
    functions: Iterable[Json],
    instances: Iterable[Json],
    clusters: Iterable[Json],
    events: Iterable[Json],
    wanted: frozenset[str] | None = None,
) -> Snapshot:
    """Put the answers of the API together; `wanted` limits it to these versions."""
    known = {str(each.get("functionVersionId")): each for each in objects(metrics, "versions")}
    alive: dict[str, Counter[str]] = {}
    for each in instances:
        if each.get("state") in _LIVING:
            alive.setdefault(str(each.get("functionVersionId")), Counter())[str(each["state"])] += 1
    rows = [
        _row(
            each, known.get(str(each.get("versionId")), {}), alive.get(str(each.get("versionId")), Counter())
        )
        for each in functions
        # A version that ends keeps its row until its last instance has ended.
        if (each.get("status") != INACTIVE or alive.get(str(each.get("versionId"))))
        and (wanted is None or each.get("versionId") in wanted)
    ]
    gateways = metrics.get("gateways") or {}
    return Snapshot(
        at=str(metrics.get("at", "")),
        rows=tuple(sorted(rows, key=lambda row: (-row.answers, -row.waiting, row.function))),
        decisions=tuple(e for e in events if wanted is None or e.get("functionVersionId") in wanted),
        answered=tuple(float(each.get("answersPerSecond") or 0) for each in objects(metrics, "series")),
        step_seconds=float(metrics.get("stepSeconds") or 5),
        gateways=(int(gateways.get("answered", 1)), int(gateways.get("known", 1))),
        clusters=tuple(sorted(clusters, key=name_of)),
    )


def _row(function: Json, metrics: Json, alive: Counter[str]) -> Row:
    queue = metrics.get("queue") or {}
    latency = metrics.get("latency") or {}
    return Row(
        function=str(function.get("name", "")),
        version_id=str(function.get("versionId", "")),
        status=str(function.get("status", "")),
        instances=dict(alive),
        queued=queue.get("queued"),
        in_flight=queue.get("inFlight"),
        oldest=queue.get("oldestSeconds"),
        waiting=int(metrics.get("waiting") or 0),
        arrivals=float(metrics.get("arrivalsPerSecond") or 0),
        answers=float(metrics.get("answersPerSecond") or 0),
        failures=float(metrics.get("failuresPerSecond") or 0),
        p50=latency.get("p50"),
        p90=latency.get("p90"),
        p99=latency.get("p99"),
    )


def decision_text(event: Json) -> tuple[str, str]:
    """Return the wanted number of instances and the reason; no number for what was no decision. Pure.

    Several GPU specifications are counted one by one: `2 H100, 1 L40S`.
    """
    data = event.get("data") or {}
    desired, kinds = cell(data, "desired"), cell(data, "kinds")
    first, separator, why = cell(event, "text").partition(": ")
    counted = bool(desired and separator) and first.split(" ")[0] == desired
    return kinds if "," in kinds else desired, why if counted else cell(event, "text")


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the last `width` values as bars; the highest is full, zero is the lowest."""
    shown = values[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return _BARS[0] * len(shown)
    return "".join(_BARS[min(len(_BARS) - 1, int(value / top * (len(_BARS) - 1) + 0.5))] for value in shown)


def seconds_text(value: float | None) -> str:
    """Return a duration in the unit that suits it: `340 ms`, `2.1 s`, `3.5 min`."""
    if value is None:
        return "-"
    if value < 1:
        return f"{value * 1000:.3g} ms"
    return f"{value:.3g} s" if value < 90 else f"{value / 60:.3g} min"


def rate_text(value: float) -> str:
    """Return a rate per second."""
    return (
        "0" if value == 0 else "<0.01" if value < 0.01 else f"{value:.3g}" if value < 100 else f"{value:.0f}"
    )


def share_text(part: float, whole: float) -> str:
    """Return a share in percent; `-` of nothing."""
    return "-" if whole <= 0 else f"{min(1.0, part / whole):.2%}" if part else "0%"
