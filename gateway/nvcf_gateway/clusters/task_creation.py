"""Composition of the creation messages of tasks (protocol.md, section 12.2). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nvcf_gateway.clusters.creation import NO_GPU, SUBSCRIBER, WorkerAddresses, expiry, instance_type_of
from nvcf_gateway.clusters.launch import Access, as_base64, check_size, files_digest, on_one_line
from nvcf_proto import environment as names
from nvcf_proto.compute import RegisteredCluster
from nvcf_proto.icms.messages import (
    Action,
    CreationMessage,
    InstanceOrder,
    LaunchSpecification,
    TaskDetails,
    encode_environment,
)
from nvcf_proto.leases import LEASE_SECONDS
from nvcf_proto.models import Task
from nvcf_proto.task_policies import has_lease


@dataclass(frozen=True)
class OrderedTask:
    """Everything that the message of one order is made of. `token` is that of the task's worker."""

    order: InstanceOrder
    task: Task
    cluster: RegisteredCluster
    addresses: WorkerAddresses
    token: str
    issued_at: float
    access: Access | None = None
    """For images; what a process needs, its agent fetches itself."""


def task_message(wanted: OrderedTask) -> CreationMessage:
    """Return the creation message of an order. Raises InvalidRecord for what cannot be sent."""
    order, task, spec = wanted.order, wanted.task, wanted.task.specification
    kind = instance_type_of(wanted.cluster, spec)
    gpus = kind.gpu_count or (0 if spec.gpu == NO_GPU else max(1, spec.gpus_per_instance))
    launch = LaunchSpecification(
        environment=encode_environment(task_environment(wanted)),
        cloud_provider=wanted.cluster.cloud_provider,
        gpu_name=spec.gpu,
        gpu_type=spec.gpu,
        clusters=(wanted.cluster.name,),
        regions=(wanted.cluster.region,),
        max_runtime_duration=task.max_runtime_duration,
        max_queued_duration=task.max_queued_duration,
        termination_grace_period_duration=task.termination_grace_period_duration,
        result_handling_strategy=task.result_handling_strategy.value,
        process=task.process,
        container_image=task.container_image,
        models=as_base64([each.to_dict() for each in task.models]) if task.models else None,
        resources=as_base64([each.to_dict() for each in task.resources]) if task.resources else None,
        cache_handle=files_digest([*task.models, *task.resources]),
        worker_mode=None if task.worker_mode is None else task.worker_mode.value,
    )
    for name in ("environment", "models", "resources"):
        check_size(name, getattr(launch, name))
    return CreationMessage(
        request_id=order.request_id,
        nca_id=task.nca_id,
        action=Action.CREATE_TASK.value,
        sub=SUBSCRIBER,
        account_name=task.nca_id,
        message_batch_id=order.request_id,
        instance_type=kind.name,
        instance_type_name=kind.name,
        instance_type_value=kind.value,
        requested_gpu_count=gpus,
        gpu_type=spec.gpu,
        cluster_group=wanted.cluster.group or None,
        task_details=TaskDetails(task.id, continues=_continued(wanted)),
        launch_specification=launch,
        trace_parent=order.trace_parent,
        issued_at=wanted.issued_at,
        expires_at=expiry(order, wanted.issued_at),
        reason=order.reason,
    )


def _continued(wanted: OrderedTask) -> str | None:
    """Return the instance whose results this run continues, if its cluster has them."""
    previous = wanted.task.previous
    there = previous is not None and previous.cluster_id == wanted.cluster.id
    return previous.instance_id if previous is not None and there else None


def task_environment(wanted: OrderedTask) -> dict[str, str]:
    """Return the variables that the control plane gives to a task."""
    task, addresses = wanted.task, wanted.addresses
    variables = {
        names.NVCT_WORKER_TOKEN: wanted.token,
        names.NVCT_FQDN: addresses.http,
        names.NVCT_FQDN_GRPC: addresses.grpc,
        names.NCA_ID: task.nca_id,
        "ACCOUNT_NAME": task.nca_id,
        "TASK_ID": task.id,
        "TASK_NAME": task.name,
        "TASK_TAGS": ",".join(task.tags),
        "TASK_SECRETS_PRESENT": "true" if task.has_secrets else "false",
        "TERMINATION_GRACE_PERIOD": task.termination_grace_period_duration,
        names.ESS_FQDN: addresses.http,
    }
    if task.results_location is not None:
        variables[names.RESULTS_LOCATION] = task.results_location
    if has_lease(task):
        variables[names.NVCT_LEASE_DURATION] = f"{LEASE_SECONDS:g}s"
    if task.container_image is not None and wanted.access is not None:
        variables |= {
            **wanted.access.sidecars,
            "TASK_CONTAINER": task.container_image,
            "TASK_CONTAINER_ARGS": on_one_line(task.container_args or ""),
            "TASK_CONTAINER_ENV": as_base64([each.to_dict() for each in task.container_environment]),
            "CONTAINER_REGISTRIES_CREDENTIALS": wanted.access.images,
        }
        if wanted.access.artifacts:
            variables["ARTIFACT_REGISTRIES_CREDENTIALS"] = wanted.access.artifacts
    # Names come from users; a line break in one must not keep the task from starting.
    return {
        name: re.sub(r"[\r\n\0\v\f\x1c-\x1e\x85\u2028\u2029]+", " ", value)
        for name, value in variables.items()
    }
