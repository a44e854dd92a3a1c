"""Observations and settings for the tests of decisions."""

from __future__ import annotations

from nvcf_autoscaler.policy.observation import Activity, Observation, SpecificationObservation
from nvcf_autoscaler.policy.settings import ScalingSettings, SpecificationSettings


def settings(
    *bounds: tuple[int, int], slots: int = 1, wait_slo: float = 5.0, keep_warm: int = 0
) -> ScalingSettings:
    """A deployment with one specification, `gpu0`, `gpu1`, ..., for each (min, max)."""
    return ScalingSettings(
        tuple(
            SpecificationSettings(f"gpu{index}", low, high, slots)
            for index, (low, high) in enumerate(bounds or ((0, 16),))
        ),
        wait_slo=wait_slo,
        keep_warm=keep_warm,
    )


def observe(
    *running: int,
    queued: int = 0,
    in_flight: int = 0,
    arrivals: int | None = None,
    completions: int = 0,
    busy_seconds: float = 0.0,
    starting: tuple[float, ...] = (),
    available: int | None = None,
    idle_since: float | None = None,
    busy_since: float | None = None,
    idle_before: float = 0.0,
    startups: tuple[float, ...] = (20.0, 20.0, 20.0),
) -> Observation:
    """One observation; `running` is by specification, `starting` and `available` of the first one."""
    specs = tuple(
        SpecificationObservation(
            f"gpu{index}", count, starting if index == 0 else (), available if index == 0 else None
        )
        for index, count in enumerate(running or (0,))
    )
    busy = queued + in_flight > 0
    return Observation(
        arrivals=queued + in_flight + completions if arrivals is None else arrivals,
        completions=completions,
        busy_seconds=busy_seconds,
        queued=queued,
        in_flight=in_flight,
        specifications=specs,
        activity=Activity(idle_since, busy_since if busy else None, idle_before),
        recent_startups=startups,
    )
