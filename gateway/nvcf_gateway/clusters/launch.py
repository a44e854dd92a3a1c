"""What a container or a Helm chart is started with (protocol.md, section 6.3). Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nvcf_proto import environment as names
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.messages import LONGEST_VALUE, encode_base64
from nvcf_proto.models import DeploymentSpecification, FunctionVersion
from nvcf_proto.models.containers import Artifact, Health, HealthProtocol, Model

DEFAULT_PORT = 8000
OWN_UTILS = ("GO", "PYTHON")
"""Values of a version's utilsContainerImage that mean the installation's own image."""
DEFAULT_STATUS = 200


@dataclass(frozen=True)
class Access:
    """What an instance may read: registries, and secrets. `secrets_token` is empty if there are none.

    `images`, `charts` and `artifacts` are in the form of `registry_logins`, the last one empty if there are
    no artifacts. `sidecars` are the lines about the installation's own images.
    """

    images: str
    charts: str
    secrets_url: str
    secrets_token: str = ""
    has_secrets: bool = False
    artifacts: str = ""
    sidecars: Mapping[str, str] = field(default_factory=dict)


def container_environment(version: FunctionVersion, access: Access) -> dict[str, str]:
    """Return the variables that only images and charts need. What the version leaves open has a default."""
    health = _health(version)
    grpc = health.protocol is HealthProtocol.GRPC
    variables = {
        **access.sidecars,
        "INFERENCE_CONTAINER_ARGS": on_one_line(version.container_args or ""),
        "INFERENCE_CONTAINER_ENV": as_base64([each.to_dict() for each in version.container_environment]),
        names.INFERENCE_PORT: str(version.inference_port or DEFAULT_PORT),
        "INFERENCE_PROTOCOL": "GRPC" if grpc else "REST",
        names.INFERENCE_HEALTH_ENDPOINT: health.uri,
        names.INFERENCE_HEALTH_PROTOCOL: health.protocol.value,
        names.INFERENCE_HEALTH_PORT: str(health.port),
        names.INFERENCE_HEALTH_TIMEOUT: health.timeout,
        names.INFERENCE_HEALTH_EXPECTED_RESPONSE_CODE: str(health.expected_status_code or DEFAULT_STATUS),
        "CONTAINER_REGISTRIES_CREDENTIALS": access.images,
        "HELM_REGISTRIES_CREDENTIALS": access.charts,
        "FUNCTION_SECRETS_PRESENT": "true" if access.has_secrets else "false",
    }
    if access.artifacts:
        variables["ARTIFACT_REGISTRIES_CREDENTIALS"] = access.artifacts
    if version.helm_chart_service_name is not None:
        variables["HELM_CHART_INFERENCE_SERVICE_NAME"] = version.helm_chart_service_name
    if version.utils_container_image is not None and version.utils_container_image not in OWN_UTILS:
        variables["UTILS_CONTAINER"] = version.utils_container_image
    if access.secrets_token:
        # With a token an agent adds a container that fetches secrets, so there is none without secrets.
        variables[names.SECRETS_ASSERTION_TOKEN] = access.secrets_token
        variables["ESS_FQDN"] = access.secrets_url
    return variables


def _health(version: FunctionVersion) -> Health:
    if version.health is not None:
        return version.health
    checked = Health(port=version.inference_port or DEFAULT_PORT)
    return checked if version.health_uri is None else checked.replace(uri=version.health_uri)


def on_one_line(words: str) -> str:
    """Return the words of a container's arguments on one line, as a message has them."""
    # A backslash at the end of a line joins it with the next one, as in a shell.
    return re.sub(r"\\\r?\n", "", words)


def container_launch(version: FunctionVersion, spec: DeploymentSpecification) -> dict[str, Any]:
    """Return the members of the launch specification that only images and charts need."""
    chart = version.helm_chart is not None
    mode, policy = version.worker_mode, spec.helm_validation_policy
    return {
        "container_image": version.container_image,
        "helm_chart": version.helm_chart,
        "configuration": as_base64(spec.configuration) if chart and spec.configuration else None,
        "helm_validation_policy": as_base64(policy.to_dict()) if chart and policy is not None else None,
        "models": as_base64([each.to_dict() for each in version.models]) if version.models else None,
        "resources": as_base64([each.to_dict() for each in version.resources]) if version.resources else None,
        "cache_handle": artifacts_digest(version),
        "worker_mode": None if mode is None else mode.value,
        "prefetch": spec.prefetch or None,
    }


def artifacts_digest(version: FunctionVersion) -> str | None:
    """Return a name for the files of a version's models and resources; the same files have the same name."""
    return files_digest([*version.models, *version.resources])


def files_digest(artifacts: Iterable[Model | Artifact]) -> str | None:
    """Return a name for files; None if there are none to fetch."""
    files = [[each.uri, each.version or ""] for each in artifacts if each.uri]
    return hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()[:32] if files else None


def as_base64(value: object) -> str:
    """Return base64 of JSON."""
    return encode_base64(json.dumps(value, separators=(",", ":")))


def check_size(name: str, value: str | None) -> None:
    """Raise InvalidRecord for a value that readers of creation messages refuse."""
    if value is not None and len(value) > LONGEST_VALUE:
        reason = f"{len(value)} bytes, more than {LONGEST_VALUE}: make the version's settings smaller"
        raise InvalidRecord(f"launchSpecification.{name}", reason)
