"""The state machine of a task: every event in every state."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_proto import tasks
from nvcf_proto.ids import new_id
from nvcf_proto.models import (
    Instance,
    InstanceState,
    ProcessSource,
    RetryOn,
    RetryPolicy,
    Task,
    TaskStatus,
)
from nvcf_proto.models.specifications import DeploymentSpecification
from nvcf_proto.models.tasks import (
    LONGEST_METADATA,
    MOST_EVENTS,
    MOST_RESULTS,
    MOST_RESULTS_BYTES,
    TaskResult,
    TaskResults,
)
from nvcf_proto.task_policies import FENCE_SECONDS, MOST_PREEMPTIONS

ACTIVE = (TaskStatus.LAUNCHED, TaskStatus.RUNNING)


def a_task(**fields: object) -> Task:
    source = ProcessSource(python="/usr/bin/python3", file="/tmp/task.py", working_directory="/tmp")
    made = Task(
        id=new_id(),
        nca_id="account",
        name="training",
        created_at=0.0,
        updated_at=0.0,
        specification=DeploymentSpecification(),
        process=source,
    )
    return made.replace(**fields)


def an_instance(task: Task, state: InstanceState, **fields: object) -> Instance:
    made = Instance(
        id=f"0-sr-{task.request_id}-task",
        function_id=task.id,
        version_id=task.id,
        cluster_id="c",
        state=state,
        updated_at=0.0,
        created_at=0.0,
        request_id=task.request_id,
        is_task=True,
    )
    return made.replace(**fields)


@dataclass
class Life:
    """A task under arbitrary events, and what must hold after each."""

    task: Task
    now: float = 0.0
    orders: int = 0

    def apply(self, event: str, seconds: float, number: int) -> None:
        before, self.now = self.task, self.now + seconds
        self.task = self._after(event, number)
        after = self.task
        if before.status.is_over:
            assert after is before
        elif after.status is not before.status:
            assert tasks.may_follow(before.status, after.status)
            # A failure, and that it is queued again.
            assert 1 <= after.event_count - before.event_count <= 2
            assert after.events[-1].id not in {each.id for each in after.events[:-1]}
        if after.status is TaskStatus.QUEUED:
            assert after.stopping is None
            if before.status is TaskStatus.RUNNING:
                assert before.stopping is not None or event in ("FAILED", "COMPLETED")
        assert after.retries <= (0 if after.retry is None else after.retry.limit)
        assert after.preemptions <= MOST_PREEMPTIONS
        assert (after.percent_complete or 0) >= (before.percent_complete or 0)
        assert bool(after.request_id) == (after.cluster_id is not None)
        if after.status in ACTIVE:
            assert after.request_id
        if after.status is TaskStatus.QUEUED:
            assert not after.request_id
        assert (after.ended_at is not None) == after.status.is_over
        assert len(after.events) <= MOST_EVENTS
        assert Task.from_json(after.to_json()) == after

    def _after(self, event: str, number: int) -> Task:
        task, now = self.task, self.now
        match event:
            case "launch":
                self.orders += 1
                return tasks.launched(task, f"order-{self.orders}", "c", "cluster", now)
            case "heartbeat":
                return tasks.heard(task, now, number)
            case "running":
                return tasks.running(task, now)
            case "cancel":
                return tasks.ended(task, TaskStatus.CANCELED, "asked for", now)
            case "time":
                return tasks.after_time(task, an_instance(task, InstanceState.PENDING), now)
            case "preempt":
                return tasks.preempted(task, "function f needs its place", now)
            case "fail":
                return tasks.failed(task, list(RetryOn)[number % 2], "it failed", now, exits=number % 3 == 0)
            case "stale":
                other = task.replace(request_id="order-of-before")
                return tasks.after_instance(task, an_instance(other, InstanceState.FAILED), now)
            case _:
                state = InstanceState(event)
                taken_up = None if number % 2 else now
                code = None if number % 7 == 0 else number % 3
                reported = an_instance(task, state, acknowledged_at=taken_up, exit_code=code)
                return tasks.after_instance(task, reported, now)


EVENTS = (
    "launch",
    "heartbeat",
    "running",
    "cancel",
    "time",
    "preempt",
    "fail",
    "stale",
    *(each.value for each in InstanceState),
)

POLICIES = ((RetryOn.INFRASTRUCTURE,), (RetryOn.FAILURE,), tuple(RetryOn))


@given(
    st.lists(
        st.tuples(st.sampled_from(EVENTS), st.floats(0.0, 600.0), st.integers(1, 100)),
        max_size=30,
    ),
    st.booleans(),
    st.none() | st.builds(RetryPolicy, limit=st.integers(1, 3), on=st.sampled_from(POLICIES)),
)
def test_no_order_of_events_breaks_a_task(
    events: list[tuple[str, float, int]], preemptible: bool, retry: RetryPolicy | None
) -> None:
    limits = {"max_runtime_duration": "PT1M", "max_queued_duration": "PT20M"}
    life = Life(a_task(**limits, preemptible=preemptible, retry=retry))
    for event, seconds, number in events:
        life.apply(event, seconds, number)


def test_every_status_is_reached() -> None:
    queued = a_task(max_runtime_duration="PT1M", max_queued_duration="PT10M")
    launched = tasks.launched(queued, "order", "c", "cluster", 1.0)
    running = tasks.running(launched, 2.0)
    overdue = 2.0 + 60.0 + tasks.RUNTIME_SLACK_SECONDS + 1.0
    reached = {
        each.status
        for each in (
            queued,
            launched,
            running,
            tasks.after_instance(running, an_instance(running, InstanceState.COMPLETED, exit_code=0), 3.0),
            tasks.after_instance(running, an_instance(running, InstanceState.FAILED, exit_code=1), 3.0),
            tasks.ended(running, TaskStatus.CANCELED, "", 3.0),
            tasks.after_time(queued, None, 601.0),
            tasks.after_time(running.replace(last_heartbeat_at=overdue), None, overdue),
        )
    }
    assert reached == set(TaskStatus)


@pytest.mark.parametrize("status", ACTIVE)
def test_an_order_that_was_never_taken_up_is_placed_again_and_no_other(status: TaskStatus) -> None:
    task = tasks.launched(a_task(), "order", "c", "cluster", 1.0)
    task = tasks.running(task, 1.0) if status is TaskStatus.RUNNING else task
    never = tasks.after_instance(task, an_instance(task, InstanceState.FAILED, reason="no answer"), 2.0)
    taken = an_instance(task, InstanceState.FAILED, acknowledged_at=1.0, reason="the node is gone")
    assert never.status is (TaskStatus.QUEUED if status is TaskStatus.LAUNCHED else TaskStatus.ERRORED)
    assert never.not_before > 2.0 or status is TaskStatus.RUNNING
    after = tasks.after_instance(task, taken, 2.0)
    assert (after.status, after.error) == (TaskStatus.ERRORED, "the node is gone")


def test_a_failure_is_explained_once_by_the_end_of_the_output() -> None:
    task = tasks.running(tasks.launched(a_task(), "order", "c", "cluster", 0.0), 0.0)
    failed = tasks.ended(task, TaskStatus.ERRORED, "exit code 9", 1.0)
    report = an_instance(task, InstanceState.FAILED, reason="crash: exit code 9\nno data", exit_code=9)
    once = tasks.explained(failed, report)
    assert (once.status, once.error) == (TaskStatus.ERRORED, "exit code 9\nno data")
    assert tasks.explained(once, report) is once
    assert tasks.explained(task, report) is task


def test_silence_ends_a_task_after_four_minutes_that_were_listened_to() -> None:
    task = tasks.running(tasks.launched(a_task(), "order", "c", "cluster", 0.0), 0.0)
    heard = tasks.heard(task, 100.0)
    assert tasks.after_time(heard, None, 339.0) is heard
    assert tasks.after_time(heard, None, 1000.0, listened=200.0) is heard
    silent = tasks.after_time(heard, None, 341.0)
    assert (silent.status, silent.error) == (TaskStatus.ERRORED, "its worker was silent for 241 s")


def test_a_worker_is_gone_when_its_grace_period_is_over() -> None:
    task = tasks.running(tasks.launched(a_task(), "order", "c", "cluster", 0.0), 0.0)
    assert not tasks.is_gone(task, 1e9)
    over = tasks.ended(task, TaskStatus.CANCELED, "", 10.0)
    last = 10.0 + over.grace + tasks.EXIT_SECONDS
    assert (tasks.is_gone(over, last), tasks.is_gone(over, last + 1.0)) == (False, True)


def test_a_process_gets_time_to_exit_but_not_one_that_was_cancelled() -> None:
    task = tasks.running(tasks.launched(a_task(), "order", "c", "cluster", 0.0), 0.0)
    done = tasks.ended(task, TaskStatus.COMPLETED, "", 10.0)
    assert not tasks.must_end(task, 10.0)
    assert not tasks.must_end(done, 11.0)
    assert tasks.must_end(done, 10.0 + tasks.EXIT_SECONDS + 1.0)
    assert tasks.must_end(tasks.ended(task, TaskStatus.CANCELED, "", 10.0), 10.0)


def test_results_are_bounded_and_the_oldest_go() -> None:
    found = TaskResults(new_id(), "account")
    for number in range(MOST_RESULTS + 5):
        for _ in range(2):
            found = found.adding(TaskResult(new_id(), float(number), f"epoch-{number}", "{}"))
    assert [each.name for each in found.results] == [f"epoch-{n}" for n in range(5, MOST_RESULTS + 5)]


@given(st.lists(st.text(max_size=LONGEST_METADATA), max_size=3), st.integers(1, MOST_RESULTS))
def test_the_record_of_results_stays_below_its_bound(texts: list[str], times: int) -> None:
    found = TaskResults(new_id(), "account")
    worst = "\x01" * LONGEST_METADATA
    for number, metadata in enumerate([*texts, *[worst] * times]):
        found = found.adding(TaskResult(new_id(), 0.0, f"epoch-{number}", metadata))
        assert found.results[-1].metadata == metadata
        assert len(found.to_json()) < MOST_RESULTS_BYTES + 1024


def running_task(now: float = 0.0, **fields: object) -> Task:
    return tasks.running(tasks.launched(a_task(**fields), "order", "c", "cluster", now), now)


def test_a_preempted_task_waits_again_when_nothing_of_its_run_is_left() -> None:
    stopping = tasks.preempted(running_task(preemptible=True), "function f needs its place", 10.0)
    assert (stopping.status, tasks.must_end(stopping, 10.0)) == (TaskStatus.RUNNING, True)
    assert tasks.preempted(stopping, "again", 11.0) is stopping
    ending = an_instance(stopping, InstanceState.TERMINATING, acknowledged_at=1.0, draining_since=10.0)
    assert tasks.after_instance(stopping, ending, 11.0) is stopping
    gone = ending.replace(state=InstanceState.COMPLETED, exit_code=143)
    queued = tasks.after_instance(stopping, gone, 12.0)
    assert (queued.status, queued.queued_at, queued.preemptions) == (TaskStatus.QUEUED, 12.0, 1)
    assert queued.previous is not None
    assert (queued.previous.instance_id, queued.previous.cluster_id) == (gone.id, "c")
    assert "function f needs its place" in queued.events[-1].message
    finished = tasks.after_instance(stopping, gone.replace(exit_code=0), 12.0)
    assert finished.status is TaskStatus.COMPLETED


def test_a_task_is_preempted_a_bounded_number_of_times_and_only_if_it_says_so() -> None:
    stubborn = running_task()
    assert tasks.preempted(stubborn, "x", 1.0) is stubborn
    often = running_task(preemptible=True, preemptions=MOST_PREEMPTIONS)
    assert tasks.preempted(often, "x", 1.0) is often


@pytest.mark.parametrize("cause", RetryOn)
def test_only_what_the_policy_names_is_tried_again_and_only_so_often(cause: RetryOn) -> None:
    never = tasks.failed(running_task(), cause, "gone", 1.0)
    assert never.status is TaskStatus.ERRORED
    for on in RetryOn:
        task = running_task(retry=RetryPolicy(limit=2, on=(on,)))
        after = tasks.failed(task, cause, "gone", 1.0)
        assert after.status is (TaskStatus.RUNNING if on is cause else TaskStatus.ERRORED)
        over = tasks.failed(task.replace(retries=2), cause, "gone", 1.0)
        assert (over.status, over.error) == (TaskStatus.ERRORED, "gone")


def test_the_own_exit_code_and_the_loss_of_a_node_are_different_failures() -> None:
    task = running_task(retry=RetryPolicy(limit=1))
    own = an_instance(task, InstanceState.FAILED, acknowledged_at=1.0, exit_code=9, reason="exit code 9")
    assert tasks.after_instance(task, own, 2.0).status is TaskStatus.ERRORED
    told = own.replace(exit_code=None, released_at=2.0, reason="the agent was restarted")
    again = tasks.after_instance(task, told, 2.0)
    assert (again.status, again.retries) == (TaskStatus.QUEUED, 1)
    words = [each.message for each in again.events[-2:]]
    assert "the agent was restarted" in words[0]
    assert "retry 1 of 1" in words[1]


def test_after_the_loss_of_an_agent_the_next_run_waits_until_the_workers_lease_is_over() -> None:
    task = tasks.heard(running_task(retry=RetryPolicy(limit=1)), 100.0)
    lost = an_instance(
        task, InstanceState.FAILED, acknowledged_at=1.0, category="lost", reason="lost: silent"
    )
    waiting = tasks.after_instance(task, lost, 110.0)
    assert (waiting.status, waiting.stopping is not None) == (TaskStatus.RUNNING, True)
    assert tasks.after_instance(waiting, lost, 100.0 + FENCE_SECONDS) is waiting
    assert tasks.after_instance(waiting, lost, 101.0 + FENCE_SECONDS).status is TaskStatus.QUEUED


def test_a_container_whose_agent_is_lost_is_not_run_again_for_nobody_can_end_it() -> None:
    task = tasks.heard(running_task(retry=RetryPolicy(limit=1)).replace(process=None), 100.0)
    lost = an_instance(
        task, InstanceState.FAILED, acknowledged_at=1.0, category="lost", reason="lost: silent"
    )
    waiting = tasks.after_instance(task, lost, 110.0)
    assert waiting.status is TaskStatus.RUNNING
    over = tasks.after_instance(waiting, lost, 101.0 + FENCE_SECONDS)
    assert (over.status, tasks.UNKNOWN_END in (over.error or "")) == (TaskStatus.ERRORED, True)
    told = tasks.after_instance(waiting, lost.replace(released_at=120.0), 120.0)
    assert told.status is TaskStatus.QUEUED
