"""Composition of creation messages (protocol.md, section 6.3). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nvcf_gateway.clusters.launch import (
    Access,
    as_base64,
    check_size,
    container_environment,
    container_launch,
)
from nvcf_proto import environment as names
from nvcf_proto.compute import RegisteredCluster
from nvcf_proto.icms.messages import (
    CreationMessage,
    FunctionDetails,
    InstanceOrder,
    LaunchSpecification,
    encode_environment,
)
from nvcf_proto.icms.reports import InstanceType
from nvcf_proto.models import (
    Deployment,
    DeploymentSpecification,
    FunctionVersion,
    TelemetryEndpoint,
    TelemetryType,
)
from nvcf_proto.models.deployments import deployment_id, execution_seconds, gpu_specification_ids

NO_GPU = "CPU"
"""[ext] Name of a pool for instances without a GPU."""
SUBSCRIBER = "nvcf"
_SIZE = re.compile(r"_[0-9]+x(\.x[0-9]+)?\Z")


@dataclass(frozen=True)
class WorkerAddresses:
    """Where workers of all clusters reach the platform: gateway HTTP URL, gRPC `host:port`, broker URLs."""

    http: str
    grpc: str
    nats: str


@dataclass(frozen=True)
class OrderedInstance:
    """Everything that the message of one order is made of."""

    order: InstanceOrder
    version: FunctionVersion
    deployment: Deployment
    specification: DeploymentSpecification
    cluster: RegisteredCluster
    addresses: WorkerAddresses
    worker_token: str
    telemetries: Mapping[TelemetryType, TelemetryEndpoint]
    issued_at: float
    access: Access | None = None
    """For images and charts; what a process needs, its agent fetches itself."""

    @property
    def expires_at(self) -> float:
        """When the order expires, by the clock of `issued_at`."""
        return expiry(self.order, self.issued_at)


def expiry(order: InstanceOrder, issued_at: float) -> float:
    """Return when an order expires, by the clock of `issued_at`; the autoscaler's may differ."""
    return order.expires_at + (0.0 if order.issued_at is None else issued_at - order.issued_at)


def creation_message(wanted: OrderedInstance) -> CreationMessage:
    """Return the creation message of an order. Raises InvalidRecord for what cannot be sent."""
    order, version, spec = wanted.order, wanted.version, wanted.specification
    kind = instance_type_of(wanted.cluster, spec)
    gpus = kind.gpu_count or (0 if spec.gpu == NO_GPU else max(1, spec.gpus_per_instance))
    launch = LaunchSpecification(
        environment=encode_environment(launch_environment(wanted)),
        cloud_provider=wanted.cluster.cloud_provider,
        gpu_name=spec.gpu,
        gpu_type=spec.gpu,
        deployment_id=deployment_id(wanted.deployment),
        gpu_specification_id=gpu_specification_ids(wanted.deployment).get(order.gpu_specification_id),
        telemetries=_telemetries(wanted.telemetries),
        clusters=(wanted.cluster.name,),
        regions=(wanted.cluster.region,),
        process=version.process,
        max_execution_seconds=execution_seconds(wanted.deployment),
        **({} if version.process is not None else container_launch(version, spec)),
    )
    for name in ("environment", "configuration", "models", "resources"):
        check_size(name, getattr(launch, name))
    return CreationMessage(
        request_id=order.request_id,
        nca_id=version.nca_id,
        sub=SUBSCRIBER,
        account_name=version.nca_id,
        message_batch_id=order.request_id,
        instance_type=kind.name,
        instance_type_name=kind.name,
        instance_type_value=kind.value,
        requested_gpu_count=gpus,
        cluster_group=wanted.cluster.group or None,
        deployment_id=launch.deployment_id,
        gpu_specification_id=launch.gpu_specification_id,
        function_id=version.function_id,
        function_version_id=version.id,
        function_details=FunctionDetails(version.function_id, version.id, version.function_type.value),
        launch_specification=launch,
        trace_parent=order.trace_parent,
        issued_at=wanted.issued_at,
        expires_at=wanted.expires_at,
        reason=order.reason,
    )


def instance_type_of(cluster: RegisteredCluster, spec: DeploymentSpecification) -> InstanceType:
    """Return the type as the cluster registered it, or by the form of its name."""
    types = (kind for gpu in cluster.gpus if gpu.name == spec.gpu for kind in gpu.instance_types)
    found = next((kind for kind in types if kind.name == spec.instance_type), None)
    if found is not None and found.value:
        return found
    count = 0 if found is None else found.gpu_count
    value = _SIZE.sub("", spec.instance_type)
    return InstanceType(name=spec.instance_type, value=value, gpu_count=count)


def launch_environment(wanted: OrderedInstance) -> dict[str, str]:
    """Return the variables that the control plane gives to an instance."""
    version, addresses = wanted.version, wanted.addresses
    variables = {
        names.NVCF_WORKER_TOKEN: wanted.worker_token,
        "NVCF_FQDN": addresses.http,
        names.NVCF_FQDN_GRPC: addresses.grpc,
        names.NVCF_FQDN_NATS: addresses.nats,
        names.NCA_ID: version.nca_id,
        names.FUNCTION_ID: version.function_id,
        names.FUNCTION_VERSION_ID: version.id,
        names.FUNCTION_NAME: version.name,
        names.FUNCTION_TAGS: ",".join(version.tags),
        names.MAX_REQUEST_CONCURRENCY: str(wanted.specification.max_request_concurrency),
        names.NVCF_MAX_EXECUTION_SECONDS: str(execution_seconds(wanted.deployment)),
        "INFERENCE_URL": version.inference_url,
        names.ESS_FQDN: addresses.http,
    }
    if version.container_image is not None:
        variables["INFERENCE_CONTAINER"] = version.container_image
    if wanted.access is not None:
        variables |= container_environment(version, wanted.access)
    if wanted.order.trace_parent is not None:
        variables[names.NVCF_SCALING_TRACEPARENT] = wanted.order.trace_parent
    return {name: _one_line(value) for name, value in variables.items()}


def _one_line(text: str) -> str:
    # Tags and names come from users; a line break in one must not keep the instance from starting.
    return re.sub(r"[\r\n\0\v\f\x1c-\x1e\x85\u2028\u2029]+", " ", text)


def _telemetries(chosen: Mapping[TelemetryType, TelemetryEndpoint]) -> str | None:
    """Return the endpoints as base64 of JSON. Members beyond NVIDIA's are [ext]; there are no secrets."""
    if not chosen:
        return None
    members = {f"{kind.value.lower()}Telemetry": endpoint.to_dict() for kind, endpoint in chosen.items()}
    return as_base64({"telemetries": members})
