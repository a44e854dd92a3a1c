"""Messages of the compute plane: what is understood, and that nothing in them gets out of hand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_proto.errors import ContractError, InvalidRecord
from nvcf_proto.icms.messages import (
    MOST_GPUS,
    CreationMessage,
    InstanceOrder,
    TerminationMessage,
    decode_environment,
    encode_environment,
)
from nvcf_proto.icms.names import Workload
from nvcf_proto.ids import new_id

VERSION = new_id()
CREATION: dict[str, Any] = {
    "requestId": new_id(), "ncaId": "account", "action": "RequestSpotInstances", "instanceCount": 1,
    "instanceTypeName": "NCP.GPU.H100_2x", "instanceTypeValue": "NCP.GPU.H100", "requestedGPUCount": 2,
    "functionDetails": {"functionId": new_id(), "functionVersionId": VERSION},
    "launchSpecification": {"environment": "", "gpuName": "H100"},
}  # fmt: skip
TERMINATION: dict[str, Any] = {
    "requestId": new_id(), "ncaId": "account", "action": "TerminateInstances", "instanceIds": ["0-sr-1"],
    "availabilityZone": "one",
}  # fmt: skip
ORDER: dict[str, Any] = {
    "requestId": new_id(), "functionVersionId": VERSION, "clusterId": "one", "gpuSpecificationId": "0-H100",
    "expiresAt": 1060.0,
}  # fmt: skip


def creation(**changes: Any) -> CreationMessage:
    return CreationMessage.from_json(json.dumps({**CREATION, **changes}).encode())


def termination(**changes: Any) -> TerminationMessage:
    return TerminationMessage.from_json(json.dumps({**TERMINATION, **changes}).encode())


def order(**changes: Any) -> InstanceOrder:
    return InstanceOrder.from_json(json.dumps({**ORDER, **changes}).encode())


def test_what_makes_sense_is_understood() -> None:
    message = creation()
    assert message.requested_gpu_count == 2
    assert message.subject("one") == "Create.NVCA.Function.one.H100.NCP|GPU|H100"
    assert termination().instance_ids == ("0-sr-1",)
    assert order().attempt == 0


@pytest.mark.parametrize("word", ["RequestSpotInstances", "RequestInstances", "RequestICMSInstances"])
def test_every_word_of_an_action_is_understood(word: str) -> None:
    assert creation(action=word).workload is Workload.FUNCTION
    task = creation(action=f"{word}ForTask", functionDetails=None, taskDetails={"taskId": "t"})
    assert task.workload is Workload.TASK


@pytest.mark.parametrize(
    "changes",
    [
        {"action": "Explode"},
        {"functionDetails": None},
        {"instanceCount": 0},
        {"instanceCount": 1001},
        {"requestedGPUCount": MOST_GPUS + 1},
        {"requestedGPUCount": -1},
        {"expiresAt": 10**400},
        {"expiresAt": float("inf")},
        {"issuedAt": float("nan")},
        {"instanceTypeName": "x" * 5000},
        {"requestId": "../../etc"},
        {"requestId": ""},
        {"launchSpecification": {"environment": "x" * (512 * 1024 + 1)}},
        {"launchSpecification": {"gpuName": 7}},
    ],
)
def test_a_creation_message_that_asks_for_too_much_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecord):
        creation(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"action": "RequestSpotInstances"},
        {"requestId": "a/b"},
        {"instanceIds": ["../../etc"]},
        {"instanceIds": [7]},
        {"instanceIds": ["0-sr-1"] * 1001},
    ],
)
def test_a_termination_message_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecord):
        termination(**changes)


@pytest.mark.parametrize("changes", [{"requestId": "a.b"}, {"attempt": -1}, {"expiresAt": "soon"}])
def test_an_order_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecord):
        order(**changes)


# Other ends of lines than these are part of a value: the name of a function may hold them.
plain = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=20)


@given(st.dictionaries(plain.filter(lambda name: bool(name) and "=" not in name), plain, max_size=5))
def test_an_environment_survives_its_encoding(variables: dict[str, str]) -> None:
    assert decode_environment(encode_environment(variables)) == variables


@pytest.mark.parametrize(
    ("name", "value"), [("A", "x\nB=1"), ("A=B", "1"), ("", "1"), ("A\r", "1"), ("A", "\0")]
)
def test_a_variable_cannot_become_two(name: str, value: str) -> None:
    with pytest.raises(InvalidRecord):
        encode_environment({name: value})


@pytest.mark.parametrize("mark", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_a_value_cannot_smuggle_in_another_variable(mark: str) -> None:
    variables = {"NVCF_WORKER_TOKEN": "true", "FUNCTION_NAME": f"f{mark}NVCF_WORKER_TOKEN=forged"}
    assert decode_environment(encode_environment(variables)) == variables


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted({*CREATION, *TERMINATION, *ORDER, "reason", "traceParent"})), anything)
def test_nothing_in_a_field_is_worse_than_a_refusal(name: str, value: object) -> None:
    for build in (creation, termination, order):
        try:
            message = build(**{name: value})
        except ContractError:
            continue
        assert message.request_id
