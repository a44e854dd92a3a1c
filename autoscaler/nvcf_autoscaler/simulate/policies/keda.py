"""KEDA scaling on queue length, with the Kubernetes HPA behind it.

Sources: KEDA documentation, "ScaledObject specification" (pollingInterval 30 s, cooldownPeriod 300 s), "NATS
JetStream scaler" (lag = pending + unacknowledged messages of the consumer), and Kubernetes documentation,
"Horizontal Pod Autoscaling" (evaluation every 15 s, desired = ceil(metric / target), tolerance 10 %,
scale-down stabilisation 300 s, scale-up by at most 4 or 100 % in 15 s). KEDA itself scales between zero and
one, the HPA beyond. The target is one request per slot, which suits GPU instances better than the default 10.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from nvcf_autoscaler.policy.observation import Observation
from nvcf_autoscaler.simulate.model import SimulatedFunction
from nvcf_autoscaler.simulate.policies.base import NEVER, Answer, Policy, SingleRun


@dataclass(frozen=True)
class Keda(Policy):
    """Parameters of KEDA and the HPA, see the module."""

    name: str = "keda"
    polling: float = 30.0
    cooldown: float = 300.0
    hpa_interval: float = 15.0
    stabilisation: float = 300.0
    tolerance: float = 0.1

    def start(self, function: SimulatedFunction) -> KedaRun:
        return KedaRun(self, function)


class KedaRun(SingleRun):
    """One ScaledObject and its HPA."""

    def __init__(self, policy: Keda, function: SimulatedFunction) -> None:
        super().__init__(function, policy.polling)
        self._policy = policy
        self._recommended: deque[tuple[float, int]] = deque()
        self._active_at = -NEVER

    def decide(self, now: float, seen: Observation) -> Answer:
        """Poll, then activate, scale by lag, or deactivate after the cool-down."""
        policy = self._policy
        low, high = self._low, self._high
        total = seen.specifications[0].total
        lag = seen.queued + seen.in_flight
        if total == 0:
            self._recommended.clear()
            if lag and self._polls(now):
                self._active_at = now
                return self._answer(1, now + policy.hpa_interval)
            return self._answer(low, self._next(now, policy.polling) if lag else NEVER, wake=not lag)
        if lag:
            self._active_at = now
        elif now - self._active_at >= policy.cooldown and low == 0:
            return self._answer(0, NEVER, wake=True)
        desired = math.ceil(lag / self._slots)
        if abs(lag / (self._slots * total) - 1.0) <= policy.tolerance:
            desired = total
        desired = min(max(desired, 1, low), high, total + max(4, total))
        self._recommended.append((now, desired))
        while self._recommended[0][0] <= now - policy.stabilisation:
            self._recommended.popleft()
        if desired < total:
            desired = min(total, max(count for _, count in self._recommended))
        return self._answer(desired, self._next(now, policy.hpa_interval))

    def _polls(self, now: float) -> bool:
        offset = (now - self._phase) % self._policy.polling
        return min(offset, self._policy.polling - offset) < 0.01

    def _next(self, now: float, interval: float) -> float:
        ticks = math.floor((now - self._phase) / interval + 1e-6) + 1
        return self._phase + ticks * interval
