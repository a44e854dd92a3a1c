"""What the simulator asks of a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.simulate.model import SimulatedFunction

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Answer:
    """Desired instances per specification and when the policy wants to be asked again.

    `wake_queued`: also ask when a request finds no free slot. `reason` is only kept for inspection.
    """

    desired: tuple[int, ...]
    requeue_at: float
    wake_queued: bool


class Run(Protocol):
    """One policy at work on one function; it may keep state."""

    def decide(self, now: float, seen: Observation) -> Answer:
        """Called at time 0, at `requeue_at`, and at the wake-ups the policy asked for."""
        ...


class Policy(Protocol):
    """A policy with its parameters.

    `reaction` is the seconds from a wake-up to the decision; `wake_after_idle` asks for a wake-up by the
    first request after that many idle seconds (NEVER: no such wake-up).
    """

    @property
    def name(self) -> str:
        """Short name for tables."""
        ...

    @property
    def reaction(self) -> float:
        """See the class."""
        ...

    @property
    def wake_after_idle(self) -> float:
        """See the class."""
        ...

    def start(self, function: SimulatedFunction) -> Run:
        """Begin on a function. Only an oracle may look at its requests."""
        ...
