"""Spread slots over GPU specifications: preferred order, bounds, capacity, and no needless moves."""

from __future__ import annotations

from dataclasses import dataclass

from nvcf_autoscaler.policy.observation import SpecificationObservation
from nvcf_autoscaler.policy.settings import ScalingSettings, SpecificationSettings


@dataclass(frozen=True, slots=True)
class Spread:
    """Instances per specification in preferred order, slots without capacity, and spilled instances."""

    counts: tuple[int, ...]
    missing_slots: int
    spilled: int


def spread(slots: int, settings: ScalingSettings, seen: tuple[SpecificationObservation, ...]) -> Spread:
    """Return how many instances of each specification give `slots` slots.

    Existing instances are used before new ones are made, preferred ones first. Spilled instances therefore
    stay until they are not needed, and are the first to end. New ones go to the first specification with room
    below its maximum and with free capacity.
    """
    existing = {spec.id: spec for spec in seen}
    specs = settings.specifications
    counts: list[int] = []
    left = slots
    for spec in specs:
        have = existing[spec.id].total if spec.id in existing else 0
        wanted = -(-max(0, left) // spec.max_request_concurrency)
        count = max(spec.min_instances, min(have, spec.max_instances, wanted))
        counts.append(count)
        left -= count * spec.max_request_concurrency
    spilled = 0
    for index, spec in enumerate(specs):
        if left <= 0:
            break
        more = min(
            -(-left // spec.max_request_concurrency), _room(spec, counts[index], existing.get(spec.id))
        )
        counts[index] += more
        left -= more * spec.max_request_concurrency
        spilled += more if index else 0
    return Spread(tuple(counts), max(0, left), spilled)


def _room(spec: SpecificationSettings, count: int, seen: SpecificationObservation | None) -> int:
    below_maximum = spec.max_instances - count
    if seen is None or seen.available is None:
        return max(0, below_maximum)
    return max(0, min(below_maximum, seen.total + seen.available - count))
