"""How long an idle instance is kept, and whether one is started ahead of the next request.

Based on the hybrid histogram policy of Shahrad et al., "Serverless in the Wild: Characterizing and Optimizing
the Serverless Workload at a Large Cloud Provider" (USENIX ATC 2020). The distribution of a function's own
idle times decides a keep-alive window and a pre-warming window, within bounds, with a cautious prior at
first.

Two things differ from the paper. The distribution is the last idle times themselves, so a window can be
narrower than a histogram's bin: a start-up takes seconds, the paper's bins are minutes. The windows are not
fixed percentiles but those that would have cost least, idle GPU time against start-ups. A cold start costs
`price` start-up times on top of the one it takes: a break-even ("ski rental") rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nvcf_autoscaler.policy.settings import Tuning

REMEMBERED = 48
# The prior: idle times assumed of every function, in units of its start-up time.
_PRIOR = (0.2, 1.0, 6.0, 40.0)
_KEEP_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_WINDOW_SHARES = ((0.0, 1.0), (0.05, 0.95), (0.1, 0.9), (0.25, 0.75))
_PREWARM_FROM = 5


@dataclass(frozen=True, slots=True)
class KeepPlan:
    """Keep for `keep` idle seconds; start again at `warm_from` and stay until `warm_until`, if set.

    `learnt_from` is the number of idle times behind the plan, `start` the start-up time it was made for.
    """

    keep: float
    warm_from: float | None = None
    warm_until: float | None = None
    learnt_from: int = 0
    start: float = 0.0


@dataclass(frozen=True, slots=True)
class Gaps:
    """The last idle times, newest last, and how many there ever were."""

    recent: tuple[float, ...] = ()
    seen: int = 0

    def adding(self, gaps: Sequence[float]) -> Gaps:
        """Return the gaps with more added."""
        return Gaps((*self.recent, *gaps)[-REMEMBERED:], self.seen + len(gaps))


def plan_is_stale(plan: KeepPlan, gaps: Gaps, start: float) -> bool:
    """Return whether to plan again: a sixth more gaps are known, or the start-up time has changed."""
    if gaps.seen - plan.learnt_from >= max(1, min(plan.learnt_from, REMEMBERED) // 6):
        return True
    return abs(start - plan.start) > 0.1 * plan.start


def make_plan(gaps: Gaps, start: float, price: float, tuning: Tuning, *, ahead: bool = True) -> KeepPlan:
    """Return the cheapest plan for idle times like these when a start-up takes `start` seconds.

    Without `ahead`, choose only the keep-alive window.
    """
    known = sorted(gaps.recent)
    sample = sorted((*known, *(share * start for share in _PRIOR)))
    cold = start * (1.0 + price)
    keep, cost = _best_keep(sample, cold, tuning.keep_min, tuning.keep_max)
    if known and keep >= _quantile(known, 0.9):
        keep = min(tuning.keep_max, keep + _beyond(known, cold, tuning.tail))
    best = KeepPlan(keep, None, None, gaps.seen, start)
    # A window learnt from a handful of idle times is a coincidence.
    if not ahead or len(known) < _PREWARM_FROM:
        return best
    for share in _KEEP_SHARES:
        early = min(tuning.keep_max, _quantile(known, share) * 1.02) if share else 0.0
        early = max(tuning.keep_min, early)
        late = [gap for gap in known if gap > early]
        if len(late) < _PREWARM_FROM:
            break
        for window in _windows(late, start):
            if window[0] <= early + start or window[1] > tuning.prewarm_max:
                continue
            # Waiting out half a window that is wider than this cannot pay.
            if window[1] - window[0] > 2.0 * cold + start:
                continue
            total = _cost(sample, early, window, start, cold)
            if total < cost:
                cost, best = total, KeepPlan(early, window[0], window[1], gaps.seen, start)
    return best


def _best_keep(sample: Sequence[float], cold: float, keep_min: float, keep_max: float) -> tuple[float, float]:
    """Return the cheapest keep-alive window and its cost. Only ends just after a known gap are tried."""
    best, cost = keep_min, sum(min(gap, keep_min) + (cold if gap > keep_min else 0.0) for gap in sample)
    below = 0.0
    for index, gap in enumerate(sample):
        below += gap
        keep = gap * 1.1 + 0.5
        if not keep_min <= keep <= keep_max:
            continue
        total = below + (len(sample) - index - 1) * (keep + cold)
        if total < cost:
            best, cost = keep, total
    return best, cost


def _beyond(known: Sequence[float], cold: float, tail: float) -> float:
    """Return the seconds to keep beyond the longest known idle time.

    If nearly all idle times are worth bridging, one slightly longer than all of them is too. The upper half
    is taken as exponential, so that waiting longer is as good as it was at first.
    """
    middle = _quantile(known, 0.5)
    upper = [gap - middle for gap in known if gap > middle]
    excess = sum(upper) / len(upper) if upper else 0.0
    return tail * excess if excess <= cold else 0.0


def _windows(late: Sequence[float], start: float) -> Iterator[tuple[float, float]]:
    """Yield when to start and until when to stay for the middle of these idle times, with a margin."""
    for low, high in _WINDOW_SHARES:
        first, last = _quantile(late, low), _quantile(late, high)
        margin = max(1.0, 0.1 * (last - first), 0.01 * last)
        yield first - margin - 1.2 * start, last + margin


def _cost(
    sample: Iterable[float], keep: float, window: tuple[float, float], start: float, cold: float
) -> float:
    total = 0.0
    opens, closes = window
    for gap in sample:
        if gap <= keep:
            total += gap
        elif gap < opens:
            total += keep + cold
        elif gap <= closes:
            missing = max(0.0, opens + start - gap)
            total += keep + max(start, gap - opens) + (cold - start) * missing / start
        else:
            total += keep + (closes - opens) + cold
    return total


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
