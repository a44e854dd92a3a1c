"""Instance numbers ordered by another autoscaler (AutoscaleFunction).

An order holds until the next one, at most ORDER_LIFE: if the other autoscaler stops, the policy decides
again. The deployment's bounds and capacity apply to orders too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Self

from msgspec import Meta, field

from nvcf_autoscaler.policy.decide import Decision
from nvcf_autoscaler.policy.observation import SpecificationObservation
from nvcf_autoscaler.policy.settings import ScalingSettings
from nvcf_autoscaler.policy.spill import spread
from nvcf_autoscaler.policy.state import Desired
from nvcf_proto.models.record import Id, Record

ORDERS_BUCKET = "nvcf_scaling_orders"
ORDER_LIFE = 300.0
MAX_INSTANCES = 100_000


class Order(Record, frozen=True):
    """The last orders for one version. Key: the version's id. `at` is Unix seconds.

    `total` is for all specifications together, `single` for some of them, by id.
    """

    version_id: Id = field(name="functionVersionId")
    at: float
    total: Annotated[int, Meta(ge=0, le=MAX_INSTANCES)] | None = None
    single: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON members; the counts in `single` are strings."""
        return {**super().to_dict(), "single": {key: str(count) for key, count in self.single.items()}}

    @classmethod
    def from_dict(cls, members: Any, path: str = "") -> Self:
        """Build a record from JSON members. Raises InvalidRecord."""
        if isinstance(members, dict) and isinstance(members.get("single"), dict):
            counts = {
                key: int(count) if isinstance(count, str) and count.isdecimal() else count
                for key, count in members["single"].items()
            }
            members = {**members, "single": counts}
        return super().from_dict(members, path)

    def ordering(self, now: float, specification_id: str | None, count: int) -> Self:
        """Return the orders with one more. An order for all specifications replaces those for single ones."""
        if specification_id is None:
            return self.replace(at=now, total=count, single={})
        kept = self.single if self.is_live(now) else {}
        return self.replace(at=now, total=None, single={**kept, specification_id: count})

    def is_live(self, now: float) -> bool:
        """Return whether the order still holds."""
        return now - self.at < ORDER_LIFE


def apply_order(
    now: float,
    decision: Decision,
    order: Order | None,
    settings: ScalingSettings,
    seen: tuple[SpecificationObservation, ...],
) -> Decision:
    """Return the decision with the order in place of the policy's wish."""
    if order is None or not order.is_live(now):
        return decision
    recheck = min(decision.requeue_at, order.at + ORDER_LIFE)
    if order.total is not None:
        wanted = max(order.total, settings.min_instances)
        placed = spread(wanted * settings.slots, settings, seen)
        counts = dict(zip((spec.id for spec in settings.specifications), placed.counts, strict=True))
        missing = -(-placed.missing_slots // settings.slots)
    else:
        bounds = {spec.id: spec for spec in settings.specifications}
        counts = {each.specification_id: each.instances for each in decision.desired}
        for key in order.single.keys() & bounds.keys():
            spec = bounds[key]
            counts[key] = max(spec.min_instances, min(spec.max_instances, order.single[key]))
        missing = 0
    desired = tuple(
        Desired(each.specification_id, counts[each.specification_id]) for each in decision.desired
    )
    total = order.total if order.total is not None else sum(order.single.values())
    parts = (("{} ordered over gRPC", (total,)),)
    return replace(decision, desired=desired, missing=missing, parts=parts, requeue_at=recheck, needed=total)
