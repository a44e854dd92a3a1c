"""The status of a version, by a table and for every set of instances."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_proto.models import Deployment, DeploymentSpecification, Instance, InstanceState, VersionStatus
from nvcf_proto.models.status import version_status

V = "6f1d0a52-0d6c-4a0e-9c3b-2f7f8f2b1c02"
NOW = 100.0

PENDING, STARTING, RUNNING = InstanceState.PENDING, InstanceState.STARTING, InstanceState.RUNNING
TERMINATING, COMPLETED, FAILED = InstanceState.TERMINATING, InstanceState.COMPLETED, InstanceState.FAILED
SERVED = {"ready_at": NOW + 5}
DRAINING = {**SERVED, "draining_since": NOW + 9}
EARLIER = {"created_at": NOW - 1}


def deployment(*least: int) -> Deployment:
    specifications = tuple(DeploymentSpecification(min_instances=count) for count in least)
    return Deployment(V, V, NOW, specifications)


def instance(state: InstanceState, number: int = 0, **fields: Any) -> Instance:
    created = fields.pop("created_at", NOW)
    return Instance(f"{V[:-2]}{number:02d}", V, V, "c", state, NOW, created, **fields)


@pytest.mark.parametrize(
    ("least", "states", "status"),
    [
        (1, [], "DEPLOYING"),
        (1, [(PENDING, {})], "DEPLOYING"),
        (1, [(STARTING, {})], "DEPLOYING"),
        (1, [(FAILED, {}), (STARTING, {})], "DEPLOYING"),
        (1, [(FAILED, {})], "ERROR"),
        (1, [(FAILED, SERVED)], "ERROR"),
        (1, [(FAILED, EARLIER)], "DEPLOYING"),
        (1, [(FAILED, {}), (RUNNING, SERVED)], "ACTIVE"),
        (1, [(COMPLETED, SERVED)], "DEPLOYING"),
        (1, [(COMPLETED, SERVED), (FAILED, {})], "ERROR"),
        # What served is gone, and its replacement starts.
        (1, [(FAILED, SERVED), (PENDING, {})], "DEGRADED"),
        (1, [(STARTING, {"restarts": 1})], "DEGRADED"),
        # Fewer serve than there should be.
        (3, [(RUNNING, SERVED), (STARTING, {}), (STARTING, {})], "DEPLOYING"),
        (3, [(RUNNING, SERVED), (STARTING, {}), (FAILED, {})], "DEGRADING"),
        (3, [(RUNNING, SERVED), (RUNNING, SERVED), (STARTING, {"restarts": 1})], "DEGRADING"),
        (3, [(RUNNING, SERVED), (RUNNING, SERVED)], "DEGRADING"),
        (2, [(RUNNING, SERVED), (RUNNING, SERVED), (FAILED, SERVED)], "ACTIVE"),
        # What drains finishes its requests and counts no more.
        (1, [(RUNNING, DRAINING)], "DEGRADING"),
        (1, [(TERMINATING, DRAINING), (PENDING, {})], "DEGRADING"),
        (1, [(RUNNING, DRAINING), (RUNNING, SERVED)], "ACTIVE"),
        (2, [(RUNNING, DRAINING), (RUNNING, SERVED)], "DEGRADING"),
        (1, [(TERMINATING, {**DRAINING, **EARLIER}), (STARTING, {})], "DEPLOYING"),
        # Instances that run on after an update of their deployment.
        (1, [(RUNNING, {**SERVED, **EARLIER})], "ACTIVE"),
        # From zero.
        (0, [], "ACTIVE"),
        (0, [(COMPLETED, SERVED)], "ACTIVE"),
        (0, [(RUNNING, DRAINING)], "ACTIVE"),
        (0, [(STARTING, {})], "DEPLOYING"),
        (0, [(RUNNING, SERVED)], "ACTIVE"),
        (0, [(FAILED, {})], "ERROR"),
    ],
)
def test_status(least: int, states: list[tuple[InstanceState, dict[str, Any]]], status: str) -> None:
    instances = [instance(state, number, **fields) for number, (state, fields) in enumerate(states)]
    assert version_status(deployment(least), instances).value == status
    assert version_status(None, instances) is VersionStatus.INACTIVE


def test_the_least_is_that_of_all_specifications_together() -> None:
    running = [instance(RUNNING, number, **SERVED) for number in range(3)]
    assert version_status(deployment(1, 2), running) is VersionStatus.ACTIVE
    assert version_status(deployment(2, 2), running) is VersionStatus.DEGRADING


instances = st.lists(
    st.builds(
        instance,
        st.sampled_from(list(InstanceState)),
        st.integers(0, 99),
        ready_at=st.none() | st.just(NOW + 1),
        draining_since=st.none() | st.just(NOW + 2),
        restarts=st.integers(0, 1),
    ),
    max_size=6,
)


@given(st.integers(0, 4), instances)
def test_active_is_as_many_as_wanted_and_serving_is_said(least: int, found: list[Instance]) -> None:
    status = version_status(deployment(least), found)
    ready = sum(each.state is RUNNING and each.draining_since is None for each in found)
    if ready:
        assert (status is VersionStatus.ACTIVE) == (ready >= least)
        assert status not in (VersionStatus.ERROR, VersionStatus.DEGRADED)
    if status is VersionStatus.DEGRADED:
        assert any(each.ready_at or each.restarts for each in found)
