"""This project's policy: `nvcf_autoscaler.policy.decide.decide`, as it runs in production."""

from __future__ import annotations

from dataclasses import dataclass, field

from nvcf_autoscaler.policy.decide import decide
from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.policy.settings import DEFAULT_TUNING, ScalingSettings, SpecificationSettings, Tuning
from nvcf_autoscaler.policy.state import PolicyState
from nvcf_autoscaler.simulate.model import SimulatedFunction
from nvcf_autoscaler.simulate.policies.base import Answer, Policy


def settings_of(
    function: SimulatedFunction, tuning: Tuning = DEFAULT_TUNING, profile: str = "balanced"
) -> ScalingSettings:
    """Return the deployment of a simulated function."""
    return ScalingSettings(
        tuple(
            SpecificationSettings(
                spec.id, spec.min_instances, spec.max_instances, spec.max_request_concurrency
            )
            for spec in function.specifications
        ),
        wait_slo=function.wait_slo,
        profile=profile,
        tuning=tuning,
    )


@dataclass(frozen=True)
class Ours(Policy):
    """A wake-up reaches the decision within 0.1 s."""

    name: str = "ours"
    profile: str = "balanced"
    reaction: float = 0.1
    wake_after_idle: float = DEFAULT_TUNING.gap_min
    tuning: Tuning = field(default=DEFAULT_TUNING)

    def start(self, function: SimulatedFunction) -> OursRun:
        return OursRun(settings_of(function, self.tuning, self.profile))


class OursRun:
    """Carries the state from decision to decision."""

    def __init__(self, settings: ScalingSettings) -> None:
        self._settings = settings
        self._most = settings.max_instances
        self._state = PolicyState()

    def decide(self, now: float, seen: Observation) -> Answer:
        """Decide as policy.decide does."""
        decision = decide(now, seen, self._settings, self._state)
        self._state = decision.state
        desired = tuple([part.instances for part in decision.desired])
        return Answer(desired, decision.requeue_at, sum(desired) < self._most)
