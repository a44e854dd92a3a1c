"""Scaling settings of a deployment, and the constants of the policy. Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from nvcf_autoscaler.errors import InvalidSettings


@dataclass(frozen=True, slots=True)
class Stickiness:
    """A metric must be past its threshold for `threshold` seconds within the last `size` seconds."""

    size: float
    threshold: float

    def __post_init__(self) -> None:
        if not 0 < self.size <= 3600:
            raise InvalidSettings(f"stickiness size is {self.size:g} s; it must be above 0 and at most 1 h")
        if not 0 <= self.threshold < self.size:
            raise InvalidSettings(f"stickiness threshold is {self.threshold:g} s; it must be below the size")


@dataclass(frozen=True, slots=True)
class ScalingDetails:
    """Multiply the instance count by `factor` past `threshold` percent (ScalingDetails of NVCF)."""

    factor: float
    threshold: int
    stickiness: Stickiness | None = None
    metric: str = "utilization"

    def __post_init__(self) -> None:
        if not 0 <= self.factor < 1000:
            raise InvalidSettings(f"scaling factor is {self.factor:g}; it must be between 0 and 1000")
        if not 0 <= self.threshold <= 100:
            raise InvalidSettings(f"scaling threshold is {self.threshold}; it is a percentage, 0 to 100")
        if self.metric != "utilization":
            raise InvalidSettings(f"scaling metric {self.metric!r} is unknown; 'utilization' is the only one")


@dataclass(frozen=True, slots=True)
class SpecificationSettings:
    """Bounds of one GPU specification. Raises InvalidSettings."""

    id: str
    min_instances: int = 0
    max_instances: int = 1
    max_request_concurrency: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.min_instances <= self.max_instances:
            raise InvalidSettings(
                f"{self.id}: minInstances {self.min_instances} must be between 0 and "
                f"maxInstances {self.max_instances}"
            )
        if self.max_request_concurrency < 1:
            raise InvalidSettings(f"{self.id}: maxRequestConcurrency must be at least 1")


@dataclass(frozen=True, slots=True)
class Tuning:
    """Constants of the policy. They belong to the problem, not to a deployment.

    - Rates: the stable window is `stable_services` service times long, within its bounds, because few long
      requests make a noisy rate. The confidence margin `..._margin` lowers an arrival count by that many
      standard deviations. The load is not lowered by less than `load_band` standard deviations.
    - Idle times: at most `burst_max` requests count as waiting for a cold start. A further instance saves
      `further_share` of a start-up time of waiting. If nearly all idle times are bridged, the window is
      `tail` mean excesses longer. Idle times below `gap_min` are ignored. Where idle time is capped, a
      version may have `idle_first` seconds of it before it has worked.
    - Starts: the queue should be drained within `drain_share` of the SLO once new instances are ready. From
      zero, `burst_share` of the usual cold-start burst counts as waiting. A hedged start is added where it
      saves waiting worth more than it takes; it takes 1 / `hedge_share` of a start-up, since those that are
      late are ended. A start-up is late at `overdue_factor` times the usual. Growth within `growth_period` is
      at most `growth_step` instances or `growth_factor` times, whichever is more.
    - Decisions: every `tick` while several instances serve, every `calm_tick` while one does or the first
      starts.
    """

    stable_window: float = 60.0
    stable_window_max: float = 300.0
    stable_services: float = 5.0
    stable_margin: float = 1.0
    load_band: float = 0.5
    panic_window: float = 10.0
    panic_margin: float = 2.0
    further_share: float = 1 / 6
    burst_max: float = 8.0
    burst_share: float = 1.0
    gap_min: float = 5.0
    tail: float = 3.0
    idle_first: float = 120.0
    keep_min: float = 2.0
    keep_max: float = 3600.0
    prewarm_max: float = 4 * 3600.0
    drain_share: float = 0.1
    hedge_share: float = 4 / 3
    overdue_factor: float = 1.5
    startup_prior: float = 30.0
    service_prior: float = 2.0
    growth_period: float = 10.0
    growth_step: int = 32
    growth_factor: float = 4.0
    tick: float = 5.0
    calm_tick: float = 15.0


DEFAULT_TUNING = Tuning()


@dataclass(frozen=True, slots=True)
class Profile:
    """What waiting and idle GPUs are worth to a deployment.

    One second of one waiting request is worth `wait_price` GPU-seconds. Instances of an idle version are kept
    for at most `idle_cap` times as long as it is busy (None: no cap).
    """

    wait_price: float
    idle_cap: float | None


PROFILES = {
    "economy": Profile(1.0, 20.0),
    "balanced": Profile(3.0, None),
    "fast": Profile(12.0, None),
}


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """Settings of one deployment. `specifications` are in preferred order. Raises InvalidSettings.

    `wait_slo` is the time within which the share `attainment` of requests should start. `target_utilisation`
    (0..1) replaces the queueing model, and `scale_to_zero_delay` the learnt idle window. `keep_warm` is the
    least number of instances of all specifications together. `profile` is one of PROFILES, `wait_price`
    replaces its price. `scale_up` and `scale_down`, given together, replace the demand model by NVCF's
    utilisation rule.
    """

    specifications: tuple[SpecificationSettings, ...]
    wait_slo: float = 5.0
    attainment: float = 0.99
    target_utilisation: float | None = None
    scale_to_zero_delay: float | None = None
    keep_warm: int = 0
    scale_up: ScalingDetails | None = None
    scale_down: ScalingDetails | None = None
    profile: str = "balanced"
    wait_price: float | None = None
    tuning: Tuning = field(default=DEFAULT_TUNING)

    def __post_init__(self) -> None:
        if not self.specifications:
            raise InvalidSettings("a deployment needs at least one GPU specification")
        if len({spec.id for spec in self.specifications}) != len(self.specifications):
            raise InvalidSettings("GPU specification ids must differ from each other")
        if not 0 < self.wait_slo <= 3600:
            raise InvalidSettings(f"wait SLO is {self.wait_slo:g} s; it must be above 0 and at most 1 h")
        if not 0.5 <= self.attainment < 1:
            raise InvalidSettings(f"attainment is {self.attainment:g}; it must be at least 0.5 and below 1")
        if self.target_utilisation is not None and not 0 < self.target_utilisation <= 1:
            raise InvalidSettings("target utilisation must be above 0 and at most 1")
        if self.scale_to_zero_delay is not None and self.scale_to_zero_delay < 0:
            raise InvalidSettings("scale-to-zero delay must not be negative")
        if self.keep_warm < 0:
            raise InvalidSettings("keepWarm must not be negative")
        if self.profile not in PROFILES:
            raise InvalidSettings(f"profile {self.profile!r} is unknown; known are {', '.join(PROFILES)}")
        if self.wait_price is not None and not 0 <= self.wait_price <= 1000:
            raise InvalidSettings(f"wait price is {self.wait_price:g}; it must be between 0 and 1000")
        self._check_details()

    def _check_details(self) -> None:
        if (self.scale_up is None) != (self.scale_down is None):
            raise InvalidSettings("scaleUpDetails and scaleDownDetails must be given together")
        if self.scale_up is not None and self.scale_up.factor <= 1:
            raise InvalidSettings("the factor of scaleUpDetails must be above 1")
        if self.scale_down is not None and self.scale_down.factor >= 1:
            raise InvalidSettings("the factor of scaleDownDetails must be below 1")

    @property
    def price(self) -> float:
        """GPU-seconds that one second of one waiting request is worth."""
        return PROFILES[self.profile].wait_price if self.wait_price is None else self.wait_price

    @property
    def idle_cap(self) -> float | None:
        """The most idle time for each second of busy time; None where nothing caps it."""
        return None if self.scale_to_zero_delay is not None else PROFILES[self.profile].idle_cap

    @property
    def slots(self) -> int:
        """Requests that one instance of the preferred specification serves at a time."""
        return self.specifications[0].max_request_concurrency

    @property
    def min_instances(self) -> int:
        """Least instances of all specifications together."""
        return sum(spec.min_instances for spec in self.specifications)

    @property
    def max_instances(self) -> int:
        """Most instances of all specifications together."""
        return sum(spec.max_instances for spec in self.specifications)

    @property
    def max_preferred(self) -> int:
        """Most slots, in instances of the preferred specification, rounded up."""
        slots = sum(spec.max_instances * spec.max_request_concurrency for spec in self.specifications)
        return -(-slots // self.slots)
