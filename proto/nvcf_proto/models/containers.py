"""What a version's container or Helm chart needs: image, arguments, health, models and resources."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta

from nvcf_proto.durations import DURATION_PATTERN, duration_seconds
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models.llm import LlmConfig, LlmInvocationConfig, Path
from nvcf_proto.models.record import Record, matching
from nvcf_proto.models.telemetries import Telemetries

MAX_ARTIFACTS = 256
MAX_VARIABLES = 512
MAX_HEALTH_TIMEOUT = 3600.0

Image = Annotated[str, matching(r"[\x21-\x7e]+", max_length=1024)]
Uri = Annotated[str, matching(r"[\x21-\x7e]+", max_length=2048)]
ArtifactName = Annotated[str, matching(r"[^\s/\x00-\x1f\x7f][^/\x00-\x1f\x7f]*", max_length=256)]
ArtifactVersion = Annotated[str, Meta(min_length=1, max_length=128)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
ServiceName = Annotated[str, matching(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", max_length=253)]
Duration = Annotated[str, matching(DURATION_PATTERN, max_length=64, examples=["PT10S"])]
ApiBodyFormat = Literal["CUSTOM", "PREDICT_V2"]


class HealthProtocol(StrEnum):
    """How a container's health is asked for."""

    HTTP = "HTTP"
    GRPC = "gRPC"


class Health(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a container is ready: its health endpoint answers with `expected_status_code`."""

    protocol: HealthProtocol = HealthProtocol.HTTP
    uri: Path = "/v2/health/ready"
    port: Port = 8000
    timeout: Duration = "PT10S"
    expected_status_code: Annotated[int, Meta(ge=0, le=599)] = 200

    def __post_init__(self) -> None:
        if not 0 < duration_seconds(self.timeout) <= MAX_HEALTH_TIMEOUT:
            raise InvalidRecord("timeout", "expected more than 0 seconds and at most PT1H")


class WorkerMode(StrEnum):
    """[ext] Whether the worker runs in the image itself, or beside it. Without one the agent finds out."""

    SIDECAR = "sidecar"
    LIBRARY = "library"


class ContainerVariable(Record, frozen=True, forbid_unknown_fields=True):
    """One environment variable of a container."""

    key: Annotated[str, matching(r"[A-Za-z_][A-Za-z0-9_.-]*", max_length=256)]
    value: Annotated[str, Meta(max_length=32_768)] = ""


class Artifact(Record, frozen=True, forbid_unknown_fields=True):
    """A file collection that is downloaded before the container starts."""

    name: ArtifactName
    version: ArtifactVersion
    uri: Uri


class Model(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model: downloaded before the container starts if it has a URI, and offered to LLM callers."""

    name: ArtifactName
    version: ArtifactVersion | None = None
    uri: Uri | None = None
    llm_config: LlmConfig | None = None


class TaskContainer(Record, frozen=True, kw_only=True):
    """What a task's container is made of."""

    container_image: Image | None = None
    container_args: Annotated[str, Meta(max_length=32_768)] | None = None
    container_environment: Annotated[tuple[ContainerVariable, ...], Meta(max_length=MAX_VARIABLES)] = ()
    models: Annotated[tuple[Artifact, ...], Meta(max_length=MAX_ARTIFACTS)] = ()
    resources: Annotated[tuple[Artifact, ...], Meta(max_length=MAX_ARTIFACTS)] = ()
    worker_mode: WorkerMode | None = None


class VersionSettings(Record, frozen=True, kw_only=True):
    """The settings that a version is created with and keeps as they are."""

    inference_port: Port | None = None
    health: Health | None = None
    health_uri: Path | None = None
    container_args: Annotated[str, Meta(max_length=32_768)] | None = None
    container_environment: Annotated[tuple[ContainerVariable, ...], Meta(max_length=MAX_VARIABLES)] = ()
    models: Annotated[tuple[Model, ...], Meta(max_length=MAX_ARTIFACTS)] = ()
    resources: Annotated[tuple[Artifact, ...], Meta(max_length=MAX_ARTIFACTS)] = ()
    helm_chart: Uri | None = None
    helm_chart_service_name: ServiceName | None = None
    utils_container_image: Image | None = None
    api_body_format: ApiBodyFormat | None = None
    worker_mode: WorkerMode | None = None
    llm_invocation_config: LlmInvocationConfig | None = None
    telemetries: Telemetries | None = None
