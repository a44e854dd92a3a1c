"""Pictures of a comparison, with matplotlib (extra `simulate`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nvcf_autoscaler.errors import AutoscalerError
from nvcf_autoscaler.simulate.compare import Comparison
from nvcf_autoscaler.simulate.model import FunctionResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WAIT_FLOOR = 0.01


class PlotsUnavailable(AutoscalerError):
    """matplotlib is not installed."""


def draw(comparison: Comparison, path: Path) -> None:
    """Write a PNG with cost against tail wait, waits, instances and demand. Raises PlotsUnavailable."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise PlotsUnavailable("plots need matplotlib: pip install 'nvcf-worker[simulate]'") from error
    figure, axes = pyplot.subplots(2, 2, figsize=(13, 8), layout="constrained")
    figure.suptitle(comparison.title)
    _cost_against_wait(axes[0][0], comparison)
    _waits(axes[0][1], comparison)
    _instances(axes[1][0], comparison)
    _arrivals(axes[1][1], comparison)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _cost_against_wait(axis: Axes, comparison: Comparison) -> None:
    for one in comparison.summaries():
        axis.scatter(one.gpu_seconds / 3600, max(one.p99, _WAIT_FLOOR))
        axis.annotate(one.policy, (one.gpu_seconds / 3600, max(one.p99, _WAIT_FLOOR)))
    axis.set(xlabel="GPU-hours", ylabel="p99 wait, s", title="cost and tail wait: lower left is better")
    axis.set_yscale("log")


def _waits(axis: Axes, comparison: Comparison) -> None:
    for name, results in comparison.results.items():
        waits = sorted(wait for result in results for wait in result.waits)
        step = max(1, len(waits) // 2000)
        shown = waits[::step]
        shares = [(index * step + 1) / len(waits) for index in range(len(shown))]
        axis.plot([max(wait, _WAIT_FLOOR) for wait in shown], shares, label=name)
    axis.set(xlabel="wait, s", ylabel="share of requests", title="waits")
    axis.set_xscale("log")
    axis.legend()


def _instances(axis: Axes, comparison: Comparison) -> None:
    """Draw the instances of the function with most work, if the runs were traced."""
    busiest = max(range(len(comparison.functions)), key=lambda at: sum(comparison.functions[at].durations))
    for name, results in comparison.results.items():
        _steps(axis, results[busiest], name, emphasised=name == "ours")
    axis.set(xlabel="hours", ylabel="instances", title=f"instances of {comparison.functions[busiest].name}")
    axis.legend()


def _steps(axis: Axes, result: FunctionResult, name: str, *, emphasised: bool) -> None:
    times = [0.0, *(at / 3600 for at, _ in result.changes)]
    counts = [0, *(count for _, count in result.changes)]
    width, order = (1.8, 3) if emphasised else (0.8, 2)
    axis.step(times, counts, where="post", label=name, linewidth=width, zorder=order)


def _arrivals(axis: Axes, comparison: Comparison) -> None:
    hours = [arrival / 3600 for function in comparison.functions for arrival in function.arrivals]
    axis.hist(hours, bins=120)
    axis.set(xlabel="hours", ylabel="requests", title="arrivals of all functions")
