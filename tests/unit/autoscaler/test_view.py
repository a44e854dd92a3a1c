"""Views of records: each instance counts once, and no room is given twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nvcf_autoscaler.controller.mapping import settings_of
from nvcf_autoscaler.placement.place import Cluster, Requirement
from nvcf_autoscaler.placement.view import (
    OVER,
    UP,
    clusters_for,
    first_heard,
    group_instances,
    startups,
    unreported,
)
from nvcf_proto.models import Deployment, DeploymentSpecification, Instance, InstanceState
from nvcf_proto.models.deployments import specifications_of
from tests.unit.autoscaler.records import (
    NOW,
    SPECIFICATIONS,
    VERSION,
    cluster,
    cluster_lists,
    instance,
    instance_lists,
)

ANYWHERE = {key: Requirement("A", "process") for key in SPECIFICATIONS}
LOST_AFTER = 30.0


@given(instance_lists(), cluster_lists)
def test_every_living_instance_counts_in_exactly_one_way(
    instances: list[Instance], clusters: list[Cluster]
) -> None:
    groups = group_instances(NOW, instances, ANYWHERE, clusters, LOST_AFTER)
    counted = [each.id for group in (groups.up, groups.stale, groups.lost, groups.ending) for each in group]
    assert sorted(counted) == sorted(each.id for each in instances if each.state not in OVER)
    heard = {one.id for one in clusters if NOW - one.heard_at <= LOST_AFTER}
    assert all(each.cluster_id not in heard for each in groups.lost)
    for key, group in groups.current.items():
        for each in group:
            assert each.specification_id == key
            assert each.state in UP
            assert each.draining_since is None
            assert each.cluster_id in heard


def test_instances_of_a_long_silent_or_unknown_cluster_are_lost() -> None:
    clusters = [cluster("a"), cluster("b", heard_ago=LOST_AFTER - 1), cluster("c", heard_ago=LOST_AFTER + 1)]
    names = ("a", "b", "c", "gone")
    instances = [instance(number, cluster_id=name) for number, name in enumerate(names)]
    groups = group_instances(NOW, instances, ANYWHERE, clusters, LOST_AFTER)
    assert [each.cluster_id for each in groups.lost] == ["c", "gone"]


def test_an_instance_outside_of_the_named_clusters_is_stale() -> None:
    only_two = {SPECIFICATIONS[0]: Requirement("A", "process", clusters=("two",))}
    both = (cluster("one"), cluster("two"))
    groups = group_instances(NOW, [instance(1), instance(2, cluster_id="two")], only_two, both, LOST_AFTER)
    assert [each.id for each in groups.stale] == [instance(1).id]
    assert [each.id for each in groups.up] == [instance(2).id]


def test_a_full_cluster_may_hold_what_it_holds() -> None:
    assert Requirement("A", "process", regions=("local",)).permits(cluster(free=0, heard_ago=20))
    assert not Requirement("A", "process", attributes=frozenset({"disk=fast"})).permits(cluster())


@given(instance_lists(), cluster_lists, st.integers(0, 3))
def test_room_never_exceeds_what_is_free_nor_what_was_given_away(
    instances: list[Instance], clusters: list[Cluster], per_instance: int
) -> None:
    spec = DeploymentSpecification(gpu="A", gpus_per_instance=per_instance)
    taken = unreported(instances, clusters, {each.key: 2 for each in instances})
    for before, after in zip(clusters, clusters_for(spec, clusters, taken), strict=True):
        free = after.free("A", "process")
        left = before.free("A", "process") - taken.get((before.id, "A"), 0)
        assert free * max(1, per_instance) <= max(0, left)
        assert (free + 1) * max(1, per_instance) > left


def test_an_instance_that_no_agent_has_taken_up_takes_room_whatever_was_heard_since() -> None:
    pending = instance(1, state=InstanceState.PENDING, created_at=NOW - 5)
    starting = instance(2, state=InstanceState.STARTING, created_at=NOW - 5)
    late = instance(3, state=InstanceState.STARTING, created_at=NOW, visible_devices="0,1")
    there = [cluster(heard_ago=1)]
    assert unreported([pending], there, {pending.key: 4}) == {("one", "A"): 4}
    assert unreported([starting], there, {}) == {}
    assert unreported([late], there, {}) == {("one", "A"): 2}


def test_clusters_to_avoid_have_no_room() -> None:
    (seen,) = clusters_for(DeploymentSpecification(gpu="A"), [cluster()], {}, avoided=("one",))
    assert seen.free("A", "process") == 0


def test_instances_of_one_gpu_count_for_all_types_of_it() -> None:
    spec = DeploymentSpecification(gpu="A", instance_type="process")
    (seen,) = clusters_for(spec, [cluster(free=4)], {("one", "A"): 3, ("two", "A"): 9, ("one", "B"): 9})
    assert seen.free("A", "process") == 1


def test_start_up_times_outlive_their_records_and_restarts_say_nothing() -> None:
    first = instance(1, created_at=NOW - 50, ready_at=NOW - 40)
    again = instance(2, created_at=NOW - 50, ready_at=NOW - 5, restarts=1)
    known = startups({}, [first, again])
    assert known == {first.id: 10.0}
    more = startups(known, [instance(3, created_at=NOW - 3, ready_at=NOW - 1)])
    assert list(more.values()) == [10.0, 2.0]
    # A health check that failed for a while makes an instance ready a second time.
    assert startups(known, [instance(1, created_at=NOW - 50, ready_at=NOW)]) == known


@given(st.lists(st.integers(0, 40), max_size=60))
def test_only_the_last_start_up_times_are_kept(numbers: list[int]) -> None:
    known: dict[str, float] = {}
    for number in numbers:
        known = startups(known, [instance(number, ready_at=NOW)])
    assert len(known) <= 8


def test_an_old_record_is_no_sign_of_life() -> None:
    assert first_heard(NOW, NOW - 3) == NOW
    assert first_heard(NOW, NOW + 3) == NOW
    assert first_heard(NOW, NOW - 3600) == NOW - 3600


def deployment(*specifications: DeploymentSpecification) -> Deployment:
    return Deployment(VERSION, VERSION, NOW, specifications)


def test_ids_of_specifications_change_with_what_an_instance_is_started_with() -> None:
    def key(**fields: object) -> str:
        return next(iter(specifications_of(deployment(DeploymentSpecification(**fields)))))  # type: ignore[arg-type]

    assert key() == key(min_instances=0, max_instances=9, clusters=("one",))
    assert len({key(), key(gpu="A"), key(max_request_concurrency=2), key(gpu="A", gpus_per_instance=2)}) == 4
    twice = deployment(DeploymentSpecification(), DeploymentSpecification())
    assert len(specifications_of(twice)) == 2
    assert [each.id for each in settings_of(twice).specifications] == list(specifications_of(twice))
