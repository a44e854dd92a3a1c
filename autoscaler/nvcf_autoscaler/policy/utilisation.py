"""Scaling by utilisation, for deployments that set scaleUpDetails and scaleDownDetails.

Follows NVIDIA Cloud Functions documentation, "Configure Function Autoscaling". When utilisation is past
`threshold` percent for the stickiness, the present instance count is multiplied by `factor`. A version with
recent requests has at least one instance; one without goes to its minimum.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.policy.settings import ScalingDetails, ScalingSettings

# Utilisation over a shorter stretch is too noisy.
_STRETCH = 5.0
_NO_STICKINESS = 60.0


class UtilisationSample(NamedTuple):
    """Mean utilisation (0..1) over the `seconds` that ended at `at`."""

    at: float
    seconds: float
    utilisation: float


class UtilisationState(NamedTuple):
    """Samples within the longest window, and the counters and the target (None: none yet) at the last one."""

    samples: tuple[UtilisationSample, ...] = ()
    at: float | None = None
    busy: float = 0.0
    slots: float = 0.0
    target: int | None = None


def utilisation_target(
    now: float, seen: Observation, settings: ScalingSettings, state: UtilisationState
) -> tuple[UtilisationState, int, str]:
    """Return the target by utilisation and the reason. Raises ValueError without scale_up and scale_down."""
    up, down = settings.scale_up, settings.scale_down
    if up is None or down is None:
        raise ValueError("utilisation_target needs scale_up and scale_down")
    total = sum(spec.total for spec in seen.specifications)
    state = _sample(now, seen, state, max(_size(up), _size(down)))
    busy = seen.queued + seen.in_flight > 0
    # Zero stays zero while nothing comes, although instances may still be kept warm.
    target = total if state.target is None or (state.target == 0 and busy) else state.target
    if target == 0:
        return (state._replace(target=1), 1, "the first instance") if busy else (state, 0, "nothing to do")
    text = "utilisation within its thresholds"
    if total and past(state.samples, up, now, above=True):
        target = math.ceil(total * up.factor)
        text = f"utilisation above {up.threshold} %: {total} times {up.factor:g}"
        state = state._replace(samples=())
    elif total and past(state.samples, down, now, above=False):
        target = max(1 if busy else 0, math.floor(total * down.factor))
        text = f"utilisation below {down.threshold} %: {total} times {down.factor:g}"
        state = state._replace(samples=())
    target = min(target, settings.max_instances)
    return state._replace(target=target), target, text


def past(samples: tuple[UtilisationSample, ...], details: ScalingDetails, now: float, *, above: bool) -> bool:
    """Return whether utilisation was past the threshold for the stickiness (default: a whole minute)."""
    size = _size(details)
    needed = details.stickiness.threshold if details.stickiness else size
    seconds = observed = 0.0
    for sample in samples:
        stretch = min(sample.seconds, sample.at - (now - size))
        if stretch <= 0:
            continue
        observed += stretch
        percent = sample.utilisation * 100.0
        if percent > details.threshold if above else percent < details.threshold:
            seconds += stretch
    return observed > 0 and seconds >= needed - 1e-6


def _size(details: ScalingDetails) -> float:
    return details.stickiness.size if details.stickiness else _NO_STICKINESS


def _sample(now: float, seen: Observation, state: UtilisationState, size: float) -> UtilisationState:
    since = state.at
    if since is not None and now - since < _STRETCH:
        return state
    samples = state.samples
    slots = seen.slot_seconds - state.slots
    if since is not None and slots > 0:
        used = min(1.0, max(0.0, (seen.busy_seconds - state.busy) / slots))
        samples = (*samples, UtilisationSample(now, now - since, used))
        samples = tuple(sample for sample in samples if sample.at > now - size)
    return UtilisationState(samples, now, seen.busy_seconds, seen.slot_seconds, state.target)
