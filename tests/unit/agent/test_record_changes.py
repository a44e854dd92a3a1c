"""Requests and records: who may write what."""

from dataclasses import replace

import pytest

from nvcf_agent.state import transitions
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.managed_instance import Category, ManagedInstance, instance_record
from nvcf_agent.state.record_changes import (
    Closed,
    Missing,
    MissingFor,
    Stray,
    Unchanged,
    Write,
    compare,
    strays,
)
from nvcf_proto.ids import new_id
from nvcf_proto.models import Instance, InstanceState
from tests.unit.agent.orders import CLUSTER, order


def accepted() -> ManagedInstance:
    return transitions.accepted(order(), Share(slots=1), 1.0)


def running() -> ManagedInstance:
    instance = transitions.creating(accepted(), wall=2.0)
    instance = transitions.launched(instance, pid=7, health_port=8, log_path="/log", now=2.0, wall=2.0)
    return transitions.ready(instance, 3.0)


def test_a_record_follows_its_request() -> None:
    pending = instance_record(accepted())
    instance = running()
    assert compare(instance, pending) == Write(instance_record(instance))
    assert compare(instance, instance_record(instance)) == Unchanged()


def test_a_first_record_is_made_and_a_lost_one_is_not_made_again() -> None:
    instance = running()
    assert compare(instance, None) == Write(instance_record(instance))
    assert compare(replace(instance, published=True), None) == Missing()
    over = transitions.rejected(instance, Category.CRASH, "x", 4.0)
    assert compare(replace(over, published=True), None) == Unchanged()


def test_the_autoscalers_own_pending_record_is_left_as_it_is() -> None:
    instance = accepted()
    stored = instance_record(instance).replace(updated_at=0.2)
    assert compare(instance, stored) == Unchanged()


@pytest.mark.parametrize("state", [InstanceState.FAILED, InstanceState.COMPLETED])
def test_a_record_that_somebody_closed_ends_the_instance(state: InstanceState) -> None:
    instance = running()
    stored = instance_record(instance).replace(state=state, reason="silent for 60 s")
    assert compare(instance, stored) == Closed("its record was closed: silent for 60 s")
    over = transitions.rejected(instance, Category.CRASH, "x", 4.0)
    assert compare(over, stored) == Unchanged()


def test_what_the_autoscaler_announced_is_not_taken_back() -> None:
    instance = running()
    announced = instance_record(instance).replace(state=InstanceState.TERMINATING, draining_since=4.0)
    assert compare(instance, announced) == Unchanged()
    leaving = transitions.terminating(instance, "x", 1.0, 5.0)
    assert compare(leaving, announced) == Write(instance_record(leaving))
    chosen = instance_record(instance).replace(draining_since=4.0, reason="idle")
    assert compare(instance, chosen) == Unchanged()
    marked = instance_record(accepted()).replace(draining_since=4.0)
    give_up_reason = compare(instance, marked)
    assert isinstance(give_up_reason, Write)
    assert give_up_reason.record.draining_since == 4.0


def record(state: InstanceState, *, cluster: str = CLUSTER, updated_at: float = 0.0) -> Instance:
    return Instance(new_id(), new_id(), new_id(), cluster, state, updated_at=updated_at, created_at=0.0)


def found(one: Instance, *, known: bool = False, ended: bool = False, wall: float = 10.0) -> list[Stray]:
    return strays(
        [one],
        cluster=CLUSTER,
        known={one.id} if known else set(),
        ended={one.id} if ended else set(),
        wall=wall,
        keep_finished=300,
    )


def test_records_without_a_request() -> None:
    for state in InstanceState:
        assert found(record(state), known=True) == []
        assert found(record(state, cluster="there"), ended=True, wall=1e9) == []
    assert found(record(InstanceState.PENDING), wall=1e9) == []
    (over,) = found(record(InstanceState.PENDING), ended=True)
    assert over.record is not None
    assert (over.record.state, over.record.reason) == (
        InstanceState.COMPLETED,
        "ended before it was created",
    )
    for state in (InstanceState.STARTING, InstanceState.RUNNING, InstanceState.TERMINATING):
        (lost,) = found(record(state))
        assert lost.record is not None
        assert lost.record.state is InstanceState.FAILED
        assert lost.record.reason == "lost: the agent of cluster here knows nothing of it"
        assert lost.record.category == "lost"
        # What was made of it is stable.
        assert found(lost.record, wall=300) == []
    finished = record(InstanceState.FAILED)
    assert found(finished, wall=300) == []
    assert found(finished, wall=301) == [Stray(finished.key, None)]


def test_only_what_is_missing_for_long_and_without_a_break_is_gone() -> None:
    absences = MissingFor(5.0)
    assert not absences.exceeded("a", True, 0.0)
    assert not absences.exceeded("a", True, 4.9)
    assert absences.exceeded("a", True, 5.0)
    assert not absences.exceeded("a", False, 5.1)
    assert not absences.exceeded("a", True, 5.2)
    assert not absences.exceeded("b", True, 100.0)
