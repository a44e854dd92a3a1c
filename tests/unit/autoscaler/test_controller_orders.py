"""Orders of another autoscaler: within bounds, for a while."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvcf_autoscaler.controller.orders import ORDER_LIFE, Order, apply_order
from nvcf_autoscaler.controller.service import response_of
from nvcf_autoscaler.policy.decide import Decision
from nvcf_autoscaler.policy.observation import SpecificationObservation
from nvcf_autoscaler.policy.state import Desired, PolicyState
from nvcf_proto.models import Instance, InstanceState
from tests.unit.autoscaler.helpers import settings
from tests.unit.autoscaler.records import NOW, VERSION, instance


def decided(*counts: int) -> Decision:
    """What the policy wanted."""
    desired = tuple(Desired(f"gpu{index}", count) for index, count in enumerate(counts))
    return Decision(desired, PolicyState(), float("inf"), 0, (("by itself", ()),))


def seen(*available: int) -> tuple[SpecificationObservation, ...]:
    return tuple(
        SpecificationObservation(f"gpu{index}", available=count) for index, count in enumerate(available)
    )


def counts(decision: Decision) -> list[int]:
    return [each.instances for each in decision.desired]


def test_an_order_takes_the_place_of_the_policy_while_it_is_fresh() -> None:
    order = Order(VERSION, NOW).ordering(NOW, None, 5)
    bounds = settings((0, 8))
    answer = apply_order(NOW + 1, decided(2), order, bounds, seen(9))
    assert counts(answer) == [5]
    assert answer.reason == "5 instances: 5 ordered over gRPC"
    assert answer.requeue_at == NOW + ORDER_LIFE
    assert apply_order(NOW + ORDER_LIFE, decided(2), order, bounds, seen(9)) == decided(2)
    assert apply_order(NOW, decided(2), None, bounds, seen(9)) == decided(2)


def test_an_order_for_all_spills_like_any_demand() -> None:
    order = Order(VERSION, NOW).ordering(NOW, None, 5)
    answer = apply_order(NOW, decided(0, 0), order, settings((0, 8), (0, 8)), seen(3, 1))
    assert (counts(answer), answer.missing) == ([3, 1], 1)


def test_orders_for_single_specifications_add_up_until_one_for_all() -> None:
    order = Order(VERSION, NOW).ordering(NOW, "gpu0", 2).ordering(NOW, "gpu1", 3)
    bounds = settings((0, 8), (0, 8))
    assert counts(apply_order(NOW, decided(0, 0), order, bounds, seen(9, 9))) == [2, 3]
    assert counts(apply_order(NOW, decided(0, 0), order.ordering(NOW, None, 1), bounds, seen(9, 9))) == [1, 0]
    # What was ordered long ago does not come back with a new order.
    late = order.ordering(NOW + ORDER_LIFE, "gpu1", 1)
    assert late.single == {"gpu1": 1}


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=3),
    st.integers(0, 50),
    st.none() | st.integers(0, 3),
)
def test_bounds_hold_whatever_is_ordered(
    bounds: list[tuple[int, int]], count: int, single: int | None
) -> None:
    limits = [(low, low + more) for low, more in bounds]
    key = None if single is None else f"gpu{single}"
    order = Order(VERSION, NOW).ordering(NOW, key, count)
    policy = decided(*(low for low, _ in limits))
    answer = apply_order(NOW, policy, order, settings(*limits), seen(*(100 for _ in limits)))
    for found, (low, high) in zip(counts(answer), limits, strict=True):
        assert low <= found <= high


def test_orders_survive_being_stored() -> None:
    for order in (Order(VERSION, NOW, 3), Order(VERSION, NOW, None, {"0-A-process-1x0": 2})):
        assert Order.from_json(order.to_json()) == order


def test_how_a_version_stands() -> None:
    them: list[Instance] = [
        instance(1),
        instance(2, state=InstanceState.PENDING),
        instance(3, state=InstanceState.STARTING),
        instance(4, draining_since=NOW),
        instance(5, state=InstanceState.COMPLETED, draining_since=NOW),
    ]
    answer = response_of(them, 3)
    found = (answer.activeInstances, answer.pendingInstances, answer.allocatingInstances)
    assert (*found, answer.terminatingInstances) == (1, 1, 1, 1)
    assert (answer.functionStatus, answer.scalingStatus) == ("ACTIVE", "STEADY")
    assert response_of(them, 5).scalingStatus == "SCALING_UP"
    assert response_of([], 0).functionStatus == "DEPLOYING"
