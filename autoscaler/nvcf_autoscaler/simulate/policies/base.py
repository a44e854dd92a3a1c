"""Interface of a simulated policy, and a constant number of instances as the simplest one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.simulate.model import SimulatedFunction

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Answer:
    """Desired instances per specification, and when to decide again.

    `wake_queued`: decide also when a request finds no free slot.
    """

    desired: tuple[int, ...]
    requeue_at: float
    wake_queued: bool


class Run(Protocol):
    """A policy that runs on one function. It may keep state."""

    def decide(self, now: float, seen: Observation) -> Answer:
        """Decide at time 0, at `requeue_at`, and at the wake-ups that the policy requests."""
        ...


@dataclass(frozen=True)
class Policy(ABC):
    """A policy with its parameters. `name` is the short one for tables.

    `reaction` is the seconds from a wake-up to the decision. `wake_after_idle` requests a wake-up by the
    first request after that many idle seconds (NEVER: none).
    """

    name: str = ""
    reaction: float = 0.0
    wake_after_idle: float = NEVER

    @abstractmethod
    def start(self, function: SimulatedFunction) -> Run:
        """Start on a function. Only an oracle may use its requests."""


@dataclass(frozen=True)
class Fixed(Policy):
    """A constant number of instances of the first specification, at most its maximum."""

    name: str = "fixed"
    instances: int = 1

    def start(self, function: SimulatedFunction) -> Run:
        spec = function.specifications[0]
        others = (0,) * (len(function.specifications) - 1)
        return FixedRun((min(self.instances, spec.max_instances), *others))


class SingleRun:
    """Base of runs that use only the first specification. `phase` is when in `interval` its loop runs."""

    def __init__(self, function: SimulatedFunction, interval: float = 1.0) -> None:
        spec = function.specifications[0]
        self._slots = spec.max_request_concurrency
        self._low, self._high = spec.min_instances, spec.max_instances
        self._others = (0,) * (len(function.specifications) - 1)
        # Loops of different functions run at different phases.
        self._phase = (sum(map(ord, function.name)) * 7.3) % interval

    def _answer(self, desired: int, requeue_at: float, *, wake: bool = False) -> Answer:
        return Answer((desired, *self._others), requeue_at, wake)


class FixedRun:
    """Always gives the same answer."""

    def __init__(self, desired: tuple[int, ...]) -> None:
        self._answer = Answer(desired, NEVER, False)

    def decide(self, now: float, seen: Observation) -> Answer:
        """Return the constant number."""
        return self._answer
