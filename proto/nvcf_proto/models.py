"""Records of the platform's state: JetStream key-value buckets, their keys and their JSON values.

Times are Unix seconds. `from_json` raises InvalidRecord naming the field; fields that a newer writer
added are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from nvcf_proto.records import Fields, dump_object, load_object

FUNCTIONS_BUCKET = "nvcf_functions"
VERSIONS_BUCKET = "nvcf_versions"
DEPLOYMENTS_BUCKET = "nvcf_deployments"
INSTANCES_BUCKET = "nvcf_instances"
API_KEYS_BUCKET = "nvcf_api_keys"

NAME_PATTERN = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}"


class FunctionType(StrEnum):
    """How callers use a version."""

    DEFAULT = "DEFAULT"
    STREAMING = "STREAMING"
    LLM = "LLM"


class VersionStatus(StrEnum):
    """Life of a version, as the management API shows it."""

    INACTIVE = "INACTIVE"
    DEPLOYING = "DEPLOYING"
    ACTIVE = "ACTIVE"
    ERROR = "ERROR"
    DELETING = "DELETING"


class InstanceState(StrEnum):
    """Life of an instance."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    TERMINATING = "TERMINATING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"


class Scope(StrEnum):
    """What an API key may do. ADMIN includes all the others but AGENT."""

    INVOKE = "invoke"
    LIST = "list"
    MANAGE = "manage"
    DEPLOY = "deploy"
    ADMIN = "admin"
    AGENT = "agent"


