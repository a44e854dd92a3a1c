"""From a creation message to the objects of one instance in a pod. Pure."""

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvcf_agent.backends.environment import CollectorOrder, InstanceSpec
from nvcf_agent.kubernetes.client.kinds import CONFIG_MAP, POD, SECRET, Kind
from nvcf_agent.kubernetes.names import object_name
from nvcf_agent.kubernetes.pods import containers, names
from nvcf_agent.kubernetes.pods.collector import collector_image, mounted_files, placement_of
from nvcf_agent.kubernetes.pods.launch import Auths, ContainerLaunch, auths_for, parse_launch, registry_of
from nvcf_agent.kubernetes.pods.settings import GPU_TOLERATION, PodSettings
from nvcf_agent.kubernetes.pods.variables import function_variables, worker_variables
from nvcf_agent.state import order as orders
from nvcf_otel.byoo import collector_text

Json = dict[str, Any]

GPU_RESOURCE = "nvidia.com/gpu"
_DOCKER_LOGIN = "kubernetes.io/dockerconfigjson"


@dataclass(frozen=True)
class PodObjects:
    """The objects of one instance: those that its pod needs, in order, and the pod itself.

    The Secret `secrets` of the function has the certificates of its telemetry. What else is in it comes from
    the control plane.
    """

    before: tuple[tuple[Kind, Json], ...]
    pod: Json


def render(
    spec: InstanceSpec,
    settings: PodSettings,
    *,
    owner: Mapping[str, Any] | None = None,
    gpu_resource: str = GPU_RESOURCE,
) -> PodObjects:
    """Return the objects of an instance. Raises `Unsupported` for an order that cannot run.

    `owner` is its ICMSRequest. A collector that its telemetry goes through has its secrets (`with_secrets`).
    """
    launch = parse_launch(spec.order)
    parts = containers.Parts(spec, launch, settings, gpu_resource, collector_image(spec, settings) or None)
    metadata = _Metadata(spec, settings, names.owner_reference(owner))
    pulls = _pull_secrets(parts, metadata)
    before = [*pulls, *_environment(parts, metadata), _opaque("secrets", spec.telemetry.files, metadata)]
    if parts.init_image is not None and parts.is_own(parts.init_image):
        before.append(_opaque("artifacts", artifact_files(launch), metadata))
    if parts.collector_image is not None and spec.telemetry.collector is not None:
        before += _collector(spec.telemetry.collector, metadata)
    pull_names = [body["metadata"]["name"] for _, body in pulls]
    return PodObjects(tuple(before), _pod(parts, metadata, [*pull_names, *settings.pull_secrets]))


@dataclass(frozen=True)
class _Metadata:
    spec: InstanceSpec
    settings: PodSettings
    owners: list[Json]

    def new(self, kind: Kind, name: str, *, shared: bool = False, **members: Any) -> Json:
        """Return an object of the instance; `shared`: of all instances of its request."""
        labels = names.labels(self.spec, self.settings)
        body = kind.new(name, self.settings.namespace, labels, **members)
        if not shared:
            body["metadata"]["annotations"] = {names.INSTANCE_ID: self.spec.instance_id}
        if self.owners:
            body["metadata"]["ownerReferences"] = self.owners
        return body


def _pod(parts: containers.Parts, metadata: _Metadata, pull_secrets: list[str]) -> Json:
    settings, utils_image, init_image = parts.settings, parts.utils_image, parts.init_image
    first = []
    if parts.collector_image is not None:
        first.append(containers.collector(parts, parts.collector_image))
    if init_image is not None:
        first.append(containers.init(parts, init_image))
    running = [containers.main(parts)]
    if utils_image is not None:
        running.append(containers.utils(parts, utils_image))
    is_task = parts.launch.is_task
    spec: Json = {
        "restartPolicy": "Never" if is_task else "Always",
        "terminationGracePeriodSeconds": _grace(parts.spec, settings) if is_task else settings.grace,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "tolerations": [GPU_TOLERATION, *map(dict, settings.tolerations)],
        "containers": running,
        "volumes": containers.volumes(parts, [*first, *running]),
    }
    if first:
        spec["initContainers"] = first
    if pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in pull_secrets]
    affinity = node_affinity(parts.spec)
    if affinity is not None:
        spec["affinity"] = affinity
    pod = metadata.new(POD, names.pod_name(parts.spec.instance_id), spec=spec)
    pod["metadata"]["annotations"] = names.annotations(parts.spec, settings)
    return pod


