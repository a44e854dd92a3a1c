"""What reports make of an instance's record: in any order, once or many times, the truth is the same."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from nvcf_gateway.clusters.instance_reports import (
    OVER,
    acknowledged,
    category_of,
    is_news,
    released_by,
    reported,
    still_refused,
)
from nvcf_proto.icms.causes import CATEGORIES, Cause
from nvcf_proto.icms.reports import HealthInfo, ProcessDetails, RequestState, Status, StatusReport
from nvcf_proto.icms.reports import InstanceState as Reported
from nvcf_proto.ids import new_id
from nvcf_proto.models import Deployment, Instance, InstanceState

CLUSTER = "cluster-1"
REQUEST = new_id()
ID = f"0-sr-{REQUEST}"


def pending(**fields: Any) -> Instance:
    return Instance(
        id=ID,
        function_id=new_id(),
        version_id=new_id(),
        cluster_id=CLUSTER,
        state=InstanceState.PENDING,
        updated_at=1.0,
        created_at=1.0,
        request_id=REQUEST,
        gpu="H100",
    ).replace(**fields)


def live(state: Reported, **fields: Any) -> StatusReport:
    return StatusReport(status=Status.FULFILLED, instance_state=state).replace(**fields)


def ended(status: str, cause: str | None = None, **fields: Any) -> StatusReport:
    return StatusReport(
        status=status,
        instance_state=Reported.TERMINATED,
        request_state=RequestState.CLOSED,
        termination_cause=cause,
        system_failure=cause,
    ).replace(**fields)


BY_USER = ended(Status.TERMINATED_BY_USER)
GONE = ended(Status.TERMINATED_BY_SERVICE, Cause.NOT_FOUND)
PULL = ended(Status.TERMINATED_BY_SERVICE, Cause.IMAGE_PULL, health_info=HealthInfo("no such image"))


def test_the_refusal_of_a_chart_is_remembered_until_the_deployment_is_changed() -> None:
    refused = pending(created_at=20.0, category="invalid_chart")
    deployment = Deployment(version_id=refused.version_id, function_id=refused.function_id, created_at=10.0)
    assert still_refused(refused, deployment)
    assert still_refused(refused, deployment.replace(last_updated_at=15.0))
    assert not still_refused(refused, deployment.replace(last_updated_at=25.0))
    assert not still_refused(refused, None)
    assert not still_refused(refused.replace(category="crash"), deployment)


def apply(record: Instance, reports: list[StatusReport], start: float = 10.0) -> tuple[Instance, list[int]]:
    """Return the record after reports that come a second apart, and the answers to them."""
    answers = []
    for index, report in enumerate(reports):
        decision = reported(record, CLUSTER, ID, report, start + index)
        answers.append(decision.status)
        record = decision.record or record
    return record, answers


def truth(record: Instance) -> tuple[Any, ...]:
    return (record.state, record.category, record.reason, record.released_at is not None)


@pytest.mark.parametrize("order", list(itertools.permutations((BY_USER, GONE))))
@pytest.mark.parametrize("drained", [False, True])
def test_an_end_that_was_asked_for_is_reported_twice_in_any_order(
    order: tuple[StatusReport, ...], drained: bool
) -> None:
    record = pending(state=InstanceState.RUNNING, acknowledged_at=2.0, reported_at=3.0)
    if drained:
        record = record.replace(draining_since=4.0, reason="scaled down")
    after, answers = apply(record, list(order))
    assert answers == [200, 200]
    assert truth(after) == (InstanceState.COMPLETED, None, "scaled down" if drained else None, True)


@pytest.mark.parametrize("order", list(itertools.permutations((PULL, GONE, PULL, GONE))))
def test_the_true_cause_of_a_failure_is_kept(order: tuple[StatusReport, ...]) -> None:
    after, answers = apply(pending(acknowledged_at=2.0), list(order))
    assert set(answers) == {200}
    assert truth(after) == (InstanceState.FAILED, "image_pull", "image_pull: no such image", True)


def test_gpus_are_not_free_while_the_instance_ends() -> None:
    record = pending(state=InstanceState.RUNNING, acknowledged_at=2.0, draining_since=4.0)
    after, _ = apply(record, [BY_USER, BY_USER])
    assert after.state is InstanceState.COMPLETED
    assert after.released_at is None
    final = BY_USER.replace(details=ProcessDetails(restarts=1))
    after, _ = apply(record, [final])
    assert after.released_at == 10.0, "an agent with details reports an end when nothing runs any more"


REPORTS = st.sampled_from(
    [
        live(Reported.STARTING),
        live(Reported.RUNNING),
        live(Reported.SHUTTING_DOWN),
        BY_USER,
        GONE,
        PULL,
        ended(Status.NO_CAPACITY),
        ended(Status.TERMINATED_BY_SERVICE, Cause.MAINTENANCE),
        ended(Status.TERMINATED_BY_SERVICE, "a-word-of-a-later-release"),
    ]
)


@given(st.lists(REPORTS, max_size=12), st.booleans())
def test_a_closed_record_stays_closed(reports: list[StatusReport], drained: bool) -> None:
    record = pending(draining_since=4.0, acknowledged_at=3.0) if drained else pending()
    for index, report in enumerate(reports):
        before = record
        decision = reported(record, CLUSTER, ID, report, 10.0 + index)
        record = decision.record or record
        if before.state not in OVER:
            assert decision.status == 200
            continue
        event("a report after the end")
        assert record.state in OVER
        assert decision.status == (200 if report.instance_state is Reported.TERMINATED else 412)
        if before.category != CATEGORIES[Cause.NOT_FOUND]:
            assert (record.state, record.category, record.reason) == (
                before.state,
                before.category,
                before.reason,
            )
        if before.released_at is not None:
            assert record.released_at == before.released_at
    if drained:
        assert record.state is not InstanceState.FAILED, "an end that was asked for is no failure"


@given(st.lists(REPORTS, max_size=8), st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_repetition_changes_nothing(reports: list[StatusReport], times: list[int]) -> None:
    once, _ = apply(pending(), reports)
    repeated = [each for each, count in zip(reports, times, strict=False) for _ in range(count + 1)]
    many, _ = apply(pending(), repeated)
    assert truth(many)[:3] == truth(once)[:3]


@given(st.permutations([live(Reported.STARTING), live(Reported.RUNNING), PULL, GONE, GONE, PULL]))
def test_any_order_ends_in_the_same_truth(reports: list[StatusReport]) -> None:
    after, _ = apply(pending(acknowledged_at=2.0), reports)
    assert truth(after) == (InstanceState.FAILED, "image_pull", "image_pull: no such image", True)


def test_acknowledgements() -> None:
    taken = acknowledged(pending(), CLUSTER, 5.0)
    assert taken.status == 200
    assert taken.record is not None
    assert taken.record.acknowledged_at == 5.0
    assert acknowledged(taken.record, CLUSTER, 9.0).record is None, "fifty of the same write once"
    assert acknowledged(None, CLUSTER, 5.0).status == 404
    assert acknowledged(pending(), "another", 5.0) == acknowledged(None, CLUSTER, 5.0)
    assert acknowledged(pending(state=InstanceState.FAILED), CLUSTER, 5.0).status == 412
    overtaken = acknowledged(pending(draining_since=2.0, reason="scaled down"), CLUSTER, 5.0)
    assert overtaken.status == 412
    assert overtaken.record is not None
    assert truth(overtaken.record) == (
        InstanceState.COMPLETED,
        None,
        "scaled down",
        True,
    )
    ending = pending(draining_since=2.0, acknowledged_at=1.5)
    assert acknowledged(ending, CLUSTER, 5.0).status == 200, "a late copy of an acknowledgement"


def test_what_is_known_to_be_over_must_not_run_there() -> None:
    for record in (None, pending(cluster_id="another")):
        assert reported(record, CLUSTER, ID, live(Reported.RUNNING), 5.0).status == 412
        assert reported(record, CLUSTER, ID, BY_USER, 5.0).status == 404


def test_one_instance_a_request() -> None:
    record, _ = apply(pending(), [live(Reported.RUNNING)])
    other = "1-sr-" + REQUEST
    assert reported(record, CLUSTER, other, live(Reported.RUNNING), 9.0).status == 412
    ended_other = reported(record, CLUSTER, other, GONE, 9.0)
    assert (ended_other.status, ended_other.record) == (200, None)
    learnt = reported(pending(), CLUSTER, f"sr-{REQUEST}-miniservice", live(Reported.RUNNING), 9.0)
    assert learnt.record is not None
    assert learnt.record.id == f"sr-{REQUEST}-miniservice"


def test_running_may_become_starting_again_and_ready_is_when_it_first_was() -> None:
    record, _ = apply(pending(), [live(Reported.RUNNING), live(Reported.STARTING), live(Reported.RUNNING)])
    assert (record.state, record.ready_at) == (InstanceState.RUNNING, 10.0)


def test_a_report_that_says_nothing_new_is_written_now_and_then() -> None:
    record, _ = apply(pending(), [live(Reported.RUNNING)])
    assert reported(record, CLUSTER, ID, live(Reported.RUNNING), 12.0).record is None
    later = reported(record, CLUSTER, ID, live(Reported.RUNNING), 300.0).record
    assert later is not None
    assert (later.reported_at, later.updated_at) == (300.0, 10.0)


def test_an_announced_end_is_not_taken_back_by_an_older_report() -> None:
    record = pending(state=InstanceState.TERMINATING, draining_since=3.0, acknowledged_at=2.0)
    after, answers = apply(record, [live(Reported.RUNNING), live(Reported.STARTING)])
    assert (after.state, answers) == (InstanceState.TERMINATING, [200, 200])


@pytest.mark.parametrize("cause", list(Cause))
def test_each_cause_has_a_category(cause: Cause) -> None:
    assert category_of(ended(Status.TERMINATED_BY_SERVICE, cause)) == CATEGORIES.get(cause, "unknown")
    exact = ended(Status.TERMINATED_BY_SERVICE, cause, details=ProcessDetails(category="out-of-memory"))
    assert category_of(exact) == "out-of-memory"


def test_a_heartbeat_frees_what_ended_when_no_more_is_allocated_than_runs() -> None:
    running = pending(state=InstanceState.RUNNING, acknowledged_at=2.0, devices=4)
    over = pending(state=InstanceState.COMPLETED, acknowledged_at=2.0, devices=2)
    waiting = pending(devices=8)
    records = [running, over, waiting]
    assert released_by(records, "H100", 6, 9.0) == []
    assert released_by(records, "L40S", 0, 9.0) == []
    assert released_by(records, "H100", 4, 9.0) == [over.replace(released_at=9.0)]
    assert released_by([over.replace(released_at=5.0)], "H100", 0, 9.0) == []


def test_users_are_told_of_other_states_and_of_restarts_with_a_reason() -> None:
    serves = pending(state=InstanceState.RUNNING)
    again = serves.replace(restarts=1, reason="container inference used more memory")
    assert is_news(pending(), serves)
    assert is_news(serves, again)
    assert not is_news(again, again.replace(reported_at=5.0))
    assert not is_news(serves, serves.replace(restarts=1)), "an agent that gives no reason"
    starting = serves.replace(state=InstanceState.STARTING)
    assert not is_news(starting, starting.replace(restarts=1, reason="exit code 1")), "told as it failed"
