"""An autoscaler like NVIDIA Cloud Functions' own: utilisation with factor, threshold and stickiness.

Source: NVIDIA Cloud Functions documentation, "Configure Function Autoscaling" and "Function Autoscaler
Architecture" (docs.nvidia.com/nvcf): on an interval, utilisation is read from a time-series database; past
the threshold for the stickiness, the instance count is multiplied by the factor; recent invocations decide
between zero and one instance. Factors and thresholds are those of the documentation's example (1.5 above 75
%, 0.5 below 25 %). The documentation gives no interval, no scale-to-zero time-out and no default
stickiness: 15 s, 300 s, and one minute up, three of ten minutes down are assumed here (and the scrape lag
is taken as none).
"""

from __future__ import annotations

from dataclasses import dataclass

from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.policy.settings import ScalingDetails, ScalingSettings, Stickiness
from nvcf_autoscaler.policy.utilisation import UtilisationState, utilisation_target
from nvcf_autoscaler.simulate.model import SimulatedFunction
from nvcf_autoscaler.simulate.policies.base import NEVER, Answer, Policy, SingleRun
from nvcf_autoscaler.simulate.policies.ours import settings_of

_UP = ScalingDetails(1.5, 75, Stickiness(120.0, 60.0))
_DOWN = ScalingDetails(0.5, 25, Stickiness(600.0, 180.0))


@dataclass(frozen=True)
class NvcfLike(Policy):
    """Parameters of the rule, see the module."""

    name: str = "nvcf"
    interval: float = 15.0
    idle_timeout: float = 300.0
    up: ScalingDetails = _UP
    down: ScalingDetails = _DOWN

    def start(self, function: SimulatedFunction) -> NvcfRun:
        return NvcfRun(self, function)


class NvcfRun(SingleRun):
    """The scaling loop of one function version."""

    def __init__(self, policy: NvcfLike, function: SimulatedFunction) -> None:
        super().__init__(function, policy.interval)
        self._policy = policy
        first = settings_of(function).specifications[:1]
        self._settings = ScalingSettings(first, scale_up=policy.up, scale_down=policy.down)
        self._state = UtilisationState()

    def decide(self, now: float, seen: Observation) -> Answer:
        """Decide between zero and one by recent invocations, else by utilisation."""
        policy = self._policy
        total = seen.specifications[0].total
        idle_since = seen.activity.idle_since
        following = now + policy.interval - (now - self._phase) % policy.interval
        if total == 0 and idle_since is not None:
            return self._answer(self._low, NEVER, wake=True)
        if total == 0 and (now - self._phase) % policy.interval > 0.01:
            return self._answer(0, following)
        if idle_since is not None and now - idle_since >= policy.idle_timeout and self._low == 0:
            self._state = UtilisationState()
            return self._answer(0, NEVER, wake=True)
        self._state, target, _ = utilisation_target(now, seen, self._settings, self._state)
        target = max(1, self._low, target)
        self._state = self._state._replace(target=target)
        return self._answer(target, following)
