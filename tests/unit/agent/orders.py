"""Creation messages for tests."""

from __future__ import annotations

from typing import Any

from nvcf_proto.icms.messages import (
    CreationMessage,
    FunctionDetails,
    LaunchSpecification,
    TerminationMessage,
    encode_environment,
)
from nvcf_proto.ids import new_id
from nvcf_proto.models import ProcessSource

SOURCE = ProcessSource(python="/venv/bin/python", file="/code/f.py", working_directory="/code")
CLUSTER = "here"
FUNCTION = "00000000-0000-4000-8000-00000000000f"
VARIABLES = {
    "NVCF_WORKER_TOKEN": "secret",
    "NVCF_FQDN_GRPC": "127.0.0.1:1",
    "NVCF_FQDN_NATS": "nats://127.0.0.1:2",
    "FUNCTION_NAME": "hello",
    "FUNCTION_TAGS": "a,b",
    "MAX_REQUEST_CONCURRENCY": "3",
}


def order(
    request_id: str = "", *, gpu: str = "CPU", variables: Any = None, **changes: Any
) -> CreationMessage:
    """A message for an instance without a GPU that was issued at 0 and expires at 60.

    What a launch specification has may be among the changes.
    """
    launch = {
        name: changes.pop(name) for name in list(changes) if name in LaunchSpecification.__struct_fields__
    }
    message = CreationMessage(
        request_id=request_id or new_id(),
        nca_id="account",
        instance_type_name="process",
        instance_type_value="process",
        function_details=FunctionDetails(FUNCTION, new_id()),
        launch_specification=LaunchSpecification(
            environment=encode_environment(VARIABLES | (variables or {})), gpu_name=gpu, process=SOURCE
        ).replace(**launch),
        issued_at=0.0,
        expires_at=60.0,
    )
    return message.replace(**changes)


def termination(request_id: str, *instance_ids: str, **changes: Any) -> TerminationMessage:
    """A message that ends instances."""
    return TerminationMessage(request_id=request_id, nca_id="account", instance_ids=instance_ids, **changes)
