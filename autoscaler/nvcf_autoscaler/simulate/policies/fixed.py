"""A constant number of instances: what is reserved without an autoscaler."""

from __future__ import annotations

from dataclasses import dataclass

from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.simulate.model import SimulatedFunction
from nvcf_autoscaler.simulate.policies.base import NEVER, Answer


@dataclass(frozen=True)
class Fixed:
    """`instances` of the first specification, at most its maximum."""

    instances: int = 1
    name: str = "fixed"
    reaction: float = 0.0
    wake_after_idle: float = NEVER

    def start(self, function: SimulatedFunction) -> FixedRun:
        """Start them at once."""
        spec = function.specifications[0]
        others = (0,) * (len(function.specifications) - 1)
        return FixedRun((min(self.instances, spec.max_instances), *others))


class FixedRun:
    """Always the same answer."""

    def __init__(self, desired: tuple[int, ...]) -> None:
        self._answer = Answer(desired, NEVER, False)

    def decide(self, now: float, seen: Observation) -> Answer:
        """Nothing to decide."""
        return self._answer
