"""An instance in NVIDIA's words: state of its request, cause of its end, its report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nvcf_agent.icms.reconcile import compare
from nvcf_agent.icms.registration import registration
from nvcf_agent.icms.reports import Key, WantedCalls, report_of
from nvcf_agent.state import transitions
from nvcf_agent.state.causes import cause_of, error_log
from nvcf_agent.state.events import Observed, Progress
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.machine_inventory import MachineInventory
from nvcf_agent.state.managed_instance import Category, ManagedInstance
from nvcf_agent.state.order import duration
from nvcf_agent.state.persisted_state import EndedInstance
from nvcf_agent.state.request_status import RequestStatus, request_status
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.reports import (
    Acknowledgement,
    InstanceState,
    KnownInstance,
    MaintenanceMode,
    StatusReport,
)
from tests.unit.agent.orders import order


def waiting(request_id: str = "r", index: int = 0) -> ManagedInstance:
    return transitions.accepted(order(request_id), Share(slots=1), 1.0, index)


def running(request_id: str = "r", index: int = 0) -> ManagedInstance:
    instance = transitions.creating(transitions.acknowledged(waiting(request_id, index)), wall=1.0)
    instance = transitions.launched(instance, pid=7, health_port=8, log_path="/l", now=0.0, wall=1.0)
    return transitions.ready(instance, 2.0)


def ended(cause: Cause = Cause.BY_USER) -> ManagedInstance:
    instance = transitions.terminating(running(), "why", 1.0, 3.0, cause)
    instance = transitions.ended(instance, Category.CRASH, "", now=4.0, wall=4.0)
    return replace(instance, cleaned=True)


def failed() -> ManagedInstance:
    rejected = transitions.rejected(running(), Category.NOT_READY, "not ready\nlast\nwords", 5.0)
    return replace(rejected, has_process=False, cleaned=True)


def test_the_parts_of_a_start_are_reported_in_seconds() -> None:
    one = running()
    for part, at in (("scheduled", 12.5), ("ready", 14.0)):
        one = transitions.after_event(one, Progress(one.id, part, at), now=0.0, wall=0.0)
    begun = replace(one, order=one.order.replace(issued_at=10.0))
    assert begun.part_seconds == {"scheduled": 2.5, "ready": 1.5}
    report = report_of(begun)
    assert report is not None
    assert report.details is not None
    assert report.details.start_parts == begun.part_seconds


def test_why_a_container_was_started_again_is_reported_until_there_is_another_reason() -> None:
    seen = Observed("", "node", ("10.0.0.1",), 1, "out of memory")
    one = transitions.after_event(running(), seen, now=0.0, wall=0.0)
    waiting_again = transitions.unready(one, "not ready", now=0.0, wall=0.0)
    ready_again = transitions.ready(waiting_again, 1.0)
    reports = [report_of(each) for each in (one, waiting_again, ready_again)]
    reasons = [each.details.reason for each in reports if each is not None and each.details is not None]
    assert reasons == ["out of memory", "waiting: not ready", "out of memory"]


def test_the_status_of_a_request_follows_from_its_instances() -> None:
    one = running()
    starting = replace(transitions.unready(one, "x", now=1.0, wall=1.0), reported=InstanceState.STARTING)
    told = replace(one, reported=InstanceState.RUNNING)
    found = [
        request_status((waiting(),)),
        request_status((transitions.acknowledged(waiting()),)),
        request_status((transitions.creating(transitions.acknowledged(waiting()), wall=1.0),)),
        request_status((starting,)),
        request_status((one,)),
        request_status((told,)),
        request_status((failed(),)),
        request_status((replace(failed(), reported=InstanceState.TERMINATED),)),
    ]
    # No model is cached by a process backend.
    assert found == [each for each in RequestStatus if each is not RequestStatus.CACHING]
    assert [each.value for each in found[1:3]] == ["RequestPending", "RequestInProgress"]
    assert request_status((told, starting)) is RequestStatus.INSTANCES_IN_PROGRESS
    assert request_status((told, failed())) is RequestStatus.FAILED
    assert request_status((told, replace(running("r", 1), reported=None))) is RequestStatus.COMPLETED


def test_the_acknowledgement_comes_first_and_covers_the_whole_request() -> None:
    calls = WantedCalls().of([waiting(), waiting(index=1)], {})
    assert list(calls) == [Key("r")]
    assert isinstance(calls[Key("r")].body, Acknowledgement)
    calls = WantedCalls().of([running(), running(index=1)], {})
    assert list(calls) == [Key("r", "0-sr-r"), Key("r", "1-sr-r")]


def test_an_end_is_reported_when_nothing_is_left_and_once() -> None:
    over = ended()
    assert report_of(replace(over, cleaned=False)) is None
    assert report_of(replace(over, has_process=True)) is None
    assert report_of(over) is not None
    assert report_of(replace(over, reported=InstanceState.TERMINATED)) is None


def of(instance: ManagedInstance) -> StatusReport:
    report = report_of(instance)
    assert report is not None
    return report


def test_what_a_user_ended_has_no_cause_and_everything_else_has_one() -> None:
    user = of(ended())
    assert (user.status, user.termination_cause, user.action) == (
        "instance-terminated-by-user",
        None,
        "TerminateInstances",
    )
    sync = of(ended(Cause.SYNC_ACTION))
    assert (sync.status, sync.termination_cause, sync.system_failure) == (
        "instance-terminated-by-service",
        "instance-terminated-sync-action",
        None,
    )
    bad = of(failed())
    assert (bad.termination_cause, bad.system_failure) == ("degraded-worker", "degraded-worker")
    assert bad.health_info.error_log == (
        "pod terminated due to state degraded-worker: not ready\n---\n"
        "CONTAINER inference EXITED\nlast\nwords\n---\n"
    )


def test_every_category_has_a_cause_and_the_log_is_bounded() -> None:
    assert {cause_of(each) for each in Category} <= set(Cause)
    long = error_log(Cause.FAILED, "first\n" + "\n".join(f"{number} {'ü' * 90}" for number in range(500)))
    assert len(long.encode()) < 1200
    assert "499 " in long
    assert error_log(Cause.FAILED, "") == "pod terminated due to state failed: "


def test_instances_that_never_were_are_reported_ended() -> None:
    gone = {
        "x": EndedInstance(request_id="r", until=9.0),
        "y": EndedInstance(request_id="r", until=9.0, reported=True),
    }
    calls = WantedCalls().of([], gone)
    assert list(calls) == [Key("r", "x")]
    assert calls[Key("r", "x")].is_terminated


def listed(instance_id: str, state: InstanceState) -> KnownInstance:
    return KnownInstance(instance_id=instance_id, request_id="r", instance_state=state)


def test_reconciliation() -> None:
    here = {
        each.id: each for each in (running("same"), running("ending"), running("differs"), running("missing"))
    }
    found = compare(
        [
            listed("0-sr-same", InstanceState.RUNNING),
            listed("0-sr-ending", InstanceState.SHUTTING_DOWN),
            listed("0-sr-differs", InstanceState.STARTING),
            listed("0-sr-lost", InstanceState.RUNNING),
            listed("0-sr-new", InstanceState.STARTING),
            listed("0-sr-old", InstanceState.STARTING),
            listed("0-sr-over", InstanceState.TERMINATED),
        ],
        here,
        ended=(),
        doubtful=("0-sr-old",),
    )
    assert found.end == {"0-sr-ending"}
    assert found.unknown == {"0-sr-lost": "r", "0-sr-old": "r"}
    assert found.repeat == {"differs", "missing"}
    assert found.doubtful == {"0-sr-new"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("PT10M", 600.0),
        ("PT1H30M", 5400.0),
        ("P1DT2H3M4.5S", 93784.5),
        ("PT0S", 0.0),
        ("", 7.0),
        (None, 7.0),
        ("P", 7.0),
        ("PT", 7.0),
        ("10", 7.0),
        ("PT-1S", 7.0),
        ("PT1e9S", 7.0),
    ],
)
def test_durations_that_are_none_are_the_default(text: str | None, seconds: float) -> None:
    assert duration(text, 7.0) == seconds


def test_a_cordoned_cluster_says_so_in_its_registration() -> None:
    body = registration(
        MachineInventory(cpu_slots=1),
        backend="process",
        heartbeat_seconds=2.0,
        attributes={},
        maintenance=MaintenanceMode.CORDON_AND_DRAIN,
    )
    assert body.status == "CORDON_AND_DRAIN"
    assert type(body).from_json(body.to_json()) == body
