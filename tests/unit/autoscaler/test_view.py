"""Views of records: each instance counts once, and no room is given twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_autoscaler.controller.mapping import settings_of
from nvcf_autoscaler.placement.place import Capacity, Cluster, Requirement
from nvcf_autoscaler.placement.timings import timings_of
from nvcf_autoscaler.placement.usage import OVER
from nvcf_autoscaler.placement.view import (
    ahead_by,
    by_own_clock,
    clusters_for,
    devices_of,
    first_heard,
    group_instances,
    startups,
)
from nvcf_proto.models import Deployment, DeploymentSpecification, Instance
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
    groups = group_instances(NOW, instances, ANYWHERE, clusters)
    counted = [each.id for group in (groups.up, groups.stale, groups.lost, groups.ending) for each in group]
    assert sorted(counted) == sorted(each.id for each in instances if each.state not in OVER)
    heard = {one.id for one in clusters if NOW - one.heard_at <= LOST_AFTER}
    assert all(each.cluster_id not in heard for each in groups.lost)
    for key, group in groups.current.items():
        for each in group:
            assert each.specification_id == key
            assert each.state not in OVER
            assert each.draining_since is None
            assert each.cluster_id in heard


def test_instances_of_a_long_silent_or_unknown_cluster_are_lost() -> None:
    clusters = [cluster("a"), cluster("b", heard_ago=LOST_AFTER - 1), cluster("c", heard_ago=LOST_AFTER + 1)]
    names = ("a", "b", "c", "gone")
    instances = [instance(number, cluster_id=name) for number, name in enumerate(names)]
    groups = group_instances(NOW, instances, ANYWHERE, clusters)
    assert [each.cluster_id for each in groups.lost] == ["c", "gone"]


def test_silence_means_nothing_before_this_process_has_listened_for_as_long() -> None:
    groups = group_instances(NOW, [instance()], ANYWHERE, [cluster(heard_ago=500)], listened=LOST_AFTER)
    assert not groups.lost
    groups = group_instances(NOW, [instance()], ANYWHERE, [cluster(heard_ago=500)], listened=LOST_AFTER + 1)
    assert len(groups.lost) == 1


def test_an_agent_with_rare_heartbeats_is_not_lost_between_them() -> None:
    slow = timings_of(300.0, LOST_AFTER)
    quiet = cluster(heard_ago=400, timings=slow)
    assert not group_instances(NOW, [instance()], ANYWHERE, [quiet]).lost
    assert quiet.unavailable(NOW) is None
    gone = cluster(heard_ago=slow.lost_after + 1, timings=slow)
    assert group_instances(NOW, [instance()], ANYWHERE, [gone]).lost
    assert "silent" in str(gone.unavailable(NOW))


def test_instances_in_a_drained_cluster_are_to_be_replaced_and_in_a_cordoned_one_they_stay() -> None:
    both = [instance(1), instance(2, cluster_id="two")]
    there = [cluster("one", draining=True), cluster("two", cordoned=True)]
    groups = group_instances(NOW, both, ANYWHERE, there)
    assert [each.id for each in groups.stale] == [both[0].id]
    assert [each.id for each in groups.up] == [both[1].id]
    assert [each.unavailable(NOW) for each in there] == ["draining", "cordoned"]


def test_an_instance_outside_of_the_named_clusters_is_stale() -> None:
    only_two = {SPECIFICATIONS[0]: Requirement("A", "process", clusters=("two",))}
    both = (cluster("one"), cluster("two"))
    groups = group_instances(NOW, [instance(1), instance(2, cluster_id="two")], only_two, both)
    assert [each.id for each in groups.stale] == [instance(1).id]
    assert [each.id for each in groups.up] == [instance(2).id]


def test_a_full_cluster_may_hold_what_it_holds() -> None:
    assert Requirement("A", "process", regions=("local",)).permits(cluster(free=0, heard_ago=20))
    assert not Requirement("A", "process", attributes=frozenset({"disk=fast"})).permits(cluster())


def test_clusters_to_avoid_have_no_room() -> None:
    (seen,) = clusters_for(DeploymentSpecification(gpu="A"), [cluster()], {}, avoided=("one",))
    assert seen.free("A", "process") == 0


def test_the_instance_type_of_a_cluster_says_how_many_gpus_it_takes() -> None:
    spec = DeploymentSpecification(gpu="A", gpus_per_instance=2)
    assert devices_of(spec) == devices_of(spec, [cluster()]) == 2
    fixed = Cluster("one", "local", NOW, (Capacity("A", "process", 8, 8, gpus_per_instance=4),))
    assert devices_of(spec, [cluster(), fixed]) == 4
    (seen,) = clusters_for(spec, [fixed], {})
    assert seen.free("A", "process") == 2
    assert devices_of(DeploymentSpecification(gpus_per_instance=2), [fixed]) == 1


def test_start_up_times_outlive_their_records_and_restarts_say_nothing() -> None:
    first = instance(1, created_at=NOW - 50, ready_at=NOW - 40)
    again = instance(2, created_at=NOW - 50, ready_at=NOW - 5, restarts=1)
    known = startups({}, [first, again])
    assert known == {first.key: 10.0}
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


def test_start_up_times_stay_the_newest_ones_where_there_are_more_instances() -> None:
    many = [instance(number, created_at=NOW - 100, ready_at=NOW - 90 + number) for number in range(20)]
    known = startups({}, many)
    assert list(known.values()) == [float(10 + number) for number in range(12, 20)]
    assert list(startups(known, many).items()) == list(known.items())


def test_an_old_record_is_no_sign_of_life() -> None:
    assert first_heard(NOW, NOW - 3) == NOW
    assert first_heard(NOW, NOW + 3) == NOW
    assert first_heard(NOW, NOW - 3600) == NOW - 3600


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_times_that_gateways_wrote_are_read_by_the_clock_of_this_process(ahead: float) -> None:
    assert ahead_by(NOW + ahead, NOW) == ahead
    assert ahead_by(NOW + 3, NOW) == 0, "that may be the way of a heartbeat"
    reported = instance().replace(created_at=NOW, acknowledged_at=NOW - ahead, reported_at=NOW - ahead + 1)
    reported = reported.replace(updated_at=NOW - ahead + 1, ready_at=None)
    seen = by_own_clock(reported, ahead)
    assert (seen.created_at, seen.acknowledged_at, seen.reported_at) == (NOW, NOW, NOW + 1)
    assert (seen.updated_at, seen.ready_at) == (NOW + 1, None)
    own = reported.replace(updated_at=NOW + 5)
    assert by_own_clock(own, ahead).updated_at == NOW + 5, "this process wrote it"


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
