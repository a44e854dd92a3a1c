"""The policy's state for one function version. Immutable: a decision returns a new one."""

from __future__ import annotations

from typing import NamedTuple

from nvcf_autoscaler.policy.idle import Gaps, KeepPlan
from nvcf_autoscaler.policy.rates import Rates, Sample
from nvcf_autoscaler.policy.stabilisation import Recommendations
from nvcf_autoscaler.policy.utilisation import UtilisationState


class PolicyState(NamedTuple):
    """Empty for a new version. Losing it costs only efficiency.

    - `recommendations`: see stabilisation.py.
    - `first_gaps` are idle times of the whole version, `further_gaps` times in which a further instance was
      not needed. Each has the plan made from it.
    - `burst` is the mean number of requests within one start-up time after an idle time. `burst_from` is
      where the present count began. `burst_then` is the value that the decision at `burst_at` used, so that a
      second decision at the same instant gives the same answer.
    - `growth_base` is the instance count at `growth_at`, when the present growth period began.
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
    growth_at: float = float("-inf")
    growth_base: int = 0
    utilisation: UtilisationState = UtilisationState()
    burst_at: float = float("-inf")
    burst_then: float = 1.0
