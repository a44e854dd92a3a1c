"""Creation messages for tests, and strategies of them."""

from typing import Any

from nvcf_proto.compute import CreationMessage
from nvcf_proto.ids import new_id
from nvcf_proto.models import ProcessSource

SOURCE = ProcessSource(python="/venv/bin/python", file="/code/f.py", working_directory="/code")
CLUSTER = "here"


def order(*instance_ids: str, **changes: Any) -> CreationMessage:
    """A message for CPU instances in CLUSTER that was issued at 0 and expires at 60."""
    message = CreationMessage(
        message_id="m",
        cluster_id=CLUSTER,
        function_id=new_id(),
        version_id=new_id(),
        function_name="hello",
        nca_id="account",
        specification_id="0-CPU-process",
        gpu="CPU",
        instance_type="process",
        gpus_per_instance=0,
        max_request_concurrency=1,
        instance_ids=instance_ids or (new_id(),),
        issued_at=0.0,
        expires_at=60.0,
        process=SOURCE,
    )
    return message.replace(**changes)
