"""Instances that are not needed now but kept, or started ahead, because they may be needed soon."""

from __future__ import annotations

from typing import NamedTuple

from nvcf_autoscaler.policy.idle import Gaps, KeepPlan, make_plan, plan_is_stale
from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.policy.rates import Sample
from nvcf_autoscaler.policy.settings import ScalingSettings, Tuning
from nvcf_autoscaler.policy.stabilisation import Level, forget, held, touch
from nvcf_autoscaler.policy.startup import Startup
from nvcf_autoscaler.policy.state import Memory

_FORGET_LEVELS = 4 * 3600.0
_CROWD_WEIGHT = 0.15
_CROWD_MOST = 200.0
_NEVER = float("inf")


class Hold(NamedTuple):
    """The least number of instances to have, until when that holds, and why (empty: no more than needed)."""

    instances: int
    recheck_at: float
    why: tuple[str, tuple[object, ...]] | None = None


class Learnt(NamedTuple):
    """The parts of the memory that holding works with, after a look."""

    levels: tuple[Level, ...]
    busy_since: float | None
    first_gaps: Gaps
    further_gaps: Gaps
    first_plan: KeepPlan
    further_plan: KeepPlan
    crowd: float
    crowd_from: Sample | None


def hold(
    now: float, seen: Observation, needed: int, settings: ScalingSettings, memory: Memory, startup: Startup
) -> tuple[Hold, Learnt]:
    """What to have besides the `needed` instances, by the plans from before this look; and what is learnt."""
    first, further = _plans(now, settings, memory, startup)
    idle_since = seen.activity.idle_since
    levels = forget(memory.levels, now, _FORGET_LEVELS)
    existing = _existing_level(seen, settings)
    if not levels and existing > needed:
        # Nothing is remembered (a new leader): take what is there as needed until now, rather than end it
        # at once.
        levels = (Level(existing, now),)
    if idle_since is not None and levels and levels[-1].at < idle_since:
        # The first instance was needed until then, though nobody looked.
        levels, _ = touch(levels, max(1, levels[-1].height if needed else 1), idle_since)
    levels, rises = touch(levels, needed, now)
    keep_further = further.keep if needed else min(first.keep, further.keep)
    level, until = held(levels, now, first.keep, keep_further)
    # Kept, not started again: what has left meanwhile (or was lost) comes back when it is needed.
    level = min(level, max(existing, needed))
    answer = Hold(needed, _NEVER)
    if level > needed:
        keep = keep_further if level > 1 else first.keep
        answer = Hold(level, until, ("{} kept until unneeded for {:.3g} s", (level, keep)))
    if idle_since is not None and first.warm_from is not None and first.warm_until is not None:
        answer = _warm_ahead(now, idle_since + first.warm_from, idle_since + first.warm_until, answer)
    gaps, crowd, crowd_from = _learn_first(now, seen, memory, startup, settings.tuning)
    return answer, Learnt(
        levels,
        seen.activity.busy_since,
        gaps,
        memory.further_gaps.adding(rises) if rises else memory.further_gaps,
        first,
        further,
        crowd,
        crowd_from,
    )


def _existing_level(seen: Observation, settings: ScalingSettings) -> int:
    slots = sum(
        [
            spec.total * bounds.max_request_concurrency
            for spec, bounds in zip(seen.specifications, settings.specifications, strict=True)
        ]
    )
    return min(-(-slots // settings.slots), settings.max_level)


def _warm_ahead(now: float, opens: float, closes: float, answer: Hold) -> Hold:
    if now < opens:
        return answer._replace(recheck_at=min(answer.recheck_at, opens))
    if now >= closes:
        return answer
    if answer.instances >= 1:
        return answer._replace(recheck_at=min(answer.recheck_at, closes))
    return Hold(1, closes, ("warm ahead of a request expected within {:.3g} s", (closes - now,)))


def _plans(
    now: float, settings: ScalingSettings, memory: Memory, startup: Startup
) -> tuple[KeepPlan, KeepPlan]:
    tuning = settings.tuning
    first, further = memory.first_plan, memory.further_plan
    # Not twice at one instant: the same observation taken in again must not change the answer.
    again = bool(memory.levels) and memory.levels[-1].at >= now
    if first is None or (not again and plan_is_stale(first, memory.first_gaps, startup.usual)):
        if settings.scale_to_zero_delay is not None:
            first = KeepPlan(
                settings.scale_to_zero_delay, learnt_from=memory.first_gaps.seen, start=startup.usual
            )
        else:
            # Those who arrive during the start-up wait too, half of it on average.
            affected = (min(memory.crowd, tuning.crowd_most) + 1.0) / 2.0
            first = make_plan(memory.first_gaps, startup.usual, tuning.first_price * affected, tuning)
    if further is None or (not again and plan_is_stale(further, memory.further_gaps, startup.usual)):
        further = make_plan(memory.further_gaps, startup.usual, tuning.further_price, tuning, ahead=False)
    return first, further


def _learn_first(
    now: float, seen: Observation, memory: Memory, startup: Startup, tuning: Tuning
) -> tuple[Gaps, float, Sample | None]:
    """Take in the idle time that has ended, and how many came within a start-up time after one."""
    counting, crowd, gaps = memory.crowd_from, memory.crowd, memory.first_gaps
    if counting is not None and now - counting.at >= startup.usual:
        came = (seen.arrivals - counting.arrivals) * startup.usual / max(now - counting.at, 1e-3)
        crowd += _CROWD_WEIGHT * (min(max(1.0, came), _CROWD_MOST) - crowd)
        counting = None
    activity = seen.activity
    if activity.busy_since is not None and activity.busy_since != memory.busy_since:
        if activity.idle_before >= tuning.gap_min:
            gaps = gaps.adding((activity.idle_before,))
        if counting is None:
            counting = Sample(activity.busy_since, seen.arrivals - max(1, seen.queued + seen.in_flight))
    return gaps, crowd, counting