def _grace(spec: InstanceSpec, settings: PodSettings) -> int:
    """Return the seconds that a task gets to end: those of its order."""
    return max(1, math.ceil(orders.grace(spec.order, settings.grace)))


def node_affinity(spec: InstanceSpec) -> Json | None:
    """Return the affinity to nodes of the instance's type; None for an instance without GPUs."""
    value = spec.order.instance_type_value
    if not spec.order.requested_gpu_count or not value:
        return None
    wanted = {"key": names.INSTANCE_TYPE, "operator": "In", "values": [value]}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [wanted]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def _opaque(what: str, values: Mapping[str, str], metadata: _Metadata) -> tuple[Kind, Json]:
    name = names.secret_name(metadata.spec.instance_id, what)
    members: Json = {"data": {key: encoded(value) for key, value in values.items()}} if values else {}
    return SECRET, metadata.new(SECRET, name, type="Opaque", **members)


def encoded(text: str) -> str:
    """Return a value of a Secret's `data`."""
    return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode()


def _environment(parts: containers.Parts, metadata: _Metadata) -> list[tuple[Kind, Json]]:
    spec, launch, settings = parts.spec, parts.launch, parts.settings
    found = [_opaque("function", function_variables(spec, launch, settings), metadata)]
    if parts.utils_image is not None or parts.init_image is not None:
        found.append(_opaque("worker", worker_variables(spec, launch, settings), metadata))
    return found


def _pull_secrets(parts: containers.Parts, metadata: _Metadata) -> list[tuple[Kind, Json]]:
    launch, request = parts.launch, names.request_of(parts.spec.instance_id)
    hosts = {registry_of(launch.image)}
    own = [auths_for(auths, hosts) for auths in launch.logins]
    beside = auths_for(launch.sidecar_logins, map(registry_of, parts.images()))
    found = [("workload", auths) for auths in own if auths] + ([("worker", beside)] if beside else [])
    numbers = {"workload": 0, "worker": 0}
    result = []
    for which, auths in found:
        name = object_name(which, request, "regcred", str(numbers[which]))
        numbers[which] += 1
        result.append((SECRET, metadata.new(SECRET, name, shared=True, **login_members(auths))))
    return result


def login_members(auths: Auths) -> Json:
    """Return the members of a Secret with which images are pulled."""
    return {"type": _DOCKER_LOGIN, "data": {".dockerconfigjson": encoded(json.dumps({"auths": auths}))}}


def artifact_files(launch: ContainerLaunch) -> dict[str, str]:
    """Return what the init container reads: what to fetch, and the logins of the account's registries."""
    listed = {"models": list(launch.models), "resources": list(launch.resources)}
    auths = {host: login for each in launch.artifact_logins for host, login in each.items()}
    return {"artifacts.json": json.dumps(listed), "config.json": json.dumps({"auths": auths})}


def _collector(order: CollectorOrder, metadata: _Metadata) -> list[tuple[Kind, Json]]:
    placement = placement_of(order, metadata.settings)
    name = names.secret_name(metadata.spec.instance_id, "collector")
    data = {"collector.yaml": collector_text(order.endpoints, placement)}
    secret = _opaque("collector", mounted_files(order), metadata)
    return [(CONFIG_MAP, metadata.new(CONFIG_MAP, name, data=data)), secret]
