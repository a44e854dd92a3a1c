"""Knative's Pod Autoscaler (KPA).

Source: Knative documentation, "Additional autoscaling configuration for Knative Pod Autoscaler"
(knative.dev/docs/serving/autoscaling/kpa-specific), "Configuring concurrency" and "Configuring scale to
zero", with the defaults given there: stable window 60 s, panic window 10 % of it, panic threshold 200 %,
target utilisation 70 % of the concurrency limit, scale-up rate 1000, scale-down rate 2, scale-to-zero grace
period 30 s, an evaluation every 2 s. The activator reports a request to a revision at zero at once. Queued
requests count as concurrency (the activator and the queue proxy hold them).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.simulate.model import SimulatedFunction
from nvcf_autoscaler.simulate.policies.base import NEVER, Answer, Policy, SingleRun


@dataclass(frozen=True)
class Knative(Policy):
    """Parameters of the KPA, see the module."""

    name: str = "kpa"
    reaction: float = 0.1
    stable: float = 60.0
    panic: float = 6.0
    target: float = 0.7
    panic_threshold: float = 2.0
    max_up: float = 1000.0
    max_down: float = 2.0
    grace: float = 30.0
    tick: float = 2.0

    def start(self, function: SimulatedFunction) -> KnativeRun:
        return KnativeRun(self, function)


class KnativeRun(SingleRun):
    """One revision's autoscaler."""

    def __init__(self, policy: Knative, function: SimulatedFunction) -> None:
        super().__init__(function)
        self._policy = policy
        self._target = policy.target * self._slots
        self._window = CumulativeWindow(policy.stable)
        self._panic_since: float | None = None
        self._panic_most = 0
        self._zero_since: float | None = None

    def decide(self, now: float, seen: Observation) -> Answer:
        """Decide by the stable count, or the larger panic count; zero only after the grace period."""
        policy = self._policy
        spec = seen.specifications[0]
        if spec.total == 0 and seen.queued == 0:
            self._window.clear()
            return self._bounded(0, NEVER, wake=True)
        if spec.total == 0:
            # Woken by the activator: the first sample is what waits there.
            self._window.clear()
            self._window.add(now - 1.0, seen.demand_seconds - seen.queued)
        self._window.add(now, seen.demand_seconds)
        ready = max(1, spec.running)
        stable = self._clamp(math.ceil(self._window.mean(policy.stable) / self._target - 1e-9), ready)
        raw_panic = math.ceil(self._window.mean(policy.panic) / self._target - 1e-9)
        desired = self._with_panic(now, stable, self._clamp(raw_panic, ready), raw_panic / ready)
        return self._bounded(self._zero_or(now, desired, spec.total), now + policy.tick, wake=False)

    def _clamp(self, count: int, ready: int) -> int:
        policy = self._policy
        return min(max(count, math.floor(ready / policy.max_down)), math.ceil(policy.max_up * ready))

    def _with_panic(self, now: float, stable: int, panic: int, ratio: float) -> int:
        policy = self._policy
        if ratio >= policy.panic_threshold:
            self._panic_since = now
        elif self._panic_since is not None and self._panic_since + policy.stable < now:
            self._panic_since = None
            self._panic_most = 0
        if self._panic_since is None:
            return stable
        self._panic_most = max(self._panic_most, stable, panic)
        return self._panic_most

    def _zero_or(self, now: float, desired: int, total: int) -> int:
        if desired > 0:
            self._zero_since = None
            return desired
        if self._zero_since is None:
            self._zero_since = now
        return 0 if now - self._zero_since >= self._policy.grace else min(1, total)

    def _bounded(self, desired: int, requeue_at: float, *, wake: bool) -> Answer:
        return self._answer(max(self._low, min(self._high, desired)), requeue_at, wake=wake)


class CumulativeWindow:
    """Keeps a growing counter for `span` seconds, for its mean growth over the last seconds."""

    def __init__(self, span: float) -> None:
        self._span = span
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, now: float, value: float) -> None:
        """Add a reading. Readings come at regular intervals."""
        samples = self._samples
        samples.append((now, value))
        while len(samples) > 2 and samples[1][0] <= now - self._span:
            samples.popleft()

    def mean(self, seconds: float) -> float:
        """Return the growth per second over the last `seconds`, or over what is known."""
        samples = self._samples
        if len(samples) < 2:
            return 0.0
        now, value = samples[-1]
        then, before = samples[0]
        if seconds < self._span:
            for at, reading in reversed(samples):
                then, before = at, reading
                if at <= now - seconds:
                    break
        return (value - before) / (now - then) if now > then else 0.0

    def clear(self) -> None:
        """Drop all readings."""
        self._samples.clear()
