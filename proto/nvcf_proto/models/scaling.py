"""What a deployment wishes of its autoscaling."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from nvcf_proto.durations import duration_seconds
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.containers import Duration
from nvcf_proto.models.record import Record

LONGEST_WINDOW = 3600.0


class Stickiness(Record, frozen=True):
    """For how long a rule's threshold must have been passed: `threshold` of the last `size` seconds."""

    size: Annotated[float, Meta(gt=0, lt=3600)]
    threshold: Annotated[float, Meta(ge=0, description="Below size.")]

    def __post_init__(self) -> None:
        if self.threshold >= self.size:
            raise InvalidRecord("threshold", "expected at least 0 and below size")


class ScalingRule(Record, frozen=True, forbid_unknown_fields=True):
    """ScalingDetails: past `threshold` percent the instance count is multiplied by `factor`.

    See protocol.md, section 1.6.
    """

    factor: float
    threshold: Annotated[int, Meta(ge=0, le=100)]
    metric: Literal["utilization"] = "utilization"
    stickiness: Stickiness | None = None


class ScalingPreferences(Record, frozen=True, forbid_unknown_fields=True):
    """A deployment's wishes about scaling, beyond its bounds; None: the policy's own choice.

    `wait_slo` and `scale_to_zero_delay` are seconds, `target_utilisation` is a share (0..1), `keep_warm`
    a number of instances. `wait_price` is the number behind `profile`, and replaces it.
    """

    wait_slo: (
        Annotated[float, Meta(ge=0.001, le=3600.0, description="Seconds a request may wait.")] | None
    ) = None
    target_utilisation: Annotated[float, Meta(ge=0.01, le=1.0)] | None = None
    scale_to_zero_delay: (
        Annotated[float, Meta(ge=0.0, le=604_800.0, description="Seconds without a request.")] | None
    ) = None
    keep_warm: Annotated[int, Meta(ge=0, le=1000)] = 0
    profile: Literal["economy", "balanced", "fast"] | None = None
    wait_price: (
        Annotated[
            float,
            Meta(ge=0.0, le=1000.0, description="GPU-seconds that a second of one waiting request is worth."),
        ]
        | None
    ) = None
    scale_up: ScalingRule | None = field(name="scaleUpDetails", default=None)
    scale_down: ScalingRule | None = field(name="scaleDownDetails", default=None)

    def __post_init__(self) -> None:
        if (self.scale_up is None) != (self.scale_down is None):
            raise InvalidRecord("scaleUpDetails", "scaleUpDetails and scaleDownDetails belong together")


class StickinessWindow(Record, frozen=True, forbid_unknown_fields=True):
    """For how long a threshold must have been passed: `threshold` of the last `size`, as ISO 8601."""

    size: Duration
    threshold: Duration

    def __post_init__(self) -> None:
        if not 0 < duration_seconds(self.size) <= LONGEST_WINDOW:
            raise InvalidRecord("size", "expected more than 0 seconds and at most PT1H")
        if duration_seconds(self.threshold) >= duration_seconds(self.size):
            raise InvalidRecord("threshold", "expected less than size")


class ScalingDetails(Record, frozen=True, forbid_unknown_fields=True):
    """Past `threshold` percent of utilization the instance count is multiplied by `factor`."""

    factor: Annotated[float, Meta(gt=0, lt=1000)]
    threshold: Annotated[int, Meta(ge=0, le=100)]
    metric: Literal["utilization"] = "utilization"
    stickiness: StickinessWindow | None = None


class AutoscalingConfiguration(Record, frozen=True, forbid_unknown_fields=True):
    """When a specification gets more and fewer instances; None: as the platform does."""

    scale_up: ScalingDetails | None = field(name="scaleUpDetails", default=None)
    scale_down: ScalingDetails | None = field(name="scaleDownDetails", default=None)

    def __post_init__(self) -> None:
        if self.scale_up is not None and self.scale_up.factor <= 1:
            raise InvalidRecord("scaleUpDetails.factor", "expected above 1")
        if self.scale_down is not None and self.scale_down.factor >= 1:
            raise InvalidRecord("scaleDownDetails.factor", "expected below 1")
