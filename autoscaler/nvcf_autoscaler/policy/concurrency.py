"""How many requests instances really take at once, learnt from requests that wait beside free slots.

A worker may take fewer requests than its deployment allows, e.g. while they would only wait in the queue of a
model server (Triton). Its declared slots then look free, though they start nothing. No worker has to report
it: requests wait for long although fewer are in flight than there are slots.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.policy.settings import ScalingSettings

SECONDS = 10.0
"""How long requests have to wait beside free slots, in `OBSERVATIONS` at least."""
OBSERVATIONS = 3
WAIT_SHARE = 0.5
"""The least expected wait, as a share of the SLO: requests on their way to a worker are no queue."""
FORGET_SECONDS = 600.0


class Concurrency(NamedTuple):
    """The share (0..1) of the declared slots that instances use, and what it was learnt from.

    `at` is when it was last confirmed. `since` is the start of the present wait beside free slots, with
    `observations` so far, of `slots` declared slots; `most` is the most that were in flight meanwhile.
    """

    share: float = 1.0
    at: float = float("-inf")
    since: float | None = None
    observations: int = 0
    slots: int = 0
    most: int = 0

    def after(self, now: float, seen: Observation, settings: ScalingSettings, service: float) -> Concurrency:
        """Return what is known after one more observation. service: seconds of a request."""
        slots = sum(
            bounds.max_request_concurrency * spec.running
            for spec, bounds in zip(seen.specifications, settings.specifications, strict=True)
        )
        used = min(1.0, seen.in_flight / slots) if slots else 0.0
        share, at = self.share, self.at
        if used >= share / 2:
            share, at = max(share, used), now
        elif now - at > FORGET_SECONDS:
            share = 1.0
        if not _waits_beside_free_slots(seen, settings, slots, service):
            return Concurrency(share, at)
        if self.since is None or self.slots != slots:
            return Concurrency(share, at, now, 1, slots, seen.in_flight)
        most, observations = max(self.most, seen.in_flight), self.observations + 1
        if now - self.since < SECONDS or observations < OBSERVATIONS:
            return Concurrency(share, at, self.since, observations, slots, most)
        return Concurrency(most / slots, now, now, 1, slots, seen.in_flight)

    def applied(self, settings: ScalingSettings) -> ScalingSettings:
        """Return settings with the slots that instances really have; at least one each."""
        if self.share >= 1.0:
            return settings
        specifications = tuple(
            replace(spec, max_request_concurrency=max(1, round(spec.max_request_concurrency * self.share)))
            for spec in settings.specifications
        )
        return replace(settings, specifications=specifications)


def _waits_beside_free_slots(
    seen: Observation, settings: ScalingSettings, slots: int, service: float
) -> bool:
    if not seen.queued or not 0 < seen.in_flight < slots:
        return False
    # Requests may wait for just the instances that start, e.g. of another region.
    if any(spec.starting for spec in seen.specifications):
        return False
    return seen.queued * service / seen.in_flight >= WAIT_SHARE * settings.wait_slo
