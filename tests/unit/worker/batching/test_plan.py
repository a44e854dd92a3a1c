"""BatchPlanner and ActiveSet: nothing lost, doubled or reordered; bounds and waits kept."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nvcf_worker.run.batching.plan import ActiveSet, BatchPlanner, Entry


def items(batch: list[Entry[int]]) -> list[int]:
    return [entry.item for entry in batch]


def test_a_full_batch_goes_at_once_and_the_rest_waits() -> None:
    plan: BatchPlanner[int] = BatchPlanner(3, 10.0)
    for number in range(4):
        plan.add(number, now=0.0)
    assert plan.due_at() == -math.inf
    assert items(plan.take(0.0)) == [0, 1, 2]
    assert plan.due_at() == 10.0
    assert plan.take(9.9) == []
    assert items(plan.take(10.0)) == [3]
    assert plan.due_at() is None


@pytest.mark.parametrize(
    ("costs", "batches"),
    [
        ([4.0, 4.0, 4.0], [[0, 1], [2]]),
        ([11.0, 1.0], [[0], [1]]),  # more than the budget: alone
        ([1.0, 11.0, 1.0], [[0], [1], [2]]),
        ([0.0] * 5, [[0, 1, 2, 3, 4]]),
    ],
)
def test_the_budget_bounds_a_batch(costs: list[float], batches: list[list[int]]) -> None:
    plan: BatchPlanner[int] = BatchPlanner(8, 1.0, max_cost=10.0)
    for number, cost in enumerate(costs):
        plan.add(number, now=0.0, cost=cost)
    got = []
    while batch := plan.take(1.0):
        got.append(items(batch))
    assert got == batches


def test_a_busy_bucket_does_not_starve_a_quiet_one() -> None:
    plan: BatchPlanner[int] = BatchPlanner(2, 1.0)
    plan.add(100, now=0.0, bucket="quiet")
    for number in range(6):
        plan.add(number, now=0.5, bucket="busy")
    assert items(plan.take(0.5)) == [0, 1]
    assert items(plan.take(1.0)) == [100]
    assert items(plan.take(1.0)) == [2, 3]


@pytest.mark.parametrize("cost", [-1.0, math.nan])
def test_a_cost_is_a_number_from_0_on(cost: float) -> None:
    with pytest.raises(ValueError, match="size"):
        BatchPlanner[int](1, 1.0).add(1, now=0.0, cost=cost)
    with pytest.raises(ValueError, match="size"):
        ActiveSet[int](1).add(1, cost)


class Planner(RuleBasedStateMachine):
    """Any order of arrivals, cancellations and calls of take, against a list of what should be waiting."""

    MAX_SIZE, MAX_WAIT, MAX_COST = 3, 5.0, 6.0

    def __init__(self) -> None:
        super().__init__()
        self.plan: BatchPlanner[int] = BatchPlanner(self.MAX_SIZE, self.MAX_WAIT, self.MAX_COST)
        self.now = 0.0
        self.waiting: list[Entry[int]] = []
        self.number = 0

    @rule(bucket=st.sampled_from("abc"), cost=st.sampled_from([0.5, 1.0, 2.0, 3.0, 9.0]))
    def arrive(self, bucket: str, cost: float) -> None:
        self.waiting.append(self.plan.add(self.number, now=self.now, bucket=bucket, cost=cost))
        self.number += 1

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        entry = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        assert self.plan.discard(entry)
        assert not self.plan.discard(entry)

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.9, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def look(self) -> None:
        due = self.plan.due_at()
        batch = self.plan.take(self.now)
        assert bool(batch) == (due is not None and due <= self.now)
        if not batch:
            return
        bucket = batch[0].bucket
        same = [entry for entry in self.waiting if entry.bucket == bucket]
        # The oldest of its bucket, in order, each once; cancelled ones are not in `waiting`.
        assert batch == same[: len(batch)]
        assert len(batch) <= self.MAX_SIZE
        assert len(batch) == 1 or sum(entry.cost for entry in batch) <= self.MAX_COST
        for entry in batch:
            self.waiting.remove(entry)
            assert not self.plan.discard(entry)

    @rule()
    def drain_what_is_due(self) -> None:
        """After taking all that is due, nobody has waited longer than the wait allows."""
        while batch := self.plan.take(self.now):
            for entry in batch:
                self.waiting.remove(entry)
        assert all(self.now < entry.arrived + self.MAX_WAIT for entry in self.waiting)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.plan) == len(self.waiting)


TestPlanner = Planner.TestCase


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 5), st.floats(0, 2)), max_size=40),
    st.integers(1, 5),
    st.floats(0, 3),
)
def test_every_item_leaves_once_within_its_wait(
    arrivals: list[tuple[int, float, float]], max_size: int, max_wait: float
) -> None:
    """With a free place at all times, as a caller that comes back at `due_at` has."""
    plan: BatchPlanner[int] = BatchPlanner(max_size, max_wait, max_cost=6.0)
    now = 0.0
    left: list[int] = []
    order: dict[object, list[int]] = {0: [], 1: [], 2: []}

    def look() -> None:
        while batch := plan.take(now):
            for entry in batch:
                assert now <= entry.arrived + max_wait
                left.append(entry.item)
                order[entry.bucket].append(entry.item)

    for number, (bucket, cost, gap) in enumerate(arrivals):
        until = now + gap
        while (due := plan.due_at()) is not None and due <= until:
            now = max(now, due)
            look()
        now = until
        plan.add(number, now=now, bucket=bucket, cost=cost)
        look()
    while (due := plan.due_at()) is not None:
        now = max(now, due)
        look()
    assert sorted(left) == list(range(len(arrivals)))
    assert all(numbers == sorted(numbers) for numbers in order.values())


class Active(RuleBasedStateMachine):
    """Sequences that come, become active and leave at random."""

    MAX_ACTIVE, MAX_COST = 3, 5.0

    def __init__(self) -> None:
        super().__init__()
        self.set: ActiveSet[int] = ActiveSet(self.MAX_ACTIVE, self.MAX_COST)
        self.costs: dict[int, float] = {}
        self.present: list[int] = []
        self.admitted: list[int] = []

    @rule(cost=st.sampled_from([0.0, 1.0, 2.5, 8.0]))
    def arrive(self, cost: float) -> None:
        number = len(self.costs)
        self.costs[number] = cost
        self.present.append(number)
        self.set.add(number, cost)

    @rule()
    def admit(self) -> None:
        new = self.set.admit()
        assert not set(new) & set(self.admitted)
        self.admitted += new
        assert self.admitted == sorted(self.admitted)
        # Never idle while somebody waits.
        assert self.set.active or not self.set.waiting

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.present))
        self.present.remove(number)
        self.set.leave(number)
        self.set.leave(number)

    @invariant()
    def nothing_lost_and_bounds_kept(self) -> None:
        active = self.set.active
        assert sorted(active + self.set.waiting) == self.present
        assert len(self.set) == len(self.present)
        assert len(active) <= self.MAX_ACTIVE
        assert len(active) <= 1 or sum(self.costs[one] for one in active) <= self.MAX_COST


TestActive = Active.TestCase