class _Record:
    def to_json(self) -> bytes:
        """The record as JSON, camelCase, absent fields left out."""
        return dump_object(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The record's JSON members."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read a stored record. Raises InvalidRecord."""
        return cls.from_fields(Fields(load_object(body, cls.__name__)))

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Build the record from its JSON members. Raises InvalidRecord."""
        raise NotImplementedError


@dataclass(frozen=True)
class ProcessSource(_Record):
    """What the process backend runs: `python -m nvcf_worker FILE[:HANDLER]` in a folder."""

    python: str
    file: str
    working_directory: str
    handler: str | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "python": self.python,
            "file": self.file,
            "handler": self.handler,
            "workingDirectory": self.working_directory,
            "environment": self.environment,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            python=fields.text("python", pattern=r"/.+"),
            file=fields.text("file", pattern=r"/.+"),
            working_directory=fields.text("workingDirectory", pattern=r"/.*"),
            handler=fields.optional_text("handler", pattern=r"[A-Za-z_][A-Za-z0-9_]*"),
            environment=fields.text_map("environment"),
        )


@dataclass(frozen=True)
class Function(_Record):
    """A function: a name under which versions are published. Key: its id."""

    id: str
    name: str
    nca_id: str
    created_at: float

    def to_dict(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "ncaId": self.nca_id, "createdAt": self.created_at}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(fields.id("id"), fields.text("name"), fields.text("ncaId"), fields.number("createdAt"))


@dataclass(frozen=True)
class FunctionVersion(_Record):
    """One immutable version of a function. Key: its id.

    Exactly one of `process` and `container_image` is set.
    """

    id: str
    function_id: str
    name: str
    nca_id: str
    created_at: float
    inference_url: str = "/"
    description: str | None = None
    tags: tuple[str, ...] = ()
    function_type: FunctionType = FunctionType.DEFAULT
    container_image: str | None = None
    process: ProcessSource | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "functionId": self.function_id,
            "name": self.name,
            "ncaId": self.nca_id,
            "createdAt": self.created_at,
            "inferenceUrl": self.inference_url,
            "description": self.description,
            "tags": list(self.tags),
            "functionType": self.function_type.value,
            "containerImage": self.container_image,
            "process": self.process.to_dict() if self.process else None,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            id=fields.id("id"),
            function_id=fields.id("functionId"),
            name=fields.text("name"),
            nca_id=fields.text("ncaId"),
            created_at=fields.number("createdAt"),
            inference_url=fields.text("inferenceUrl", "/"),
            description=fields.optional_text("description"),
            tags=fields.texts("tags"),
            function_type=FunctionType(fields.text("functionType", "DEFAULT", choices=list(FunctionType))),
            container_image=fields.optional_text("containerImage"),
            process=ProcessSource.from_fields(fields.object("process")) if fields.has("process") else None,
        )


@dataclass(frozen=True)
class DeploymentSpecification(_Record):
    """How many instances of which kind; the JSON form is the management API's."""

    gpu: str = "CPU"
    instance_type: str = "process"
    min_instances: int = 1
    max_instances: int = 1
    max_request_concurrency: int = 1
    clusters: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "gpu": self.gpu,
            "instanceType": self.instance_type,
            "minInstances": self.min_instances,
            "maxInstances": self.max_instances,
            "maxRequestConcurrency": self.max_request_concurrency,
            "clusters": list(self.clusters),
            "regions": list(self.regions),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        minimum = fields.integer("minInstances", 1, maximum=1000)
        return cls(
            gpu=fields.text("gpu", "CPU", max_length=128),
            instance_type=fields.text("instanceType", "process", max_length=128),
            min_instances=minimum,
            max_instances=fields.integer(
                "maxInstances", max(1, minimum), minimum=max(1, minimum), maximum=1000
            ),
            max_request_concurrency=fields.integer("maxRequestConcurrency", 1, minimum=1, maximum=1024),
            clusters=fields.texts("clusters"),
            regions=fields.texts("regions"),
        )


@dataclass(frozen=True)
class Deployment(_Record):
    """A version that shall have instances. Key: the version's id; no record = not deployed."""

    version_id: str
    function_id: str
    created_at: float
    specifications: tuple[DeploymentSpecification, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "functionVersionId": self.version_id,
            "functionId": self.function_id,
            "createdAt": self.created_at,
            "deploymentSpecifications": [spec.to_dict() for spec in self.specifications],
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            version_id=fields.id("functionVersionId"),
            function_id=fields.id("functionId"),
            created_at=fields.number("createdAt"),
            specifications=fields.objects("deploymentSpecifications", DeploymentSpecification.from_fields),
        )


@dataclass(frozen=True)
class Instance(_Record):
    """One running copy of a version, reported by the agent that owns it. Key: `VERSION.INSTANCE`."""

    id: str
    function_id: str
    version_id: str
    cluster_id: str
    state: InstanceState
    updated_at: float
    created_at: float
    pid: int | None = None
    restarts: int = 0
    reason: str | None = None
    log_path: str | None = None
    health_port: int | None = None
    ready_at: float | None = None

    @property
    def key(self) -> str:
        """Key in INSTANCES_BUCKET."""
        return f"{self.version_id}.{self.id}"

    def changed(self, now: float, **changes: Any) -> Self:
        """A copy with fields changed and `updated_at` set to `now`."""
        return replace(self, updated_at=now, **changes)

    def to_dict(self) -> dict[str, Any]:
        return {
            "instanceId": self.id,
            "functionId": self.function_id,
            "functionVersionId": self.version_id,
            "clusterId": self.cluster_id,
            "state": self.state.value,
            "createdAt": self.created_at,
            "updatedAt": self.updated_at,
            "readyAt": self.ready_at,
            "pid": self.pid,
            "restarts": self.restarts,
            "reason": self.reason,
            "logPath": self.log_path,
            "healthPort": self.health_port,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            id=fields.id("instanceId"),
            function_id=fields.id("functionId"),
            version_id=fields.id("functionVersionId"),
            cluster_id=fields.text("clusterId"),
            state=InstanceState(fields.text("state", choices=list(InstanceState))),
            created_at=fields.number("createdAt"),
            updated_at=fields.number("updatedAt"),
            ready_at=fields.number("readyAt") if fields.has("readyAt") else None,
            pid=fields.integer("pid") if fields.has("pid") else None,
            restarts=fields.integer("restarts", 0),
            reason=fields.optional_text("reason"),
            log_path=fields.optional_text("logPath"),
            health_port=fields.integer("healthPort") if fields.has("healthPort") else None,
        )


@dataclass(frozen=True)
class ApiKey(_Record):
    """An API key without its secret. Key: its id, 12 hex digits.

    `secret_hash` is the SHA-256 of the key text as 64 hex digits.
    """

    id: str
    secret_hash: str
    nca_id: str
    scopes: tuple[Scope, ...]
    created_at: float
    description: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "secretHash": self.secret_hash,
            "ncaId": self.nca_id,
            "scopes": [scope.value for scope in self.scopes],
            "createdAt": self.created_at,
            "description": self.description,
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            id=fields.text("id", pattern=r"[0-9a-f]{12}"),
            secret_hash=fields.text("secretHash", pattern=r"[0-9a-f]{64}"),
            nca_id=fields.text("ncaId"),
            scopes=tuple(Scope(text) for text in fields.texts("scopes") if text in set(Scope)),
            created_at=fields.number("createdAt"),
            description=fields.optional_text("description"),
        )

    def allows(self, scope: Scope) -> bool:
        """Whether the key carries `scope` itself or by being an admin key."""
        return scope in self.scopes or (Scope.ADMIN in self.scopes and scope is not Scope.AGENT)
