"""Creation and termination messages, and the order that leads to one (protocol.md, sections 6.3 and 6.4).

Members that one side does not know are ignored. `[ext]` members are this project's: an agent that ignores
them can run everything but functions of the kind `process`.
"""

from __future__ import annotations

import base64
import binascii
from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta, field

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.names import Workload, creation_subject
from nvcf_proto.models import ProcessSource, Record
from nvcf_proto.models.record import Count, Text, matching

MOST_GPUS = 1024
LONGEST_VALUE = 512 * 1024

RequestId = Annotated[str, matching(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", max_length=100)]
"""Becomes part of names of files and of objects in Kubernetes."""
InstanceId = Annotated[str, matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", max_length=128)]
"""Made by the agent."""
Long = Annotated[str, Meta(max_length=LONGEST_VALUE)]
Map = dict[str, str]


class Action(StrEnum):
    """What a message asks for. Readers take every word of an action, writers use the first one."""

    CREATE_FUNCTION = "RequestSpotInstances"
    CREATE_TASK = "RequestSpotInstancesForTask"
    TERMINATE = "TerminateInstances"


CREATE_FUNCTION_WORDS = frozenset(("RequestSpotInstances", "RequestInstances", "RequestICMSInstances"))
CREATE_TASK_WORDS = frozenset(f"{word}ForTask" for word in CREATE_FUNCTION_WORDS)


class FunctionDetails(Record, frozen=True):
    """Which function version is started."""

    function_id: Text
    function_version_id: Text
    function_type: Text = "DEFAULT"


class TaskDetails(Record, frozen=True):
    """Which task is started. `continues` [ext] is the instance whose results folder the run continues."""

    task_id: Text
    task_type: Text | None = None
    continues: InstanceId | None = field(name="continuesInstanceId", default=None)


class LaunchSpecification(Record, frozen=True, kw_only=True):
    """How instances are started. `environment` is base64 of KEY=VALUE lines, see `launch_environment`.

    `configuration`, `models` and `telemetries` are base64 of JSON. Durations are ISO 8601.
    """

    environment: Long = ""
    cloud_provider: Text = ""
    icms_environment: Text | None = None
    gpu_name: Text = ""
    gpu_type: Text | None = None
    deployment_id: Text | None = None
    gpu_specification_id: Text | None = None
    container_image: Text | None = None
    helm_chart: Text | None = None
    configuration: Long | None = None
    models: Long | None = None
    telemetries: Long | None = None
    cache_artifacts: bool = False
    cache_handle: Text | None = None
    cache_size: Count | None = None
    clusters: tuple[Text, ...] = ()
    regions: tuple[Text, ...] = ()
    attributes: tuple[Text, ...] = ()
    max_runtime_duration: Text | None = None
    max_queued_duration: Text | None = None
    termination_grace_period_duration: Text | None = None
    result_handling_strategy: Text | None = None
    process: ProcessSource | None = None
    """[ext] What the process backend runs."""
    max_execution_seconds: Annotated[int, Meta(ge=1)] | None = None
    """[ext] Longest time that one request may run."""
    resources: Long | None = None
    """[ext] Files to fetch besides models, base64 of JSON."""
    worker_mode: Text | None = None
    """[ext] `library`: the image has the worker in it and gets its environment; `sidecar`: it has not."""
    prefetch: bool | None = None
    """[ext] Pull the image on all nodes that may run it."""
    helm_validation_policy: Long | None = None
    """[ext] How a chart is checked, base64 of JSON."""


class CreationMessage(Record, frozen=True, kw_only=True):
    """Create the instances of one request in one cluster; this project orders one instance a message.

    `instance_type_name` decides (`NCP.GPU.H100_2x`), `instance_type_value` is the family (`NCP.GPU.H100`).
    Times [ext] are Unix seconds; nothing expires at an agent that ignores them.
    """

    request_id: RequestId
    nca_id: Text
    action: Text = Action.CREATE_FUNCTION.value
    sub: Text | None = None
    account_name: Text | None = None
    message_batch_id: Text | None = None
    instance_count: Annotated[int, Meta(ge=1, le=1000)] = 1
    instance_type: Text | None = None
    instance_type_name: Text = ""
    instance_type_value: Text = ""
    requested_gpu_count: Annotated[int, Meta(ge=0, le=MOST_GPUS)] = field(name="requestedGPUCount", default=0)
    gpu_type: Text | None = None
    cluster_group: Text | None = None
    deployment_id: Text | None = None
    gpu_specification_id: Text | None = None
    function_id: Text | None = None
    function_version_id: Text | None = None
    function_details: FunctionDetails | None = None
    task_details: TaskDetails | None = None
    launch_specification: LaunchSpecification = field(default_factory=LaunchSpecification)
    trace_parent: Text | None = None
    trace_state: Text | None = None
    issued_at: float | None = None
    """[ext] When it was published, by the clock of the gateway that did."""
    expires_at: float | None = None
    """[ext] After this, by the same clock, it is dropped: the control plane has ordered again or given up."""
    reason: Text | None = None
    """[ext] Why, for people."""

    def __post_init__(self) -> None:
        if self.action not in CREATE_FUNCTION_WORDS | CREATE_TASK_WORDS:
            raise InvalidRecord("action", f"unknown: {self.action[:64]!r}")
        if self.function_details is None and self.task_details is None:
            raise InvalidRecord("functionDetails", "missing; expected an object, or taskDetails")

    @property
    def workload(self) -> Workload:
        """Function or task."""
        return Workload.TASK if self.action in CREATE_TASK_WORDS else Workload.FUNCTION

    def subject(self, cluster_id: str) -> str:
        """Return the subject on which the message is published. Raises ValueError."""
        gpu = self.launch_specification.gpu_name
        return creation_subject(self.workload, cluster_id, gpu, self.instance_type_value)


class TerminationMessage(Record, frozen=True, kw_only=True):
    """End these instances of one request. `availability_zone` is the cluster's name."""

    request_id: RequestId
    nca_id: Text
    action: Text = Action.TERMINATE.value
    instance_ids: Annotated[tuple[InstanceId, ...], Meta(max_length=1000)] = ()
    availability_zone: Text | None = None
    trace_parent: Text | None = None
    trace_state: Text | None = None
    reason: Text | None = None
    """[ext] Why, for people."""

    def __post_init__(self) -> None:
        if self.action != Action.TERMINATE:
            raise InvalidRecord("action", f"expected {Action.TERMINATE}, got {self.action[:64]!r}")


class InstanceOrder(Record, frozen=True, kw_only=True):
    """[ext] The autoscaler's order of one instance, on ORDER_SUBJECT; its PENDING record exists already.

    The answer is `{}`, or `{"error": TEXT}` when nothing was published. With `task_id` it is for a task, and
    version and specification say nothing.
    """

    request_id: RequestId
    function_version_id: Text
    cluster_id: Text
    gpu_specification_id: Text
    expires_at: float
    issued_at: float | None = None
    """When it was sent, by the clock that `expires_at` is of: the autoscaler's."""
    attempt: Count = 0
    """Part of the message's id: a repeated order is published again, not taken for a duplicate."""
    reason: Text | None = None
    trace_parent: Text | None = None
    task_id: Text | None = None


def instance_id_of(request_id: str, index: int = 0, workload: Workload = Workload.FUNCTION) -> str:
    """Return the id that an agent gives to a request's instance; NVIDIA's form is the same.

    The control plane may expect it but takes any id that an agent reports.
    """
    name = request_id if request_id.startswith("sr-") else f"sr-{request_id}"
    return f"{index}-{name}" + ("-task" if workload is Workload.TASK else "")


def encode_base64(text: str) -> str:
    """Return base64 of UTF-8 text."""
    return base64.b64encode(text.encode()).decode()


def decode_base64(text: str, what: str) -> str:
    """Return the text of base64. Raises InvalidRecord, which names `what`."""
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise InvalidRecord(what, "not base64 of UTF-8 text") from error


def encode_environment(variables: Map) -> str:
    """Return variables in the form of `launchSpecification.environment`.

    Raises InvalidRecord for a name or value that does not fit on one line.
    """
    for name, value in variables.items():
        if not name or "=" in name or any(mark in name + value for mark in "\r\n\0"):
            raise InvalidRecord("environment", f"{name!r} cannot be written as one line NAME=VALUE")
    return encode_base64("\n".join(f"{name}={value}" for name, value in variables.items()))


def decode_environment(text: str) -> dict[str, str]:
    """Return the variables of `launchSpecification.environment`. Raises InvalidRecord."""
    # Only LF and CR LF end a line. `splitlines` would let a value with U+2028 become another variable.
    decoded = decode_base64(text, "launchSpecification.environment").replace("\r\n", "\n")
    found: dict[str, Any] = {}
    for line in decoded.split("\n"):
        name, separator, value = line.partition("=")
        if separator and name:
            found[name] = value
    return found
