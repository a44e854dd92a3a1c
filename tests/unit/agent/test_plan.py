"""Reconcile decisions: tables for the rules, properties for convergence."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_agent import lifecycle
from nvcf_agent.desired import Slot, Wanted, wanted_versions
from nvcf_agent.lifecycle import Lifecycle
from nvcf_agent.plan import Create, Forget, GiveUp, Start, Terminate, next_retry, plan
from nvcf_proto.models import (
    Deployment,
    DeploymentSpecification,
    FunctionVersion,
    Instance,
    InstanceState,
    ProcessSource,
)

NOW = 1000.0
SOURCE = ProcessSource(python="/bin/python", file="/f.py", working_directory="/")
ONE = Slot(concurrency=1)
FOUR = Slot(concurrency=4)
_numbers = itertools.count()


def version(name: str) -> FunctionVersion:
    return FunctionVersion(id=name, function_id="f", name="hello", nca_id="a", created_at=0.0, process=SOURCE)


def wanted(*slots: Slot, name: str = "v") -> dict[str, Wanted]:
    return {name: Wanted(version(name), SOURCE, slots)}


def instance(
    state: InstanceState, slot: Slot | None = ONE, *, name: str = "v", **changes: object
) -> Lifecycle:
    number = next(_numbers)
    record = Instance(f"i{number}", "f", name, "local", state, updated_at=0.0, created_at=float(number))
    runs = state in (InstanceState.RUNNING, InstanceState.STARTING, InstanceState.TERMINATING)
    return replace(Lifecycle(record, slot=slot, has_process=runs, started_at=NOW), **changes)  # type: ignore[arg-type]


def test_missing_instances_are_created() -> None:
    assert plan(wanted(ONE, ONE), [], NOW) == [Create("v", ONE), Create("v", ONE)]
    assert plan(wanted(ONE, FOUR), [instance(InstanceState.RUNNING)], NOW) == [Create("v", FOUR)]


def test_what_runs_is_left_alone() -> None:
    for state in (InstanceState.RUNNING, InstanceState.STARTING):
        assert plan(wanted(ONE), [instance(state)], NOW) == []


@pytest.mark.parametrize("state", [InstanceState.PENDING, InstanceState.FAILED])
def test_without_a_process_it_is_started_when_its_delay_is_over(state: InstanceState) -> None:
    due = instance(state, retry_at=NOW)
    assert plan(wanted(ONE), [due], NOW) == [Start(due.id, ONE)]
    assert plan(wanted(ONE), [replace(due, retry_at=NOW + 1)], NOW) == []
    assert next_retry([replace(due, retry_at=NOW + 1)], NOW) == 1


def test_an_adopted_instance_takes_any_slot() -> None:
    adopted = instance(InstanceState.PENDING, None)
    assert plan(wanted(FOUR), [adopted], NOW) == [Start(adopted.id, FOUR)]


def test_the_worst_go_first_when_fewer_are_wanted() -> None:
    running, starting = instance(InstanceState.RUNNING), instance(InstanceState.STARTING)
    failed = instance(InstanceState.FAILED, retry_at=NOW + 10)
    actions = plan(wanted(ONE), [failed, starting, running], NOW)
    assert {each.instance_id for each in actions if isinstance(each, Terminate)} == {starting.id, failed.id}


def test_an_undeployed_version_ends() -> None:
    running = instance(InstanceState.RUNNING)
    (action,) = plan({}, [running], NOW)
    assert isinstance(action, Terminate)
    assert "not deployed" in action.reason
    assert plan(wanted(), [running], NOW) == [action]


def test_what_has_ended_is_forgotten_only_without_a_process() -> None:
    leaving = instance(InstanceState.TERMINATING)
    assert plan({}, [leaving], NOW) == []
    assert plan({}, [replace(leaving, has_process=False)], NOW) == [Forget(leaving.id)]


def test_new_settings_replace_step_by_step() -> None:
    old = instance(InstanceState.RUNNING, ONE)
    assert plan(wanted(FOUR), [old], NOW) == [Create("v", FOUR)]
    new = instance(InstanceState.STARTING, FOUR)
    assert plan(wanted(FOUR), [old, new], NOW) == []
    new = lifecycle.ready(new, wall=0.0)
    (action,) = plan(wanted(FOUR), [old, new], NOW)
    assert action == Terminate(old.id, "replaced by an instance with other settings")


def test_an_instance_with_old_settings_that_does_not_serve_is_not_kept() -> None:
    waiting = instance(InstanceState.FAILED, ONE, retry_at=NOW)
    assert plan(wanted(FOUR), [waiting], NOW) == [Start(waiting.id, FOUR)]


def test_one_that_never_gets_ready_is_given_up_once() -> None:
    slow = instance(InstanceState.STARTING, started_at=NOW - 61)
    assert plan(wanted(ONE), [slow], NOW, ready_timeout=60) == [GiveUp(slow.id, "not ready after 60 s")]
    given_up = lifecycle.given_up(slow, "not ready after 60 s")
    assert plan(wanted(ONE), [given_up], NOW, ready_timeout=60) == []
    failed = lifecycle.ended(given_up, "killed by SIGTERM", now=NOW, wall=0.0)
    assert failed.record.reason == "not ready after 60 s\nkilled by SIGTERM"


states = st.sampled_from(list(InstanceState))
slots = st.sampled_from([ONE, FOUR])
populations = st.lists(
    st.builds(
        lambda state, slot, name, runs: instance(state, slot, name=name, has_process=runs),
        states,
        st.one_of(st.none(), slots),
        st.sampled_from(["v", "w"]),
        st.booleans(),
    ),
    max_size=8,
).map(
    # What a backend can be in: only instances that were started have a process.
    lambda them: [
        replace(
            each, has_process=each.state is InstanceState.RUNNING or (each.has_process and each.is_ending)
        )
        if each.state is not InstanceState.STARTING
        else replace(each, has_process=True, slot=each.slot or ONE)
        for each in them
    ]
)


def perform(actual: list[Lifecycle], actions: list[object], now: float) -> list[Lifecycle]:
    """A backend that does everything at once and never fails."""
    them = {each.id: each for each in actual}
    for action in actions:
        match action:
            case Create(version_id, slot):
                made = instance(InstanceState.PENDING, slot, name=version_id)
                them[made.id] = made
            case Start(instance_id, slot):
                state = lifecycle.starting(them[instance_id], slot, now=now, wall=now)
                state = lifecycle.has_process(state, pid=1, health_port=1, log_path="", wall=now)
                them[instance_id] = lifecycle.ready(state, now)
            case Terminate(instance_id, reason):
                them[instance_id] = lifecycle.ended(
                    lifecycle.terminating(them[instance_id], reason, now), "exit code 0", now=now, wall=now
                )
            case Forget(instance_id):
                del them[instance_id]
    # What was starting or leaving gets on by itself.
    return [
        replace(each, has_process=False) if each.is_ending else lifecycle.ready(each, now)
        for each in them.values()
    ]


@given(populations, st.lists(slots, max_size=4), st.lists(slots, max_size=4))
def test_any_state_converges_to_what_is_wanted(
    actual: list[Lifecycle], of_v: list[Slot], of_w: list[Slot]
) -> None:
    desired = {**wanted(*of_v), **wanted(*of_w, name="w")}
    now = NOW
    for _ in range(10):
        actions = plan(desired, actual, now)
        assert actions == plan(desired, actual, now)
        actual = perform(actual, list(actions), now)
        now += 60
    assert plan(desired, actual, now) == []
    for name, expected in (("v", of_v), ("w", of_w)):
        running = [each for each in actual if each.record.version_id == name]
        assert all(each.state is InstanceState.RUNNING for each in running)
        assert Counter(each.slot for each in running) == Counter(expected)


@given(populations, st.lists(slots, max_size=4))
def test_one_round_never_exceeds_what_is_wanted_and_touches_each_instance_once(
    actual: list[Lifecycle], of_v: list[Slot]
) -> None:
    actions = plan(wanted(*of_v), actual, NOW)
    touched = [each.instance_id for each in actions if not isinstance(each, Create)]
    assert len(touched) == len(set(touched))
    starts = sum(isinstance(each, Create | Start) for each in actions)
    assert starts <= len(of_v)


def test_a_deployment_is_for_the_clusters_it_names() -> None:
    specifications = (
        DeploymentSpecification(min_instances=2),
        DeploymentSpecification(min_instances=1, max_request_concurrency=4, clusters=("here", "there")),
        DeploymentSpecification(min_instances=5, clusters=("elsewhere",)),
    )
    deployment = Deployment("v", "f", 0.0, specifications)
    found = wanted_versions([deployment], {"v": version("v")}, "here")
    assert found["v"].slots == (ONE, ONE, FOUR)


def test_unknown_versions_and_containers_are_not_for_this_agent() -> None:
    deployment = Deployment("v", "f", 0.0, (DeploymentSpecification(),))
    assert wanted_versions([deployment], {}, "here") == {}
    container = replace(version("v"), process=None, container_image="image")
    assert wanted_versions([deployment], {"v": container}, "here") == {}
