"""What is wrong with a pod, when that is said, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_agent.kubernetes.pods.milestones import added, milestones
from nvcf_agent.kubernetes.pods.observe import (
    Failure,
    Limits,
    Memory,
    end_of,
    failure_of,
    remember,
    why_not_ready,
)
from nvcf_agent.kubernetes.pods.status import is_ready, is_starting, restarts
from nvcf_agent.kubernetes.pods.texts import described, why_restarted
from nvcf_agent.state.causes import error_log
from nvcf_agent.state.managed_instance import Category
from nvcf_proto.icms.causes import Cause
from tests.unit.agent.kubernetes.pods import (
    CREATED,
    IMAGE,
    condition,
    pod,
    running,
    stamp,
    terminated,
    waiting,
)

LIMITS = Limits()
NEW = Memory()
HOUR = 3600.0


def judged(found: dict[str, Any], after: float, memory: Memory = NEW) -> Failure | None:
    """Return the failure of a pod so long after its creation."""
    return failure_of(found, memory, CREATED + after, LIMITS)


def expected(found: Failure | None, cause: Cause, category: Category, *texts: str) -> Failure:
    assert found is not None
    assert (found.cause, found.category) == (cause, category)
    for text in texts:
        assert text in found.text
    return found


def test_an_unscheduled_pod_has_ten_minutes() -> None:
    message = "0/3 nodes are available: 2 Insufficient nvidia.com/gpu"
    found = pod(node="", conditions=(condition("PodScheduled", False, message=message),))
    found["status"]["conditions"].pop(0)
    assert judged(found, 599) is None
    assert why_not_ready(found) == f"no node yet: {message}"
    failure = expected(judged(found, 600), Cause.NO_CAPACITY, Category.CAPACITY, "10 min", message)
    assert "add nodes of this instance type" in described(failure, found)


def test_a_container_that_cannot_be_created_fails_at_once() -> None:
    found = pod(waiting("inference", "CreateContainerConfigError", 'secret "x" not found'))
    failure = expected(
        judged(found, 0), Cause.CREATE_CONTAINER_ERROR, Category.CREATE_CONTAINER, 'secret "x" not found'
    )
    assert failure.container == "inference"


def test_a_program_that_cannot_be_started_fails_at_once() -> None:
    last = {"terminated": terminated(128, "StartError", 'exec: "serve": executable file not found')}
    found = pod(waiting("inference", "CrashLoopBackOff", "back-off", restartCount=1, lastState=last))
    expected(judged(found, 1), Cause.CREATE_CONTAINER_ERROR, Category.CREATE_CONTAINER, '"serve"')


def test_the_minute_of_an_image_begins_with_the_first_error() -> None:
    failing = pod(waiting("inference", "ErrImagePull", "not found"))
    memory = remember(failing, NEW, CREATED + 300)
    backing_off = pod(waiting("inference", "ImagePullBackOff", "Back-off pulling image"))
    memory = remember(backing_off, memory, CREATED + 330)
    assert judged(backing_off, 359, memory) is None
    expected(judged(backing_off, 360, memory), Cause.IMAGE_PULL, Category.IMAGE_PULL, IMAGE, "Back-off")
    pulled = pod(running("inference", ready=False))
    assert remember(pulled, memory, CREATED + 340).pull_failed_at is None


def test_an_invalid_image_name_fails_at_once() -> None:
    found = pod(waiting("inference", "InvalidImageName", "couldn't parse"))
    expected(judged(found, 0), Cause.IMAGE_PULL, Category.IMAGE_PULL, "couldn't parse")


@pytest.mark.parametrize(
    ("reason", "category", "text"),
    [
        ("Error", Category.CRASH, "ended with exit code 1"),
        ("OOMKilled", Category.OUT_OF_MEMORY, "used more memory than its limit of 1Gi"),
    ],
)
def test_a_crash_loop_has_three_restarts_and_ten_minutes(reason: str, category: Category, text: str) -> None:
    last = {"terminated": terminated(1, reason, "Traceback: no model\nlast line")}
    looping = waiting("inference", "CrashLoopBackOff", "back-off", restartCount=3, lastState=last)
    found = pod(looping, running("utils", ready=False), phase="Running")
    assert judged(found, 599) is None
    assert judged(pod({**looping, "restartCount": 2}, phase="Running"), 601) is None
    failure = expected(judged(found, 600), Cause.CONTAINER_RESTART_LOOP, category, "restarted 3 times", text)
    assert restarts(found) == 3
    lines = described(failure, found).splitlines()
    assert lines[1:] == [
        "---",
        "CONTAINER inference EXITED, CODE=1",
        "Traceback: no model",
        "last line",
        "---",
        "CONTAINER utils RUNNING",
        "---",
    ]


def test_old_restarts_are_no_loop() -> None:
    busy = running("inference", restartCount=9, lastState={"terminated": terminated(1)})
    found = pod(busy, running("utils"), conditions=(condition("Ready", True),), phase="Running")
    assert judged(found, 100 * HOUR) is None
    other = pod(busy, running("utils", ready=False), conditions=(condition("Ready", False),), phase="Running")
    assert judged(other, 600) is None


def test_why_a_container_was_started_again_is_told() -> None:
    killed = {"terminated": terminated(137, "OOMKilled")}
    crashed = {"terminated": terminated(1, "Error", "Traceback: no model\nlast line")}
    assert why_restarted([pod(running("inference"), running("utils"))]) == ""
    first = running("inference", CREATED + 10, restartCount=1, lastState=killed)
    told = why_restarted([pod(first, running("utils"))])
    assert told.startswith("container inference used more memory than its limit of 1Gi (OOMKilled)")
    assert "and was started again; choose an instance type with more memory" in told
    newer = running("utils", CREATED + 20, restartCount=1, lastState=crashed)
    assert why_restarted([pod(first, newer)]).splitlines() == [
        "container utils ended with exit code 1 and was started again",
        "---",
        "CONTAINER utils EXITED, CODE=1",
        "Traceback: no model",
        "last line",
        "---",
    ]
    again = waiting("inference", "CrashLoopBackOff", restartCount=2, lastState=killed)
    assert why_restarted([pod(again, newer)]).startswith("container inference used more memory")


def test_an_init_container_is_stuck_after_two_hours_and_loops_after_ten_minutes() -> None:
    found = pod(waiting("inference", "PodInitializing"), init=(running("init", ready=False),))
    assert why_not_ready(found) == "container init is at work"
    assert judged(found, 2 * HOUR - 1) is None
    expected(judged(found, 2 * HOUR + 1), Cause.INIT_CONTAINER_STUCK, Category.INIT_STUCK, "2 h")
    last = {"terminated": terminated(1, "Error", "cannot fetch model m: HTTP 403")}
    failing = waiting("init", "CrashLoopBackOff", restartCount=3, lastState=last)
    looping = pod(waiting("inference", "PodInitializing"), init=(failing,))
    failure = expected(judged(looping, 600), Cause.INIT_CONTAINER_RESTART_LOOP, Category.CRASH)
    assert "INIT CONTAINER init EXITED, CODE=1\ncannot fetch model m: HTTP 403" in described(failure, looping)


def test_a_pod_that_is_not_ready_is_degraded() -> None:
    found = pod(
        running("inference"),
        running("utils", ready=False),
        conditions=(condition("Ready", False, CREATED),),
        phase="Running",
    )
    assert why_not_ready(found) == "container utils is not ready"
    assert judged(found, 2 * HOUR - 1) is None
    never = expected(
        judged(found, 2 * HOUR), Cause.DEGRADED_WORKER, Category.NOT_READY, "not ready after 2 h"
    )
    assert never.container == "utils"
    events = [
        {"type": "Warning", "reason": "Unhealthy", "message": "probe failed", "lastTimestamp": stamp(CREATED)}
    ]
    text = described(never, found, events, {"utils": "connecting\nrefused"})
    assert "(Unhealthy: probe failed)" in text
    assert "CONTAINER utils RUNNING\nconnecting\nrefused" in text
    was = remember(pod(running("inference"), conditions=(condition("Ready", True),)), NEW, CREATED)
    assert was.was_ready
    assert judged(found, 1799, was) is None
    expected(
        judged(found, 1800, was), Cause.DEGRADED_WORKER, Category.NOT_READY, "not ready again after 30 min"
    )


@pytest.mark.parametrize(
    ("reason", "cause", "category"),
    [
        ("UnexpectedAdmissionError", Cause.ADMISSION_ERROR, Category.ADMISSION),
        ("OutOfnvidia.com/gpu", Cause.ADMISSION_ERROR, Category.ADMISSION),
        ("NodeAffinity", Cause.ADMISSION_ERROR, Category.ADMISSION),
        ("Evicted", Cause.FAILED, Category.EVICTED),
        ("NodeShutdown", Cause.FAILED, Category.EVICTED),
        ("NodeLost", Cause.NOT_FOUND, Category.NODE_LOST),
        ("Other", Cause.FAILED, Category.UNKNOWN),
    ],
)
def test_a_failed_pod_is_judged_at_once(reason: str, cause: Cause, category: Category) -> None:
    found = pod(phase="Failed", reason=reason, message="because")
    expected(judged(found, 0), cause, category, "because")


@pytest.mark.parametrize(
    ("reason", "category"),
    [("EvictionByEvictionAPI", Category.EVICTED), ("DeletionByTaintManager", Category.NODE_LOST)],
)
def test_who_ended_a_pod_is_said(reason: str, category: Category) -> None:
    found = pod(conditions=(condition("DisruptionTarget", True, reason=reason, message="why"),))
    expected(end_of(found), Cause.NOT_FOUND, category, "why")
    expected(end_of(pod()), Cause.NOT_FOUND, Category.LOST, "not by the agent")


def test_a_pod_that_its_node_does_not_end_is_on_a_lost_node() -> None:
    found = pod(running("inference"), conditions=(condition("Ready", True),))
    found["metadata"]["deletionTimestamp"] = stamp(CREATED + 100)
    assert not is_ready(found)
    assert judged(found, 159) is None
    expected(judged(found, 160), Cause.NOT_FOUND, Category.NODE_LOST, "one")


@pytest.mark.parametrize(
    ("utils", "starting"),
    [
        ([], True),
        ([waiting("utils", "ContainerCreating", started=False)], True),
        ([running("utils", ready=False, started=False)], True),
        ([running("utils", ready=False, started=True)], False),
        ([running("utils", ready=False, started=False) | {"restartCount": 1}], False),
        ([running("utils", started=False) | {"state": {"terminated": terminated(1)}}], False),
    ],
)
def test_a_pod_is_starting_until_all_its_containers_have_started(
    utils: list[dict[str, Any]], starting: bool
) -> None:
    inference = [running("inference", started=True)] if utils else []
    assert is_starting(pod(*inference, *utils)) is starting


def test_the_report_has_nvidias_form() -> None:
    found = pod(
        waiting("inference", "CreateContainerConfigError", 'secret "x" not found'),
        init=({"name": "init", "state": {"terminated": terminated(0, "Completed")}, "restartCount": 0},),
    )
    failure = judged(found, 0)
    assert failure is not None
    log = error_log(failure.cause, described(failure, found))
    first, *rest = log.splitlines()
    assert first.startswith("pod terminated due to state create-container-error: container inference")
    assert rest == [
        "---",
        "INIT CONTAINER init EXITED, CODE=0",
        "---",
        "CONTAINER inference WAITING",
        "---",
        "CONTAINER utils WAITING",
        "---",
    ]


def test_the_parts_of_a_start_come_in_order() -> None:
    found = pod(
        running("inference", CREATED + 4),
        running("utils", CREATED + 5, started=True),
        conditions=(condition("Initialized", True, CREATED + 1), condition("Ready", True, CREATED + 9)),
    )
    seen = milestones(found, "utils")
    whole = added({}, seen, CREATED + 100)
    assert list(whole) == [
        "pod created", "scheduled", "initialized", "container started", "worker started", "ready"
    ]  # fmt: skip
    assert sorted(whole.values()) == list(whole.values())
    assert whole["container started"] == CREATED + 5
    assert added(whole, seen, CREATED + 101) == {}
    early = milestones(pod(node=""), "utils")
    assert list(added({}, early, CREATED + 0.25)) == ["pod created"]
    assert added({}, early, CREATED + 0.25)["pod created"] == CREATED + 0.25


states = st.sampled_from(
    [
        waiting("inference", "ContainerCreating"),
        waiting("inference", "ErrImagePull", "x"),
        waiting("inference", "CrashLoopBackOff", restartCount=5, lastState={"terminated": terminated(137)}),
        waiting("inference", "CreateContainerError", "x"),
        running("inference"),
        running("inference", ready=False),
        {"name": "inference"},
    ]
)


@given(
    state=states,
    node=st.sampled_from(["", "one"]),
    phase=st.sampled_from(["Pending", "Running", "Failed", "Unknown"]),
    ready=st.booleans(),
    going=st.booleans(),
    ages=st.lists(st.floats(0, 4 * HOUR), min_size=2, max_size=4).map(sorted),
)
def test_a_pod_once_given_up_stays_so(
    state: dict[str, Any], node: str, phase: str, ready: bool, going: bool, ages: list[float]
) -> None:
    found = pod(state, conditions=(condition("Ready", ready),), node=node, phase=phase)
    if going:
        found["metadata"]["deletionTimestamp"] = stamp(CREATED)
    memory, failed = NEW, False
    for age in ages:
        memory = remember(found, memory, CREATED + age)
        failure = judged(found, age, memory)
        assert failure is not None or not failed
        failed = failure is not None
        if failure is not None:
            assert described(failure, found).endswith("---")
            assert "\n" not in failure.text
        assert why_not_ready(found)
