"""Which preemptible tasks make room: only as many as are needed, and the cheapest."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from nvcf_autoscaler.controller.mapping import requirement_of
from nvcf_autoscaler.placement.place import Capacity, Cluster
from nvcf_autoscaler.placement.preemption import Claim, Preemptible, preemptions
from nvcf_autoscaler.placement.usage import Usage
from nvcf_proto.models import DeploymentSpecification

NOW = 1000.0


def a_cluster(total: int, free: int = 0) -> Cluster:
    return Cluster("c", "local", NOW, (Capacity("H100", "x", free, total),))


def a_claim(devices: int, number: int = 0, account: str | None = None, priority: int = 0) -> Claim:
    spec = DeploymentSpecification(gpu="H100", instance_type="x", gpus_per_instance=devices)
    return Claim(f"claim-{number}", "function f", spec, requirement_of(spec), account, priority)


@st.composite
def running_tasks(draw: st.DrawFn, most: int = 7) -> list[Preemptible]:
    return [
        Preemptible(
            f"task-{number}",
            draw(st.sampled_from(("a", "b"))),
            draw(st.integers(-2, 2)),
            "c",
            "H100",
            draw(st.integers(1, 4)),
            NOW - draw(st.integers(0, 900)),
        )
        for number in range(draw(st.integers(0, most)))
    ]


def cost(victims: list[Preemptible]) -> tuple[int, float, int]:
    seconds = sum((NOW - each.started_at) * each.devices for each in victims)
    return max(each.priority for each in victims), seconds, len(victims)


@given(
    running_tasks(), st.integers(1, 6), st.integers(0, 3), st.sampled_from((None, "a")), st.integers(-2, 2)
)
def test_the_cheapest_set_is_chosen_or_none(
    running: list[Preemptible], wanted: int, others: int, account: str | None, priority: int
) -> None:
    held = [each.devices for each in running] + [1] * others
    free = 1
    usages = {("c", "H100"): Usage(held, sum(held))}
    claim = a_claim(wanted, account=account, priority=priority)
    chosen = preemptions(NOW, [claim], running, [a_cluster(sum(held) + free, free)], usages)
    by_id = {each.task_id: each for each in running}
    victims = [by_id[each.task_id] for each in chosen]
    allowed = [each for each in running if each.may_go_for(claim)]
    sets = [
        list(each)
        for count in range(1, len(allowed) + 1)
        for each in combinations(allowed, count)
        if sum(one.devices for one in each) + free >= wanted
    ]
    if wanted <= free or not sets:
        assert not victims
        return
    assert all(each.may_go_for(claim) for each in victims)
    assert cost(victims) == min(map(cost, sets))


@given(running_tasks(), st.lists(st.integers(1, 4), max_size=4))
def test_no_task_is_ended_twice_and_each_claim_gets_its_room(
    running: list[Preemptible], wanted: list[int]
) -> None:
    held = [each.devices for each in running]
    claims = [a_claim(size, number) for number, size in enumerate(wanted)]
    usages = {("c", "H100"): Usage(list(held), sum(held))}
    chosen = preemptions(NOW, claims, running, [a_cluster(sum(held))], usages)
    ids = [each.task_id for each in chosen]
    assert len(set(ids)) == len(ids)
    served = {each.claim.id: each.claim.specification.gpus_per_instance for each in chosen}
    freed = sum(each.devices for each in running if each.task_id in ids)
    assert sum(served.values()) <= freed
    assert usages["c", "H100"].sizes == held


def test_a_cluster_that_cannot_run_the_claim_loses_no_task() -> None:
    task = Preemptible("t", "a", 0, "c", "H100", 1, NOW)
    usages = {("c", "H100"): Usage([1], 1)}
    assert not preemptions(NOW, [a_claim(2)], [task], [a_cluster(1)], usages)
    silent = Cluster("c", "local", 0.0, (Capacity("H100", "x", 0, 1),))
    assert not preemptions(NOW, [a_claim(1)], [task], [silent], usages)
    twice = [a_claim(1), a_claim(1)]
    assert len(preemptions(NOW, twice, [task], [a_cluster(1)], usages)) == 1
