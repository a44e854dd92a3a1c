"""The state machine of a task: every event in every state."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_proto import tasks
from nvcf_proto.ids import new_id
from nvcf_proto.models import Instance, InstanceState, ProcessSource, Task, TaskStatus
from nvcf_proto.models.specifications import DeploymentSpecification
from nvcf_proto.models.tasks import (
    LONGEST_METADATA,
    MOST_EVENTS,
    MOST_RESULTS,
    MOST_RESULTS_BYTES,
    TaskResult,
    TaskResults,
)

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
            assert after.event_count == before.event_count + 1
            assert after.events[-1].id not in {each.id for each in after.events[:-1]}
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
            case "stale":
                other = task.replace(request_id="order-of-before")
                return tasks.after_instance(task, an_instance(other, InstanceState.FAILED), now)
            case _:
                state = InstanceState(event)
                taken_up = None if number % 2 else now
                reported = an_instance(task, state, acknowledged_at=taken_up, exit_code=number % 3)
                return tasks.after_instance(task, reported, now)


EVENTS = (
    "launch",
    "heartbeat",
    "running",
    "cancel",
    "time",
    "stale",
    *(each.value for each in InstanceState),
)


@given(
    st.lists(
        st.tuples(st.sampled_from(EVENTS), st.floats(0.0, 600.0), st.integers(1, 100)),
        max_size=30,
    )
)
def test_no_order_of_events_breaks_a_task(events: list[tuple[str, float, int]]) -> None:
    life = Life(a_task(max_runtime_duration="PT1M", max_queued_duration="PT20M"))
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
