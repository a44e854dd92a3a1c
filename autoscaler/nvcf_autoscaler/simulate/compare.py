"""Compares policies on the same functions with the same start-up times, and with the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nvcf_autoscaler.errors import InvalidTrace
from nvcf_autoscaler.policy.settings import PROFILES
from nvcf_autoscaler.simulate.engine import simulate, simulate_shared
from nvcf_autoscaler.simulate.model import FunctionResult, SimulatedFunction
from nvcf_autoscaler.simulate.policies.base import Fixed, Policy
from nvcf_autoscaler.simulate.policies.keda import Keda
from nvcf_autoscaler.simulate.policies.knative import Knative
from nvcf_autoscaler.simulate.policies.nvcf import NvcfLike
from nvcf_autoscaler.simulate.policies.oracle import oracle
from nvcf_autoscaler.simulate.policies.ours import Ours
from nvcf_autoscaler.simulate.report import Summary, attainment, summarise

POLICIES: dict[str, Callable[[], Policy]] = {"ours": Ours, "nvcf": NvcfLike, "kpa": Knative, "keda": Keda}
ALL = ("ours", "nvcf", "kpa", "keda", "fixed")


@dataclass(frozen=True)
class Comparison:
    """Results by policy. `limit`, `limit_equal`: the oracle's GPU-seconds at full and at our attainment."""

    title: str
    functions: list[SimulatedFunction]
    results: dict[str, list[FunctionResult]]
    limit: float | None
    limit_equal: float | None
    oracle: list[FunctionResult] = field(default_factory=list)
    price: float = 0.0

    def summaries(self) -> list[Summary]:
        """Return a summary per policy, the oracle last."""
        found = [summarise(name, results, self.price) for name, results in self.results.items()]
        return [*found, summarise("oracle", self.oracle, self.price)] if self.oracle else found

    def ours_beats(self, name: str) -> tuple[bool, bool]:
        """Return whether ours has a lower p99 wait, and fewer GPU-seconds, than another policy."""
        ours, other = summarise("ours", self.results["ours"]), summarise(name, self.results[name])
        return ours.p99 < other.p99, ours.gpu_seconds < other.gpu_seconds


def policy_named(name: str) -> Policy:
    """Return a policy by name. Raises InvalidTrace for an unknown one.

    `fixed:N` has N instances, `ours:economy` is ours with that profile.
    """
    kind, _, number = name.partition(":")
    if kind == "fixed" and (not number or number.isdecimal()):
        return Fixed(instances=int(number or 1))
    if kind == "ours" and number in PROFILES:
        return Ours(profile=number)
    if name not in POLICIES:
        raise InvalidTrace(f"there is no policy {name!r}; known: {', '.join(POLICIES)}, fixed:N")
    return POLICIES[name]()


def run_policy(
    name: str,
    functions: Sequence[SimulatedFunction],
    seed: int,
    gpus: dict[str, int] | None = None,
    *,
    trace: bool = False,
) -> list[FunctionResult]:
    """Run one policy on all functions. Plain `fixed` sizes each function for its mean load."""
    if name == "fixed":
        return [simulate(function, _suitable(function), seed, trace=trace) for function in functions]
    policy = policy_named(name)
    if gpus:
        return simulate_shared(list(functions), policy, seed, gpus, trace=trace)
    return [simulate(function, policy, seed, trace=trace) for function in functions]


def compare(
    title: str,
    functions: list[SimulatedFunction],
    names: Sequence[str] = ALL,
    seed: int = 1,
    gpus: dict[str, int] | None = None,
    *,
    trace: bool = False,
    limits: bool = True,
    price: float = 0.0,
) -> Comparison:
    """Run all the named policies and, with `limits`, the oracle. `price` is of one GPU-hour."""
    results = {name: run_policy(name, functions, seed, gpus, trace=trace) for name in names}
    if not limits:
        return Comparison(title, functions, results, None, None, price=price)
    best = [oracle(function) for function in functions]
    equal = None
    if "ours" in results:
        equal = sum(
            oracle(function, attainment([result])).gpu_seconds
            for function, result in zip(functions, results["ours"], strict=True)
        )
    return Comparison(title, functions, results, sum(one.gpu_seconds for one in best), equal, best, price)


def _suitable(function: SimulatedFunction) -> Fixed:
    load = sum(function.durations) / function.horizon if function.horizon else 0.0
    slots = function.specifications[0].max_request_concurrency
    return Fixed(instances=max(1, round(load / 0.7 / slots + 0.5)))
