"""Keep-alive: instances that are kept, or started ahead, although they are not needed now."""

from __future__ import annotations

from typing import NamedTuple

from nvcf_autoscaler.policy import idle_cap
from nvcf_autoscaler.policy.idle import Gaps, KeepPlan, make_plan, plan_is_stale
from nvcf_autoscaler.policy.idle_cap import IdleBudget
from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.policy.rates import Sample
from nvcf_autoscaler.policy.settings import ScalingSettings, Tuning
from nvcf_autoscaler.policy.stabilisation import Recommendation, Recommendations, expire, record, stabilised
from nvcf_autoscaler.policy.startup import Startup
from nvcf_autoscaler.policy.state import PolicyState

_REMEMBER_SECONDS = 4 * 3600.0
_BURST_WEIGHT = 0.15
_BURST_MAX = 200.0
_NEVER = float("inf")


class KeepAlive(NamedTuple):
    """The least number of instances, until when it holds, and why (None: no more than needed)."""

    instances: int
    requeue_at: float
    why: tuple[str, tuple[object, ...]] | None = None


class Learnt(NamedTuple):
    """The parts of PolicyState that keep-alive updates, in the order of their fields."""

    recommendations: Recommendations
    busy_since: float | None
    first_gaps: Gaps
    further_gaps: Gaps
    first_plan: KeepPlan
    further_plan: KeepPlan
    burst: float
    burst_from: Sample | None
    idle_budget: IdleBudget | None


def keep_alive(
    now: float,
    seen: Observation,
    needed: int,
    settings: ScalingSettings,
    state: PolicyState,
    startup: Startup,
) -> tuple[KeepAlive, Learnt]:
    """Return the instances to have when `needed` are needed, by the plans made before; and what is learnt."""
    planned, further = _plans(settings, state, startup)
    ended = seen.activity.busy_since is not None and seen.activity.busy_since != state.busy_since
    budget = idle_cap.after(state.idle_budget, state.first_plan, seen, settings, ended=ended)
    first = idle_cap.within(planned, budget)
    idle_since = seen.activity.idle_since
    past = expire(state.recommendations, now, _REMEMBER_SECONDS)
    existing = _existing_instances(seen, settings)
    if not past and existing > needed:
        # A new leader remembers nothing: treat what exists as needed until now instead of ending it at once.
        past = (Recommendation(existing, now),)
    if idle_since is not None and past and past[-1].at < idle_since:
        # The first instance was needed until then, although no decision was made at that instant.
        past, _ = record(past, max(1, past[-1].instances if needed else 1), idle_since)
    past, rises = record(past, needed, now)
    keep_further = further.keep if needed else min(first.keep, further.keep)
    kept, until = stabilised(past, now, first.keep, keep_further)
    # Instances kept only to stay warm are not replaced when they end or are lost.
    kept = min(kept, max(existing, needed))
    answer = KeepAlive(needed, _NEVER)
    if kept > needed:
        keep = keep_further if kept > 1 else first.keep
        answer = KeepAlive(kept, until, ("{} kept until unneeded for {:.3g} s", (kept, keep)))
    if (
        idle_since is not None
        and needed == 0
        and first.keep < planned.keep
        and now < idle_since + planned.keep
    ):
        answer = answer._replace(why=_capped(kept, first.keep, planned.keep, settings.idle_cap))
    if idle_since is not None and first.warm_from is not None and first.warm_until is not None:
        answer = _prewarm(now, idle_since + first.warm_from, idle_since + first.warm_until, answer)
    gaps, burst, burst_from = _learn_first(now, seen, state, startup, settings.tuning)
    further_gaps = state.further_gaps.adding(rises) if rises else state.further_gaps
    busy_since = seen.activity.busy_since
    return answer, Learnt(past, busy_since, gaps, further_gaps, planned, further, burst, burst_from, budget)


def _capped(kept: int, keep: float, planned: float, cap: float | None) -> tuple[str, tuple[object, ...]]:
    text = "{} kept until unneeded for {:.3g} s, not {:.3g} s: idle time is capped at {:g} times busy time"
    return text, (kept, keep, planned, cap)


def _existing_instances(seen: Observation, settings: ScalingSettings) -> int:
    """Return what exists, in instances of the preferred specification."""
    slots = sum(
        [
            spec.total * bounds.max_request_concurrency
            for spec, bounds in zip(seen.specifications, settings.specifications, strict=True)
        ]
    )
    return min(-(-slots // settings.slots), settings.max_preferred)


def _prewarm(now: float, opens: float, closes: float, answer: KeepAlive) -> KeepAlive:
    if now < opens:
        return answer._replace(requeue_at=min(answer.requeue_at, opens))
    if now >= closes:
        return answer
    if answer.instances >= 1:
        return answer._replace(requeue_at=min(answer.requeue_at, closes))
    return KeepAlive(1, closes, ("warm ahead of a request expected within {:.3g} s", (closes - now,)))


def _plans(settings: ScalingSettings, state: PolicyState, startup: Startup) -> tuple[KeepPlan, KeepPlan]:
    tuning = settings.tuning
    first, further = state.first_plan, state.further_plan
    if state.last is not None and state.last.settings != settings:
        first = further = None
    if first is None or plan_is_stale(first, state.first_gaps, startup.usual):
        if settings.scale_to_zero_delay is not None:
            first = KeepPlan(
                settings.scale_to_zero_delay, learnt_from=state.first_gaps.seen, start=startup.usual
            )
        else:
            # Requests that arrive during the start-up wait too, half of it on average.
            affected = (min(state.burst, tuning.burst_max) + 1.0) / 2.0
            first = make_plan(state.first_gaps, startup.usual, settings.price * affected, tuning)
    if further is None or plan_is_stale(further, state.further_gaps, startup.usual):
        price = settings.price * tuning.further_share
        further = make_plan(state.further_gaps, startup.usual, price, tuning, ahead=False)
    return first, further


def _learn_first(
    now: float, seen: Observation, state: PolicyState, startup: Startup, tuning: Tuning
) -> tuple[Gaps, float, Sample | None]:
    """Add the idle time that has ended, and count the requests within a start-up time after one."""
    counting, burst, gaps = state.burst_from, state.burst, state.first_gaps
    if counting is not None and now - counting.at >= startup.usual:
        came = (seen.arrivals - counting.arrivals) * startup.usual / max(now - counting.at, 1e-3)
        burst += _BURST_WEIGHT * (min(max(1.0, came), _BURST_MAX) - burst)
        counting = None
    activity = seen.activity
    if activity.busy_since is not None and activity.busy_since != state.busy_since:
        if activity.idle_before >= tuning.gap_min:
            gaps = gaps.adding((activity.idle_before,))
        if counting is None:
            counting = Sample(activity.busy_since, seen.arrivals - max(1, seen.queued + seen.in_flight))
    return gaps, burst, counting
