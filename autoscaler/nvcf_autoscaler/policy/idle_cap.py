"""A cap on idle time: an idle version keeps instances only for as long as its work has earned.

One start-up time is always allowed: to end an instance sooner can only pay if no request comes, and a start
costs as much.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from nvcf_autoscaler.policy.idle import KeepPlan
from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.policy.settings import ScalingSettings


class IdleBudget(NamedTuple):
    """Idle seconds that are left, and the busy seconds that they were earned by."""

    left: float
    busy_seconds: float


def after(
    budget: IdleBudget | None,
    plan: KeepPlan | None,
    seen: Observation,
    settings: ScalingSettings,
    *,
    ended: bool,
) -> IdleBudget | None:
    """Return the budget now; `ended`: an idle time has ended in which `plan` held. None without a cap."""
    cap, tuning = settings.idle_cap, settings.tuning
    if cap is None:
        return None
    if budget is None:
        return IdleBudget(tuning.idle_first, seen.busy_seconds)
    left = budget.left
    if ended and plan is not None:
        left = max(0.0, left - _kept(within(plan, budget), seen.activity.idle_before))
    left += cap * max(0.0, seen.busy_seconds - budget.busy_seconds) / settings.slots
    return IdleBudget(min(left, tuning.keep_max), seen.busy_seconds)


def within(plan: KeepPlan, budget: IdleBudget | None) -> KeepPlan:
    """Return what the budget allows of a plan: the keep-alive first, the start ahead if all of it fits."""
    if budget is None:
        return plan
    keep = min(plan.keep, max(budget.left, plan.start))
    window = (plan.warm_until or 0.0) - (plan.warm_from or 0.0)
    if window > budget.left - keep:
        return replace(plan, keep=keep, warm_from=None, warm_until=None)
    return plan if keep == plan.keep else replace(plan, keep=keep)


def _kept(plan: KeepPlan, idle: float) -> float:
    """Return for how many of these idle seconds the plan had an instance."""
    kept = min(idle, plan.keep)
    if plan.warm_from is not None and plan.warm_until is not None:
        kept += max(0.0, min(idle, plan.warm_until) - plan.warm_from)
    return kept
