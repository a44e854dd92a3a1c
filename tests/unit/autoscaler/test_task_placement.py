"""Which queued tasks are launched: room of functions stays free, and accounts take turns."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from nvcf_autoscaler.controller.mapping import requirement_of
from nvcf_autoscaler.placement.place import Capacity, Cluster
from nvcf_autoscaler.placement.tasks import (
    COLLECTING,
    FUNCTIONS_FIRST,
    PATIENCE,
    QueuedTask,
    lack_of,
    plan_tasks,
    reserved,
)
from nvcf_autoscaler.placement.usage import Usage
from nvcf_proto.models import DeploymentSpecification

SPEC = DeploymentSpecification(gpu="H100", instance_type="x", min_instances=0, max_instances=1)


def a_cluster(total: int, name: str = "c") -> Cluster:
    return Cluster(name, "local", 0.0, (Capacity("H100", "x", total, total, gpus_per_instance=1),))


def queued(account: str, count: int, since: float = 0.0) -> list[QueuedTask]:
    requirement = requirement_of(SPEC, account)
    return [
        QueuedTask(f"{account}-{number:03}", account, since + number, SPEC, requirement)
        for number in range(count)
    ]


@given(st.integers(0, 12), st.integers(0, 6), st.integers(0, 12), st.integers(0, 20))
def test_a_functions_minimum_is_never_taken(total: int, minimum: int, used: int, count: int) -> None:
    wanted = SPEC.replace(min_instances=minimum, max_instances=max(1, minimum))
    lack = lack_of("f", wanted, requirement_of(wanted), [])
    usages = {("c", "H100"): Usage([1] * min(used, total))}
    clusters = [a_cluster(total)]
    kept = reserved(usages, [lack] if lack is not None else [], clusters)
    plan = plan_tasks(0.0, queued("a", count), clusters, kept, held={})
    assert len(plan.places) == min(count, max(0, total - min(used, total) - minimum))
    assert len(plan.places) + len(plan.refusals) == count
    assert usages["c", "H100"].sizes == [1] * min(used, total)


def test_accounts_take_turns_by_what_they_hold() -> None:
    tasks = [*queued("a", 10), *queued("b", 10, since=100.0)]
    plan = plan_tasks(0.0, tasks, [a_cluster(6)], {}, held={"a": 2})
    assert [each.task_id for each in plan.places] == ["b-000", "b-001", "a-000", "b-002", "a-001", "b-003"]


def test_room_that_functions_wait_for_stays_free_and_tasks_take_the_rest() -> None:
    """A function waits for two GPUs on one node: one that is free alone is kept for it."""
    wanted = SPEC.replace(gpus_per_instance=2)
    lack = (wanted, requirement_of(wanted), 1)
    for free, places in ((1, 0), (2, 0), (3, 1)):
        cluster = Cluster("c", "local", 0.0, (Capacity("H100", "x", 4, 4),))
        kept = reserved({("c", "H100"): Usage([1] * (4 - free))}, [lack], [cluster])
        busy = frozenset(("H100",))
        plan = plan_tasks(0.0, queued("a", 2), [cluster], kept, held={}, busy_gpus=busy)
        assert len(plan.places) == places
        assert set(plan.refusals.values()) == {FUNCTIONS_FIRST}


@given(st.lists(st.integers(-3, 3), max_size=12), st.integers(0, 12))
def test_the_highest_priorities_of_an_account_go_first(priorities: list[int], total: int) -> None:
    tasks = [
        replace(task, priority=priority)
        for task, priority in zip(queued("a", len(priorities)), priorities, strict=True)
    ]
    plan = plan_tasks(0.0, tasks, [a_cluster(total)], {}, held={})
    placed = [each.task_id for each in plan.places]
    assert placed == [each.id for each in sorted(tasks, key=lambda each: each.rank)][:total]


@given(st.integers(2, 8), st.integers(0, 40))
def test_a_large_task_gets_its_room_though_small_ones_never_cease(size: int, seed: int) -> None:
    """Each second one small task ends, and there is always another one. All or none of the GPUs are given."""
    total, now = 8, PATIENCE + 1.0
    cluster = Cluster("c", "local", now, (Capacity("H100", "x", total, total),))
    wanted = SPEC.replace(gpus_per_instance=size)
    large = QueuedTask("large", "b", 0.0, wanted, requirement_of(wanted, "b"))
    small = [1] * total
    for _ in range(total + 1):
        usages = {("c", "H100"): Usage(list(small))}
        held = {"a": len(small)} if seed % 2 else {"b": 100}
        plan = plan_tasks(now, [large, *queued("a", 20, since=now - seed)], [cluster], usages, held=held)
        given_to = {each.task_id: each.devices for each in plan.places}
        if "large" in given_to:
            assert given_to["large"] == size
            break
        small = [*small, *given_to.values()][1:]
    else:
        raise AssertionError("it starves")
    assert len(small) + sum(given_to.values()) <= total


def test_no_room_is_collected_for_a_task_that_no_cluster_can_hold() -> None:
    wanted = SPEC.replace(gpus_per_instance=9)
    large = QueuedTask("large", "b", 0.0, wanted, requirement_of(wanted, "b"))
    now = PATIENCE + 1.0
    cluster = Cluster("c", "local", now, (Capacity("H100", "x", 8, 8),))
    plan = plan_tasks(now, [large, *queued("a", 9)], [cluster], {}, held={})
    assert len(plan.places) == 8


def test_no_room_is_collected_that_a_function_holds() -> None:
    wanted = SPEC.replace(gpus_per_instance=6)
    large = QueuedTask("large", "b", 0.0, wanted, requirement_of(wanted, "b"))
    now = PATIENCE + 1.0
    cluster = Cluster("c", "local", now, (Capacity("H100", "x", 8, 8),))
    for functions, places in ((3, 3), (2, 0)):
        held = {("c", "H100"): Usage([1] * functions)}
        usages = {("c", "H100"): Usage([1] * 5)}
        plan = plan_tasks(now, [large, *queued("a", 9)], [cluster], usages, lasting=held, held={})
        assert len(plan.places) == places
    assert COLLECTING in plan.refusals["a-000"]
