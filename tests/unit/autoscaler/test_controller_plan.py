"""Actions that bring a version from its present to its desired instances."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_autoscaler.controller.actuation import close
from nvcf_autoscaler.controller.plan import (
    LOST,
    REPLACED_PART,
    Action,
    Create,
    GiveUp,
    OrderAgain,
    ResendEnd,
    Terminate,
    grow,
    housekeeping,
    reclaim,
    shrink,
    undeploy,
)
from nvcf_autoscaler.placement.failures import (
    LONGEST_AVOIDED,
    LONGEST_WAIT,
    UNACKNOWLEDGED,
    assess_failures,
)
from nvcf_autoscaler.placement.place import Cluster, Placement, Requirement
from nvcf_autoscaler.placement.timings import Timings, attempts, timings_of
from nvcf_autoscaler.placement.view import InstanceGroups, group_instances
from nvcf_proto.models import DeploymentSpecification, Instance, InstanceState
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


def running(number: int = 0, **changes: Any) -> Instance:
    """An instance that its agent reported."""
    return instance(number, acknowledged_at=NOW - 19, reported_at=NOW - 18, **changes)


def groups_of(*instances: Instance, clusters: tuple[Cluster, ...] = (cluster(),)) -> InstanceGroups:
    return group_instances(NOW, instances, ANYWHERE, clusters)


@given(instance_lists(), cluster_lists, counts, st.integers(0, 5))
def test_no_more_end_than_are_too_many(
    instances: list[Instance], clusters: list[Cluster], desired: dict[str, int], unplaced: int
) -> None:
    groups = group_instances(NOW, instances, ANYWHERE, clusters)
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


FAST = timings_of(2.0, 30.0)
SLOW = timings_of(300.0, 30.0)


@given(instance_lists(), cluster_lists)
def test_nothing_is_forgotten(instances: list[Instance], clusters: list[Cluster]) -> None:
    """Every instance that is not as it should be is acted upon, once, however it came about."""
    groups = group_instances(NOW, instances, ANYWHERE, clusters)
    actions = housekeeping(NOW, groups, clusters)
    touched = [each.instance.key for each in actions if isinstance(each, GiveUp | OrderAgain | ResendEnd)]
    assert len(touched) == len(set(touched)) == len(actions)
    assert {each.key for each in groups.lost} <= set(touched)
    for each in (*groups.up, *groups.stale, *groups.ending):
        taken_up = each.acknowledged_at or each.reported_at or each.ready_at
        if taken_up is None and NOW - each.created_at >= FAST.acknowledgement and not each.draining_since:
            assert each.key in touched
        if each.draining_since and NOW - each.draining_since >= FAST.end:
            assert each.key in touched or each.state is InstanceState.TERMINATING


@pytest.mark.parametrize("times", [FAST, SLOW])
def test_an_order_that_nobody_acknowledges_is_repeated_and_then_given_up(times: Timings) -> None:
    def then(age: float) -> Action | None:
        order = instance(state=InstanceState.PENDING, created_at=NOW - age)
        there = (cluster(timings=times),)
        return next(iter(housekeeping(NOW, groups_of(order, clusters=there), there)), None)

    first = times.acknowledgement
    assert then(first - 0.1) is None
    seen = [then(first * factor) for factor in (1.0, 1.9, 2.0, 4.0)]
    assert [each.attempt for each in seen if isinstance(each, OrderAgain)] == [1, 1, 2, 3]
    last = then(times.order_expires + 1)
    assert isinstance(last, GiveUp)
    assert last.category == UNACKNOWLEDGED
    assert attempts(times.order_expires, first) < 5, "few copies, whatever the agent makes of them"


@pytest.mark.parametrize("times", [FAST, SLOW])
@pytest.mark.parametrize("state", [InstanceState.PENDING, InstanceState.STARTING])
def test_an_acknowledgement_without_a_report_is_not_trusted(times: Timings, state: InstanceState) -> None:
    def then(age: float, listened: float = math.inf, **changes: Any) -> Action | None:
        order = instance(state=state, created_at=NOW - age - 1, acknowledged_at=NOW - age, **changes)
        there = (cluster(timings=times),)
        return next(iter(housekeeping(NOW, groups_of(order, clusters=there), there, listened)), None)

    assert then(times.first_report - 1) is None
    assert isinstance(then(times.first_report + 1), OrderAgain)
    last = then(times.report_expires + 1)
    assert isinstance(last, GiveUp)
    assert last.category == LOST
    assert isinstance(then(7200.0, times.report_expires), OrderAgain), "a new leader, or a clock that was set"
    assert isinstance(then(7200.0, times.report_expires + 1), GiveUp)
    # A start may take hours, as long as its agent reports it.
    assert then(7200.0, reported_at=NOW - 290) is None
    assert isinstance(then(7200.0, reported_at=NOW - times.forgotten_after - 1), GiveUp)


def test_times_of_an_agent_that_works_in_ticks_leave_it_the_time_that_it_needs() -> None:
    # Fetched for 3 s, acknowledged on a tick of 5 s, reported on a tick of 15 s, repeated every 300 s.
    assert SLOW.acknowledgement > 3 + 5 + 3
    assert SLOW.first_report > 15 + 5
    assert SLOW.end > 3 + 5 + 15
    assert SLOW.silent_after >= 600
    assert SLOW.forgotten_after > 600
    # And one that reports at once is not waited for as long.
    assert FAST.acknowledgement == 3.0
    assert FAST.lost_after == 30.0


def test_an_end_that_nobody_carries_out_is_ordered_again() -> None:
    there = (cluster(),)
    (action,) = housekeeping(NOW, groups_of(running(draining_since=NOW - 7.0)), there)
    assert isinstance(action, ResendEnd)
    assert action.attempt == 2
    acknowledged = running(state=InstanceState.TERMINATING, draining_since=NOW - 60)
    assert housekeeping(NOW, groups_of(acknowledged), there) == []


def test_a_drained_cluster_keeps_its_instances_until_others_serve_elsewhere() -> None:
    there = (cluster("one", draining=True), cluster("two"))
    old = [instance(1), instance(2)]
    desired = {SPECIFICATIONS[0]: 2}
    assert shrink(groups_of(*old, clusters=there), desired, unplaced=2) == []
    successors = [instance(number, cluster_id="two") for number in (3, 4)]
    (action,) = shrink(groups_of(*old, *successors, clusters=there), desired)
    assert isinstance(action, Terminate)
    assert set(action.instances) == set(old)
    assert action.reason == "its cluster is drained"


def test_an_instance_on_its_way_out_of_a_dead_cluster_is_closed() -> None:
    leaving = instance(state=InstanceState.TERMINATING, draining_since=NOW - 60)
    (action,) = housekeeping(NOW, groups_of(leaving, clusters=()), ())
    assert isinstance(action, GiveUp)
    silent = cluster(heard_ago=31.0, name="dark")
    (action,) = housekeeping(NOW, groups_of(leaving, clusters=(silent,)), (silent,))
    assert isinstance(action, GiveUp)
    assert action.reason == "nothing was heard of cluster dark"


def test_what_was_to_end_anyway_has_not_failed_when_its_cluster_is_lost() -> None:
    text = "nothing was heard of cluster one"
    lost = close(running(), "lost", text, NOW)
    assert (lost.state, lost.category, lost.reason) == (InstanceState.FAILED, "lost", f"lost: {text}")
    leaving = close(running(draining_since=NOW - 40, reason="fewer are needed"), "lost", text, NOW)
    assert (leaving.state, leaving.category) == (InstanceState.COMPLETED, None)
    assert leaving.reason == f"fewer are needed; {text}"
    assert not assess_failures(NOW, [leaving]).avoided


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
    clusters = [cluster("one"), cluster("two")]
    (action,) = reclaim(NOW, [*here, there], {"one": 1, "two": 1}, clusters)
    assert isinstance(action, Terminate)
    assert len(action.instances) == 1
    assert action.instances[0] in here
    assert reclaim(NOW, [*here, there], {"one": 2, "two": 5}, clusters) == []


@pytest.mark.parametrize(
    "why", [{"healthy": False}, {"heard_ago": 100.0}, {"cordoned": True}, {"draining": True}]
)
def test_nothing_ends_for_others_where_they_cannot_start(why: dict[str, Any]) -> None:
    assert reclaim(NOW, [instance(1)], {}, [cluster("one", **why)]) == []
    assert reclaim(NOW, [instance(1)], {}, [cluster("two")]) == [], "no heartbeat is known"


def test_growing_follows_the_placement() -> None:
    placement = Placement((("one", 2), ("two", 1)), 1, ())
    spec = DeploymentSpecification(gpu="A", gpus_per_instance=2)
    creations = grow("key", spec, placement, [cluster("one"), cluster("two")])
    assert creations == [Create("key", "one", 2, "A", 2), Create("key", "two", 1, "A", 2)]


@pytest.mark.parametrize(
    ("queue_empty", "since", "ends"),
    [(True, NOW, True), (False, NOW - 29, False), (False, NOW - 31, True)],
)
def test_an_undeployed_version_serves_what_is_queued(queue_empty: bool, since: float, ends: bool) -> None:
    groups = group_instances(NOW, [instance()], {}, [cluster()])
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


def test_a_cluster_that_refused_a_chart_is_not_asked_again_until_the_deployment_is_changed() -> None:
    refused = failed(1, "invalid_chart: Deployment web: no", 100_000.0, category="invalid_chart")
    learnt = assess_failures(NOW, [refused], changed_at=NOW - 200)
    assert learnt.avoided["one"] == (float("inf"), refused.reason)
    assert not learnt.retry_at, "others may take it"
    assert not assess_failures(NOW, [refused], changed_at=NOW - 100).avoided


def test_a_cluster_that_cannot_fetch_a_chart_is_asked_again_ever_more_rarely() -> None:
    missing = [failed(number, "", 1.0, category="chart_pull") for number in range(7)]
    seconds = [assess_failures(NOW, missing[:count]).avoided["one"][0] - NOW for count in range(1, 8)]
    assert seconds == [9.0, 19.0, 39.0, 79.0, 159.0, 239.0, 239.0]
    assert not assess_failures(NOW, missing).retry_at, "others may have it"
    assert not assess_failures(NOW, missing, changed_at=NOW - 100).avoided, "the deployment is another one"


def test_a_cluster_that_acknowledges_nothing_is_avoided_for_longer_each_time() -> None:
    orders = [failed(number, "", 1.0, category="unacknowledged") for number in range(5)]
    seconds = [assess_failures(NOW, orders[:count]).avoided["one"][0] - NOW for count in range(1, 6)]
    assert seconds == [29.0, 59.0, 119.0, 239.0, 239.0]
    assert not assess_failures(NOW, orders).retry_at, "that says nothing about the function"


def test_a_start_that_ends_without_a_reason_counts_as_a_failure_of_the_function() -> None:
    """NVIDIA's agent reports what it cannot translate as not found; a silent cluster is another matter."""
    vanished = failed(1, "", 0.5, category="lost", reported_at=NOW - 0.5, acknowledged_at=NOW - 9)
    assert assess_failures(NOW, [vanished]).retry_at
    assert assess_failures(NOW, [vanished]).avoided
    silent = vanished.replace(reported_at=NOW - 40)
    assert not assess_failures(NOW, [silent]).retry_at
    assert assess_failures(NOW, [silent]).avoided


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
        assert NOW < until <= NOW + LONGEST_AVOIDED
    later = assess_failures(NOW + 2 * LONGEST_AVOIDED, instances)
    assert not later.retry_at
    assert not later.avoided
