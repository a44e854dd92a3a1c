"""Replays what a version did against other settings: GPU time, money, and how long callers waited."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nvcf_autoscaler.policy.settings import PROFILES
from nvcf_autoscaler.simulate.engine import simulate
from nvcf_autoscaler.simulate.model import SimulatedFunction
from nvcf_autoscaler.simulate.policies.ours import Ours
from nvcf_autoscaler.simulate.recorded import Recorded
from nvcf_autoscaler.simulate.report import attainment, percentile

WIDTH = 80
_HEIGHT = 12
_LEAST_WAIT = 0.01
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Setting:
    """Settings of a deployment that are tried."""

    profile: str
    min_instances: int
    max_instances: int
    slots: int

    def text(self) -> str:
        """Return it in few words."""
        return f"{self.profile}, {self.min_instances} to {self.max_instances}, {self.slots} at a time"

    def applied(self, function: SimulatedFunction) -> SimulatedFunction:
        """Return the function with these settings."""
        specification = replace(
            function.specifications[0],
            min_instances=self.min_instances,
            max_instances=self.max_instances,
            max_request_concurrency=self.slots,
        )
        return replace(function, specifications=(specification,))


@dataclass(frozen=True)
class Outcome:
    """What a setting would have cost, in GPU-hours, and the waits of callers in seconds."""

    setting: Setting
    gpu_hours: float
    p50: float
    p95: float
    p99: float
    longest: float
    in_slo: float
    current: bool


def settings_to_try(recorded: Recorded) -> list[Setting]:
    """Return the present setting first, then all profiles, other bounds, and other slots."""
    spec = recorded.function.specifications[0]
    now = Setting(recorded.profile, spec.min_instances, spec.max_instances, spec.max_request_concurrency)
    tried = [now, *(replace(now, profile=profile) for profile in PROFILES)]
    tried += [replace(now, min_instances=least) for least in (0, 1) if least <= now.max_instances]
    halved = max(1, now.min_instances, now.max_instances // 2)
    tried += [replace(now, max_instances=most) for most in (halved, now.max_instances * 2)]
    tried += [replace(now, slots=slots) for slots in (max(1, now.slots // 2), now.slots * 2)]
    return list(dict.fromkeys(tried))


def outcomes(recorded: Recorded, seed: int = 1) -> list[Outcome]:
    """Return what each setting would have given. The present one is the first."""
    tried = settings_to_try(recorded)
    return [_outcome(recorded.function, setting, seed, is_current=setting == tried[0]) for setting in tried]


def _outcome(function: SimulatedFunction, setting: Setting, seed: int, *, is_current: bool) -> Outcome:
    result = simulate(setting.applied(function), Ours(profile=setting.profile), seed)
    waits = sorted(result.waits)
    p50, p95, p99 = (percentile(waits, share) for share in (0.5, 0.95, 0.99))
    hours = result.gpu_seconds / 3600
    return Outcome(setting, hours, p50, p95, p99, waits[-1], attainment([result]), is_current)


def report(recorded: Recorded, found: Sequence[Outcome], price: float = 0.0) -> str:
    """Return the advice as text of at most 80 columns: what was recorded, a table, and a plot.

    `price` is of one GPU-hour.
    """
    function = recorded.function
    startup = function.specifications[0].startup
    days = function.horizon / 86400
    span = f"{days:.1f} days" if days >= 1 else f"{function.horizon / 3600:.2f} hours"
    source = f"{recorded.startups} starts" if recorded.startups else "assumed, none was measured"
    busy = sum(function.durations)
    lines = [
        recorded.name[:WIDTH],
        f"version {recorded.version_id}",
        f"{len(function.arrivals)} requests in {span}, {busy / len(function.arrivals):.2f} s each",
        f"start-up {startup.median:.1f} s ({source})",
        f"really: {recorded.gpu_seconds / 3600:.3f} GPU-hours{_money(recorded.gpu_seconds / 3600, price)},"
        f" mean wait {recorded.mean_wait:.2f} s",
        "",
        "would have been (waits in seconds; * is the present setting):",
        *_table(found, price, function.wait_slo),
        "",
        *plot([(each.gpu_hours, each.p99) for each in found]),
    ]
    if any(each.setting.slots != found[0].setting.slots for each in found):
        lines += ["", "Other slots assume that the service time stays the same: measure it first."]
    return "\n".join(lines)


def _money(hours: float, price: float) -> str:
    return f", {hours * price:.2f} money" if price else ""


def _table(found: Sequence[Outcome], price: float, slo: float) -> list[str]:
    rows = [["", "setting", "GPU-h", *(["cost"] if price else []), "p50", "p95", "p99", f"in {slo:g} s"]]
    for letter, each in zip(_LETTERS, found, strict=False):
        rows.append(
            [
                letter + ("*" if each.current else " "),
                each.setting.text(),
                f"{each.gpu_hours:.3f}",
                *([f"{each.gpu_hours * price:.2f}"] if price else []),
                *(f"{wait:.1f}" for wait in (each.p50, each.p95, each.p99)),
                f"{each.in_slo * 100:.1f} %",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index < 2 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def plot(points: Sequence[tuple[float, float]]) -> list[str]:
    """Return a plot of GPU-hours (to the right) against p99 waits (logarithmic, up); points have letters.

    Points on the same place show the first letter.
    """
    columns = WIDTH - 12
    hours = [hour for hour, _ in points]
    waits = [math.log(max(_LEAST_WAIT, wait)) for _, wait in points]
    left, right, low, high = min(hours), max(hours), min(waits), max(waits)
    rows = [[" "] * columns for _ in range(_HEIGHT)]
    for letter, hour, wait in reversed(list(zip(_LETTERS, hours, waits, strict=False))):
        column = round((hour - left) / (right - left) * (columns - 1)) if right > left else 0
        row = round((high - wait) / (high - low) * (_HEIGHT - 1)) if high > low else 0
        rows[row][column] = letter
    lines = []
    for index, cells in enumerate(rows):
        label = {0: f"{math.exp(high):.2f} s", _HEIGHT - 1: f"{math.exp(low):.2f} s"}.get(index, "")
        lines.append(f"{label:>9} |{''.join(cells)}".rstrip())
    end = f"{right:.3f} GPU-hours"
    begin = f"{left:.3f}"
    axis = begin + end.rjust(columns - len(begin))
    return ["p99 wait", *lines, " " * 10 + "+" + "-" * columns, " " * 11 + axis]
