"""What a creation message says of a container function or task, in the form that its pod needs. Pure."""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nvcf_agent.errors import Unsupported
from nvcf_agent.state import order as orders
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.messages import CreationMessage, decode_base64
from nvcf_proto.icms.names import Workload
from nvcf_proto.models.containers import WorkerMode

Auths = dict[str, Any]
"""Logins by host, as in Docker's config.json."""

IMAGE_LOGINS = "CONTAINER_REGISTRIES_CREDENTIALS"
ARTIFACT_LOGINS = "ARTIFACT_REGISTRIES_CREDENTIALS"
_DOCKER_HUB = "docker.io"
_DOCKER_HUB_NAMES = frozenset(("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"))
# What a message brings for the cluster, and no container may read.
_CREDENTIALS = (
    IMAGE_LOGINS, "HELM_REGISTRIES_CREDENTIALS", "SIDECAR_REGISTRY_CREDENTIAL", ARTIFACT_LOGINS,
)  # fmt: skip
# What makes the pod, and is of no use in it.
_OF_THE_POD = frozenset(
    ("INFERENCE_CONTAINER", "INFERENCE_CONTAINER_ARGS", "INFERENCE_CONTAINER_ENV", "TASK_CONTAINER",
     "TASK_CONTAINER_ARGS", "TASK_CONTAINER_ENV", "INIT_CONTAINER", "UTILS_CONTAINER", "OTEL_CONTAINER",
     "ESS_AGENT_CONTAINER", "BYOO_OTEL_COLLECTOR_CONTAINER")
)  # fmt: skip


@dataclass(frozen=True)
class ContainerLaunch:
    """A container function or task. `variables` are its own, `message` the control plane's for its worker.

    The two images are those that the message names, if any. `models` and `resources` are downloaded first.
    `logins` and `artifact_logins` are the account's, `sidecar_logins` those for images beside the function's.
    """

    image: str
    arguments: tuple[str, ...]
    variables: Mapping[str, str]
    message: Mapping[str, str]
    is_library: bool
    utils_image: str | None
    init_image: str | None
    models: tuple[Mapping[str, Any], ...]
    resources: tuple[Mapping[str, Any], ...]
    logins: tuple[Auths, ...]
    artifact_logins: tuple[Auths, ...]
    sidecar_logins: Auths
    is_task: bool = False

    @property
    def has_artifacts(self) -> bool:
        """Whether anything is downloaded before the function starts."""
        return bool(self.models or self.resources)


def parse_launch(order: CreationMessage) -> ContainerLaunch:
    """Return what a message says of its container. Raises `Unsupported` for what cannot run."""
    launch = order.launch_specification
    is_task = order.workload is Workload.TASK
    own = "TASK_CONTAINER" if is_task else "INFERENCE_CONTAINER"
    try:
        message = orders.environment(order)
        image = launch.container_image or message.get(own)
        if not image:
            raise Unsupported("the order names no container image")
        return ContainerLaunch(
            image=image,
            arguments=_words(message.get(f"{own}_ARGS", "")),
            variables=_variables(message.get(f"{own}_ENV"), f"{own}_ENV"),
            message={
                name: value
                for name, value in message.items()
                if name not in _CREDENTIALS and name not in _OF_THE_POD
            },
            is_library=launch.worker_mode == WorkerMode.LIBRARY,
            utils_image=message.get("UTILS_CONTAINER") or None,
            init_image=message.get("INIT_CONTAINER") or None,
            models=_artifacts(launch.models, "models"),
            resources=_artifacts(launch.resources, "resources"),
            logins=account_logins(message.get(IMAGE_LOGINS), IMAGE_LOGINS),
            artifact_logins=account_logins(message.get(ARTIFACT_LOGINS), ARTIFACT_LOGINS),
            sidecar_logins=_auths(decoded(message.get("SIDECAR_REGISTRY_CREDENTIAL"), "login")),
            is_task=is_task,
        )
    except InvalidRecord as error:
        raise Unsupported(str(error)) from error


def _words(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise Unsupported(f"Container arguments are malformed: {error}") from error


def decoded(text: str | None, what: str) -> Any:
    """Return the JSON in base64; None for an empty text. Raises InvalidRecord. Pure."""
    if not text:
        return None
    try:
        return json.loads(decode_base64(text, what))
    except ValueError as error:
        raise InvalidRecord(what, "not base64 of JSON") from error


def _variables(text: str | None, name: str) -> dict[str, str]:
    listed = decoded(text, name) or []
    try:
        return {str(each["key"]): str(each.get("value") or "") for each in listed}
    except (AttributeError, KeyError, TypeError) as error:
        raise InvalidRecord(name, "expected a list of key and value") from error


def _artifacts(text: str | None, what: str) -> tuple[Mapping[str, Any], ...]:
    listed = decoded(text, what) or []
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise InvalidRecord(what, "expected a list of objects")
    # A model without an address is only offered to callers.
    return tuple(each for each in listed if each.get("uri"))


def account_logins(text: str | None, name: str) -> tuple[Auths, ...]:
    """Return the logins in a text such as CONTAINER_REGISTRIES_CREDENTIALS. Raises InvalidRecord."""
    outer = decoded(text, name)
    listed = outer.get("k8sSecrets") if isinstance(outer, dict) else None
    found = (_auths(each) for each in (listed if isinstance(listed, list) else ()))
    return tuple(auths for auths in found if auths)


def _auths(value: Any) -> Auths:
    auths = value.get("auths") if isinstance(value, dict) else None
    return dict(auths) if isinstance(auths, dict) else {}


def repository_of(image: str) -> str:
    """Return an image's name without tag and digest."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def registry_of(image: str) -> str:
    """Return the host of an image's registry."""
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return _host(first)
    return _DOCKER_HUB


def _host(address: str) -> str:
    host = address.partition("://")[2] or address
    host = host.partition("/")[0].lower()
    return _DOCKER_HUB if host in _DOCKER_HUB_NAMES else host


def auths_for(auths: Auths, hosts: Iterable[str]) -> Auths:
    """Return only the logins of these registries."""
    wanted = set(hosts)
    return {name: value for name, value in auths.items() if _host(name) in wanted}
