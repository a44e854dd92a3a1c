"""The policy's state for one function version. Immutable: a decision returns a new one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from nvcf_autoscaler.policy.concurrency import Concurrency
from nvcf_autoscaler.policy.idle import Gaps, KeepPlan
from nvcf_autoscaler.policy.idle_cap import IdleBudget
from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.policy.rates import Rates, Sample
from nvcf_autoscaler.policy.settings import ScalingSettings
from nvcf_autoscaler.policy.stabilisation import Recommendations
from nvcf_autoscaler.policy.utilisation import UtilisationState

# A format string and its values. They are formatted only when somebody reads the reason.
Part = tuple[str, tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Desired:
    """The instances that one GPU specification should have, running and starting together."""

    specification_id: str
    instances: int


class LastDecision(NamedTuple):
    """A decision and what it saw. It holds until `requeue_at`, unless something happens."""

    seen: Observation
    settings: ScalingSettings
    desired: tuple[Desired, ...]
    requeue_at: float
    missing: int
    parts: tuple[Part, ...]
    needed: int

    def holds(self, now: float, seen: Observation, settings: ScalingSettings) -> bool:
        """Return whether the decision still holds: nothing but the integrals over time has changed."""
        then = self.seen
        return (
            now < self.requeue_at
            and seen.arrivals == then.arrivals
            and seen.completions == then.completions
            and seen.queued == then.queued
            and seen.in_flight == then.in_flight
            and seen.specifications == then.specifications
            and seen.activity == then.activity
            and seen.recent_startups == then.recent_startups
            and settings == self.settings
        )


class PolicyState(NamedTuple):
    """Empty for a new version. Losing it costs only efficiency.

    - `recommendations`: see stabilisation.py.
    - `first_gaps` are idle times of the whole version, `further_gaps` times in which a further instance was
      not needed. Each has the plan made from it.
    - `burst` is the mean number of requests within one start-up time after an idle time. `burst_from` is
      where the present count began.
    - `idle_budget` is the idle time that is left, where it is capped.
    - `growth_base` is the instance count at `growth_at`, when the present growth period began.
    - `last` is the last decision and what it saw.
    - `concurrency` is how many requests instances really take at once.
    """

    rates: Rates = Rates()
    recommendations: Recommendations = ()
    busy_since: float | None = None
    first_gaps: Gaps = Gaps()
    further_gaps: Gaps = Gaps()
    first_plan: KeepPlan | None = None
    further_plan: KeepPlan | None = None
    burst: float = 1.0
    burst_from: Sample | None = None
    idle_budget: IdleBudget | None = None
    growth_at: float = float("-inf")
    growth_base: int = 0
    utilisation: UtilisationState = UtilisationState()
    last: LastDecision | None = None
    concurrency: Concurrency = Concurrency()
