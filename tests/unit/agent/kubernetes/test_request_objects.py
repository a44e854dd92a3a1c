"""Instances as ICMSRequests, and back."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvcf_agent.kubernetes import request_objects as objects
from nvcf_agent.kubernetes.client.kinds import ICMS_REQUEST, SECRET, Kind
from nvcf_agent.state import transitions
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.managed_instance import Category, ManagedInstance
from nvcf_agent.state.persisted_state import StoredInstance
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.messages import Action, CreationMessage, TaskDetails, instance_id_of
from tests.unit.agent.orders import CLUSTER, order
from tests.unit.agent.test_persisted_state import anything

NAMESPACE = "nvcf-backend"

texts = st.none() | st.text(max_size=20)
ids = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,99}\Z")
orders = st.builds(
    order,
    ids,
    gpu=st.sampled_from(["H100", "CPU", ""]),
    variables=st.dictionaries(st.from_regex(r"\A[A-Z_]{1,9}\Z"), st.from_regex(r"\A[ -~]{0,9}\Z")),
    cluster_group=texts,
    message_batch_id=texts,
    trace_state=texts,
    reason=texts,
    expires_at=st.none() | st.floats(0, 1e10),
    configuration=texts,
    models=texts,
    resources=texts,
    helm_chart=texts,
    regions=st.lists(st.text(max_size=5), max_size=2).map(tuple),
)


def sent(kind: Kind, value: dict[str, Any]) -> dict[str, Any]:
    """What the API server gives back of an object."""
    copy: dict[str, Any] = json.loads(json.dumps(value))
    copy["metadata"]["uid"] = "some-uid"
    return copy | {"apiVersion": kind.api_version, "kind": kind.kind}


def written(message: CreationMessage, *instances: ManagedInstance) -> tuple[dict[str, Any], dict[str, Any]]:
    request = sent(ICMS_REQUEST, objects.request_object(message, NAMESPACE))
    secret = sent(SECRET, objects.message_secret(message, request))
    stored = {each.id: StoredInstance.of(each, CLUSTER) for each in instances}
    request["status"] = json.loads(json.dumps(objects.request_state(stored, 5.0)))
    return request, secret


@given(orders, anything)
def test_what_is_written_is_read_back(message: CreationMessage, instance: ManagedInstance) -> None:
    stored = StoredInstance.of(instance, CLUSTER).replace(order=message)
    stored = StoredInstance.of(stored.restored(), CLUSTER)
    request, secret = written(message, stored.restored())
    assert objects.stored_instances(request, secret) == [stored]
    assert objects.is_complete(request, {secret["metadata"]["name"]})


@given(orders)
def test_names_and_labels_are_valid_whatever_the_message_says(message: CreationMessage) -> None:
    metadata = objects.request_object(message, NAMESPACE)["metadata"]
    assert len(metadata["name"]) <= 63
    assert metadata["name"].replace("-", "").isalnum()
    assert metadata["name"] == metadata["name"].lower()
    assert all(len(value) <= 63 for value in metadata["labels"].values())


def test_a_request_has_its_name_in_nvidias_form() -> None:
    plain = "8a4ff7d6-53b5-4c6b-8f2a-0d6a0f1f2c11"
    for request_id in (plain, f"sr-{plain}"):
        metadata = objects.request_object(order(request_id), NAMESPACE)["metadata"]
        assert metadata["name"] == f"sr-{plain}"
        assert metadata["finalizers"] == ["nvca.finalizers.nvidia.io"]
        assert metadata["labels"]["nca-id"] == "nca-account-nca"


def test_what_may_be_secret_is_only_in_the_secret() -> None:
    message = order("r", variables={"OWN": "hush"}, configuration="values", models="link", resources="more")
    request, secret = written(message, transitions.accepted(message, Share(), 1.0))
    assert set(secret["data"]) == {"environment", "configuration", "models", "resources"}
    launch = message.launch_specification
    for value in (launch.environment, "values", "link", "more"):
        assert value not in json.dumps(request)
    assert secret["metadata"]["ownerReferences"][0]["uid"] == request["metadata"]["uid"]


def test_a_tasks_launch_specification_has_its_own_member() -> None:
    message = order(
        "r", action=Action.CREATE_TASK.value, function_details=None, task_details=TaskDetails("t")
    )
    request, secret = written(message, transitions.accepted(message, Share(), 1.0))
    assert "taskLaunchSpecification" in request["spec"]["creationMsgInfo"]
    assert request["metadata"]["labels"]["nvca.nvcf.nvidia.io/task-id"] == "t"
    assert objects.stored_instances(request, secret)[0].order == message


def test_the_status_says_for_people_what_has_become_of_the_request() -> None:
    message = order("r")
    instance = transitions.acknowledged(transitions.accepted(message, Share(), 1.0))
    state = objects.request_state({instance.id: StoredInstance.of(instance, CLUSTER)}, 5.0)
    assert (state["phase"], state["requestStatus"]) == ("Pending", "RequestPending")
    assert state["instances"][instance.id]["status"] == "starting"
    failed = transitions.rejected(instance, Category.UNSUPPORTED, "no such type", 2.0)
    state = objects.request_state({failed.id: StoredInstance.of(failed, CLUSTER)}, 5.0)
    assert (state["phase"], state["requestStatus"]) == ("Failed", "RequestFailed")
    assert state["lastReconcileError"] == "unsupported: no such type"
    assert state["lastStatusUpdated"] == "1970-01-01T00:00:05Z"


def test_a_request_that_was_not_stored_to_its_end_is_noticed() -> None:
    message = order("r")
    request, secret = written(message, transitions.accepted(message, Share(), 1.0))
    assert not objects.is_complete(request, ())
    del request["status"]
    assert not objects.is_complete(request, {secret["metadata"]["name"]})


def test_another_requests_instance_is_refused() -> None:
    message = order("r")
    request, secret = written(message, transitions.accepted(message, Share(), 1.0))
    instances = request["status"]["instances"]
    instances[instance_id_of("other")] = instances.pop(instance_id_of("r"))
    with pytest.raises(InvalidRecord, match=r"is of instance 0-sr-r"):
        objects.stored_instances(request, secret)
