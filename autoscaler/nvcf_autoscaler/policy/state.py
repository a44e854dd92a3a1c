"""What the policy remembers of one function version between decisions. Immutable: a decision returns a new
one.
"""

from __future__ import annotations

from typing import NamedTuple

from nvcf_autoscaler.policy.idle import Gaps, KeepPlan
from nvcf_autoscaler.policy.rates import Rates, Sample
from nvcf_autoscaler.policy.stabilisation import Level
from nvcf_autoscaler.policy.utilisation import UtilisationMemory


class Memory(NamedTuple):
    """Empty for a version that was never seen. May be thrown away at any time: that only costs efficiency.

    `levels`: stabilisation.py. `first_gaps`: idle times of the whole version, `further_gaps` times for which
    a further instance was not needed, each with the plan made from them. `crowd` is the mean number of
    requests within a start-up time after an idle time, `crowd_from` when the next such count began, and
    `crowd_then` what the decision at `crowd_at` went by: looking twice at one instant changes nothing.
    `growth_base` is the instance count when the present growth period began, at `growth_at`.
    """

    rates: Rates = Rates()
    levels: tuple[Level, ...] = ()
    busy_since: float | None = None
    first_gaps: Gaps = Gaps()
    further_gaps: Gaps = Gaps()
    first_plan: KeepPlan | None = None
    further_plan: KeepPlan | None = None
    crowd: float = 1.0
    crowd_from: Sample | None = None
    growth_at: float = float("-inf")
    growth_base: int = 0
    utilisation: UtilisationMemory = UtilisationMemory()
    crowd_at: float = float("-inf")
    crowd_then: float = 1.0
