"""Actions that bring a version from its present to its desired instances."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_autoscaler.controller.plan import (
    PENDING_EXPIRES,
    REPLACED_PART,
    RESEND_AFTER,
    Create,
    GiveUp,
    Resend,
    ResendEnd,
    Terminate,
    grow,
    housekeeping,
    reclaim,
    shrink,
    undeploy,
)
from nvcf_autoscaler.placement.failures import AVOID_SECONDS, LONGEST_WAIT, assess_failures
from nvcf_autoscaler.placement.place import Cluster, Placement, Requirement
from nvcf_autoscaler.placement.view import InstanceGroups, group_instances
from nvcf_proto.models import Instance, InstanceState
from tests.unit.autoscaler.records import (
    NOW,
    SPECIFICATIONS,
    cluster,
    cluster_lists,
    instance,
    instance_lists,
)

ANYWHERE = {key: Requirement("A", "process") for key in SPECIFICATIONS}
counts = st.fixed_dictionaries({key: st.integers(0, 6) for key in SPECIFICATIONS})


def groups_of(*instances: Instance, clusters: tuple[Cluster, ...] = (cluster(),)) -> InstanceGroups:
    return group_instances(NOW, instances, ANYWHERE, clusters, 30.0)


@given(instance_lists(), cluster_lists, counts, st.integers(0, 5))
def test_no_more_end_than_are_too_many(
    instances: list[Instance], clusters: list[Cluster], desired: dict[str, int], unplaced: int
) -> None:
    groups = group_instances(NOW, instances, ANYWHERE, clusters, 30.0)
    ended = [
        each
        for action in shrink(groups, desired, unplaced)
        if isinstance(action, Terminate)
        for each in action.instances
    ]
    ids = {each.id for each in ended}
    assert len(ids) == len(ended)
    for key, group in groups.current.items():
        left = [each for each in group if each.id not in ids]
        assert len(left) == min(len(group), desired[key])
    others = {each.id for each in (*groups.lost, *groups.ending)}
    assert not ids & others
    # Stale instances serve until others do, until they are in their way, or until none is needed.
    kept_stale = [each for each in groups.stale if each.id not in ids]
    running = sum(each.state is InstanceState.RUNNING for each in groups.up)
    if unplaced or running < min(sum(desired.values()), len(groups.stale)):
        # A few at a time, and no more while some are on their way out or in.
        leaving = len(groups.stale) - len(kept_stale)
        under_way = len(groups.ending) + len(groups.up) - running
        assert leaving <= max(1, (len(groups.stale) + len(groups.up)) // REPLACED_PART)
        assert leaving <= unplaced
        assert leaving or not unplaced or under_way or not groups.stale
    else:
        assert not kept_stale


@given(instance_lists(), cluster_lists)
def test_nothing_is_forgotten(instances: list[Instance], clusters: list[Cluster]) -> None:
    """Every instance that is not as it should be is acted upon, once, however it came about."""
    groups = group_instances(NOW, instances, ANYWHERE, clusters, 30.0)
    actions = housekeeping(NOW, groups)
    touched = [each.instance.id for each in actions if isinstance(each, GiveUp | Resend | ResendEnd)]
    assert len(touched) == len(set(touched))
    assert {each.id for each in groups.lost} <= set(touched)
    for each in (*groups.up, *groups.stale):
        waits = each.state is InstanceState.PENDING and NOW - each.created_at > RESEND_AFTER
        assert (each.id in touched) == waits
    for each in groups.ending:
        unacknowledged = each.state is not InstanceState.TERMINATING and each.draining_since is not None
        assert (each.id in touched) == (unacknowledged and NOW - (each.draining_since or 0.0) > RESEND_AFTER)


def test_a_pending_instance_is_asked_for_again_and_then_given_up() -> None:
    def pending(age: float) -> InstanceGroups:
        return groups_of(instance(state=InstanceState.PENDING, created_at=NOW - age))

    assert housekeeping(NOW, pending(RESEND_AFTER - 1)) == []
    assert [type(each) for each in housekeeping(NOW, pending(RESEND_AFTER + 1))] == [Resend]
    (action,) = housekeeping(NOW, pending(PENDING_EXPIRES + 1))
    assert isinstance(action, GiveUp)


def test_an_end_that_nobody_carries_out_is_ordered_again() -> None:
    (action,) = housekeeping(NOW, groups_of(instance(draining_since=NOW - 7.0)))
    assert isinstance(action, ResendEnd)
    assert action.attempt == 2
    acknowledged = instance(state=InstanceState.TERMINATING, draining_since=NOW - 60)
    assert housekeeping(NOW, groups_of(acknowledged)) == []


def test_an_instance_on_its_way_out_of_a_dead_cluster_is_closed() -> None:
    leaving = instance(state=InstanceState.TERMINATING, draining_since=NOW - 60)
    (action,) = housekeeping(NOW, groups_of(leaving, clusters=()))
    assert isinstance(action, GiveUp)


def test_starting_instances_end_before_those_that_serve() -> None:
    serving, starting = instance(1), instance(2, state=InstanceState.STARTING)
    (action,) = shrink(groups_of(serving, starting), {SPECIFICATIONS[0]: 1})
    assert isinstance(action, Terminate)
    assert action.instances == (starting,)


def test_the_last_stale_one_serves_until_its_successor_does() -> None:
    stale = instance(1, specification_id="0-A-process-2x0")
    starting = instance(2, state=InstanceState.STARTING)
    desired = {SPECIFICATIONS[0]: 1}
    assert shrink(groups_of(stale), desired) == []
    assert shrink(groups_of(stale, starting), desired) == []
    (action,) = shrink(groups_of(stale, instance(2)), desired)
    assert isinstance(action, Terminate)
    assert action.instances == (stale,)
    (action,) = shrink(groups_of(stale), desired, unplaced=1)
    assert isinstance(action, Terminate)
    assert "needs room" in action.reason


def test_without_room_for_both_the_old_ones_leave_one_after_the_other() -> None:
    stale = [instance(number, specification_id="0-A-process-2x0") for number in range(4)]

    def leaving(*others: Instance, started: int = 0) -> int:
        actions = shrink(groups_of(*stale, *others), {SPECIFICATIONS[0]: len(others)}, 4, started)
        return sum(len(each.instances) for each in actions if isinstance(each, Terminate))

    assert leaving() == 1
    assert leaving(instance(9, draining_since=NOW)) == 0
    assert leaving(started=1) == 0
    assert leaving(instance(9, state=InstanceState.STARTING)) == 0
    assert leaving(instance(9)) == 1


def test_the_fair_share_of_others_is_reclaimed_where_they_have_it() -> None:
    here, there = [instance(1), instance(2)], instance(3, cluster_id="two")
    (action,) = reclaim([*here, there], {"one": 1, "two": 1})
    assert isinstance(action, Terminate)
    assert len(action.instances) == 1
    assert action.instances[0] in here
    assert reclaim([*here, there], {"one": 2, "two": 5}) == []


def test_growing_follows_the_placement() -> None:
    placement = Placement((("one", 2), ("two", 1)), 1, ())
    assert grow("key", placement) == [Create("key", "one", 2), Create("key", "two", 1)]


@pytest.mark.parametrize(
    ("queue_empty", "since", "ends"),
    [(True, NOW, True), (False, NOW - 29, False), (False, NOW - 31, True)],
)
def test_an_undeployed_version_serves_what_is_queued(queue_empty: bool, since: float, ends: bool) -> None:
    groups = group_instances(NOW, [instance()], {}, [cluster()], 30.0)
    actions = undeploy(groups, queue_empty=queue_empty, since=since, now=NOW, patience=30.0)
    assert bool(actions) == ends


def failed(number: int, reason: str, ago: float, **changes: object) -> Instance:
    return instance(
        number,
        state=InstanceState.FAILED,
        reason=reason,
        updated_at=NOW - ago,
        created_at=NOW - 150,
        **changes,
    )


def test_a_cluster_that_refused_is_avoided_for_a_while() -> None:
    learnt = assess_failures(NOW, [failed(1, "capacity: 1 A wanted, 0 of 4 free", 1.0)])
    assert set(learnt.avoided) == {"one"}
    assert not learnt.retry_at
    assert not assess_failures(NOW, [failed(1, "capacity: full", 3.0)]).avoided
    assert assess_failures(NOW, [failed(1, "unsupported: no A", 50.0)]).avoided
    assert assess_failures(NOW, [failed(1, "in other words", 1.0, category="capacity")]).avoided


def test_starts_that_fail_are_tried_again_ever_more_rarely() -> None:
    crashes = [failed(number, "crash: exit code 3", 0.5) for number in range(5)]
    waits = [assess_failures(NOW, crashes[:count]).retry_at - NOW for count in range(1, 6)]
    assert waits == [0.5, 1.5, 3.5, 7.5, 15.5]
    text = assess_failures(NOW, crashes).text
    assert "5 failed to start" in text
    assert "crash: exit code 3" in text


def test_an_instance_that_served_since_makes_good_for_failures() -> None:
    crash = failed(1, "crash: exit code 3", 0.5)
    assert assess_failures(NOW, [crash]).retry_at
    assert not assess_failures(NOW, [crash, instance(2, ready_at=NOW - 0.1)]).retry_at


@given(instance_lists())
def test_waiting_ends(instances: list[Instance]) -> None:
    learnt = assess_failures(NOW, instances)
    assert learnt.retry_at <= NOW + LONGEST_WAIT
    assert bool(learnt.retry_at) == bool(learnt.text)
    for until, _ in learnt.avoided.values():
        assert NOW < until <= NOW + max(AVOID_SECONDS.values())
    later = assess_failures(NOW + 2 * LONGEST_WAIT, instances)
    assert not later.retry_at
    assert not later.avoided
