"""Creation and termination messages: what is understood, and that nothing in them gets out of hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_proto.compute import MOST_CONCURRENT, MOST_GPUS, MOST_INSTANCES, CreationMessage, TerminationMessage
from nvcf_proto.errors import ContractError, InvalidRecord
from nvcf_proto.ids import new_id

CREATION: dict[str, Any] = {
    "messageId": "m", "clusterId": "one", "functionId": new_id(), "functionVersionId": new_id(),
    "functionName": "f", "ncaId": "account", "gpuSpecificationId": "0-SIM", "gpu": "SIM",
    "instanceType": "process", "gpusPerInstance": 1, "maxRequestConcurrency": 1, "instanceIds": [new_id()],
    "issuedAt": 1000.0, "expiresAt": 1060.0,
}  # fmt: skip
TERMINATION: dict[str, Any] = {
    "messageId": "m", "clusterId": "one", "functionVersionId": new_id(), "instanceIds": [new_id()],
    "graceSeconds": 30, "issuedAt": 1000.0,
}  # fmt: skip


def creation(**changes: Any) -> CreationMessage:
    return CreationMessage.from_json(json.dumps({**CREATION, **changes}).encode())


def termination(**changes: Any) -> TerminationMessage:
    return TerminationMessage.from_json(json.dumps({**TERMINATION, **changes}).encode())


def test_what_makes_sense_is_understood() -> None:
    assert creation(instanceIds=[new_id() for _ in range(MOST_INSTANCES)]).gpus_per_instance == 1
    assert termination(graceSeconds=3600).grace_seconds == 3600.0


@pytest.mark.parametrize(
    "changes",
    [
        {"instanceIds": [new_id()] * (MOST_INSTANCES + 1)},
        {"gpusPerInstance": MOST_GPUS + 1},
        {"gpusPerInstance": -1},
        {"maxRequestConcurrency": MOST_CONCURRENT + 1},
        {"maxRequestConcurrency": 0},
        {"expiresAt": 1e12},
        {"expiresAt": 10**400},
        {"expiresAt": float("inf")},
        {"issuedAt": float("nan")},
        {"functionName": "x" * 5000},
        {"functionVersionId": "../../etc"},
        {"instanceIds": [7]},
    ],
)
def test_a_creation_message_that_asks_for_too_much_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecord):
        creation(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"graceSeconds": -1},
        {"graceSeconds": float("inf")},
        {"graceSeconds": float("nan")},
        {"graceSeconds": 10**9},
        {"graceSeconds": 10**400},
        {"instanceIds": [new_id()] * (MOST_INSTANCES + 1)},
    ],
)
def test_a_termination_message_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecord):
        termination(**changes)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted({*CREATION, "process", "containerImage", "reason", "traceparent"})), anything)
def test_nothing_in_a_field_is_worse_than_a_refusal(name: str, value: object) -> None:
    for build in (creation, termination):
        try:
            message = build(**{name: value})
        except ContractError:
            continue
        assert message.cluster_id
