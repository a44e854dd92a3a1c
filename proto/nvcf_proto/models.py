"""Records of the platform's state: JetStream key-value buckets, their keys and their JSON values.

Times are Unix seconds. `from_json` raises InvalidRecord naming the field; fields that a newer writer
added are ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from nvcf_proto.errors import InvalidRecord
from nvcf_proto.records import Fields, dump_object, load_object

FUNCTIONS_BUCKET = "nvcf_functions"
VERSIONS_BUCKET = "nvcf_versions"
DEPLOYMENTS_BUCKET = "nvcf_deployments"
INSTANCES_BUCKET = "nvcf_instances"
API_KEYS_BUCKET = "nvcf_api_keys"

NAME_PATTERN = r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}"
ACCOUNT_PATTERN = r"[a-zA-Z0-9_.:@-]{1,128}"
RATE_PATTERN = r"[0-9]{1,9}-[SMHD](,[0-9]{1,9}-[SMHD]){0,7}"
MAX_ACCOUNTS_IN_LIST = 256


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
    """What an API key may do. ADMIN includes all the others but AGENT and SERVICE.

    AGENT and SERVICE reach across accounts: agents fetch worker tokens, services (an invocation service or a
    rate limiter of another make) ask on behalf of callers.
    """

    INVOKE = "invoke"
    LIST = "list"
    MANAGE = "manage"
    DEPLOY = "deploy"
    ADMIN = "admin"
    AGENT = "agent"
    SERVICE = "service"


class Record:
    """Something stored or sent as a JSON object."""

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
class ProcessSource(Record):
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


def account_list(fields: Fields, name: str) -> tuple[str, ...]:
    """A list of account ids without repetitions, in its order. Raises InvalidRecord."""
    values = fields.texts(name)
    if len(values) > MAX_ACCOUNTS_IN_LIST:
        raise InvalidRecord(fields.path(name), f"more than {MAX_ACCOUNTS_IN_LIST} accounts")
    for index, value in enumerate(values):
        if not re.fullmatch(ACCOUNT_PATTERN, value):
            raise InvalidRecord(f"{fields.path(name)}[{index}]", f"does not match {ACCOUNT_PATTERN}")
    return tuple(dict.fromkeys(values))


@dataclass(frozen=True)
class RateLimit(Record):
    """Rate limits of a version; JSON as RateLimitPolicyResponse (protocol.md section 1), and `syncCheck`.

    A rate is `N-S`, `N-M`, `N-H` or `N-D`, calls per second, minute, hour or day, or several of them with
    commas, all of which hold. `rate` is what each account may call unless `account_rates` has an
    entry for it; `excluded` accounts are exempt from `rate`; `user_rate` holds for each caller in addition.
    With `sync_check` every call waits for the answer that all replicas share.
    """

    rate: str | None = None
    excluded: tuple[str, ...] = ()
    account_rates: tuple[tuple[str, str], ...] = ()
    user_rate: str | None = None
    sync_check: bool = False

    def to_dict(self) -> dict[str, Any]:
        members = {
            "rate": self.rate,
            "excludedNcaIds": list(self.excluded),
            "perNcaIdConfigs": [{"ncaId": account, "rate": rate} for account, rate in self.account_rates],
            "perUserRate": self.user_rate,
            "syncCheck": self.sync_check,
        }
        return {key: value for key, value in members.items() if value is not None}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        rates = fields.objects("perNcaIdConfigs", _account_rate)
        if len(rates) > MAX_ACCOUNTS_IN_LIST:
            raise InvalidRecord(fields.path("perNcaIdConfigs"), f"more than {MAX_ACCOUNTS_IN_LIST} accounts")
        known: set[str] = set()
        for index, (account, _) in enumerate(rates):
            if account in known:
                raise InvalidRecord(
                    fields.path(f"perNcaIdConfigs[{index}].ncaId"), f"a second entry for {account}"
                )
            known.add(account)
        return cls(
            rate=fields.optional_text("rate", pattern=RATE_PATTERN),
            excluded=account_list(fields, "excludedNcaIds"),
            account_rates=rates,
            user_rate=fields.optional_text("perUserRate", pattern=RATE_PATTERN),
            sync_check=fields.boolean("syncCheck", False),
        )


def _account_rate(fields: Fields) -> tuple[str, str]:
    fields.only(("ncaId", "rate"))
    return fields.text("ncaId", pattern=ACCOUNT_PATTERN), fields.text("rate", pattern=RATE_PATTERN)


@dataclass(frozen=True)
class Function(Record):
    """A function: a name under which versions are published. Key: its id.

    The accounts in `authorized` may invoke it as its own account may.
    """

    id: str
    name: str
    nca_id: str
    created_at: float
    authorized: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "ncaId": self.nca_id,
            "createdAt": self.created_at,
            "authorizedNcaIds": list(self.authorized),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            id=fields.id("id"),
            name=fields.text("name"),
            nca_id=fields.text("ncaId"),
            created_at=fields.number("createdAt"),
            authorized=account_list(fields, "authorizedNcaIds"),
        )

    def may_be_invoked_by(self, nca_id: str) -> bool:
        """Whether the function is the account's own or shared with it."""
        return nca_id == self.nca_id or nca_id in self.authorized


@dataclass(frozen=True)
class FunctionVersion(Record):
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
    rate_limit: RateLimit | None = None

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
            "rateLimit": self.rate_limit.to_dict() if self.rate_limit else None,
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
            rate_limit=RateLimit.from_fields(fields.object("rateLimit")) if fields.has("rateLimit") else None,
        )


@dataclass(frozen=True)
class DeploymentSpecification(Record):
    """How many instances of which kind; the JSON form is the management API's."""

    gpu: str = "CPU"
    instance_type: str = "process"
    min_instances: int = 1
    max_instances: int = 1
    max_request_concurrency: int = 1
    clusters: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    cluster_group: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    gpus_per_instance: int = 0

    def id(self, index: int) -> str:
        """The specification's id within its deployment: its kind and its place in the preferred order."""
        return f"{index}-{self.gpu}-{self.instance_type}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "gpu": self.gpu,
            "instanceType": self.instance_type,
            "minInstances": self.min_instances,
            "maxInstances": self.max_instances,
            "maxRequestConcurrency": self.max_request_concurrency,
            "clusters": list(self.clusters),
            "regions": list(self.regions),
            **({} if self.cluster_group is None else {"clusterGroup": self.cluster_group}),
            **({"attributes": self.attributes} if self.attributes else {}),
            **({"gpusPerInstance": self.gpus_per_instance} if self.gpus_per_instance else {}),
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
            cluster_group=fields.optional_text("clusterGroup", max_length=128),
            attributes=fields.text_map("attributes"),
            gpus_per_instance=fields.integer("gpusPerInstance", 0, maximum=64),
        )


@dataclass(frozen=True)
class ScalingRule(Record):
    """ScalingDetails of section 1: past `threshold` percent the instance count is multiplied by `factor`.

    `stickiness_size` and `stickiness_threshold` are seconds (below 1 h, the second below the first).
    """

    factor: float
    threshold: int
    metric: str = "utilization"
    stickiness_size: float | None = None
    stickiness_threshold: float | None = None

    def to_dict(self) -> dict[str, Any]:
        rule: dict[str, Any] = {"metric": self.metric, "factor": self.factor, "threshold": self.threshold}
        if self.stickiness_size is not None:
            rule["stickiness"] = {"size": self.stickiness_size, "threshold": self.stickiness_threshold}
        return rule

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        fields.only(("metric", "factor", "threshold", "stickiness"))
        size = threshold = None
        if fields.has("stickiness"):
            stickiness = fields.object("stickiness")
            size, threshold = stickiness.number("size"), stickiness.number("threshold")
            if not 0 < size < 3600:
                raise InvalidRecord(stickiness.path("size"), "expected above 0 and below 3600 seconds")
            if not 0 <= threshold < size:
                raise InvalidRecord(stickiness.path("threshold"), "expected at least 0 and below size")
        return cls(
            factor=fields.number("factor"),
            threshold=fields.integer("threshold", maximum=100),
            metric=fields.text("metric", "utilization", choices=("utilization",)),
            stickiness_size=size,
            stickiness_threshold=threshold,
        )


@dataclass(frozen=True)
class ScalingPreferences(Record):
    """What a deployment says about scaling beyond its bounds; None: the policy's own choice.

    `wait_slo` and `scale_to_zero_delay` are seconds, `target_utilisation` is a share (0..1), `keep_warm`
    a number of instances.
    """

    wait_slo: float | None = None
    target_utilisation: float | None = None
    scale_to_zero_delay: float | None = None
    keep_warm: int = 0
    scale_up: ScalingRule | None = None
    scale_down: ScalingRule | None = None

    def to_dict(self) -> dict[str, Any]:
        members = {
            "waitSlo": self.wait_slo,
            "targetUtilisation": self.target_utilisation,
            "scaleToZeroDelay": self.scale_to_zero_delay,
            "keepWarm": self.keep_warm,
            "scaleUpDetails": self.scale_up.to_dict() if self.scale_up else None,
            "scaleDownDetails": self.scale_down.to_dict() if self.scale_down else None,
        }
        return {key: value for key, value in members.items() if value is not None}

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        fields.only(
            (
                "waitSlo",
                "targetUtilisation",
                "scaleToZeroDelay",
                "keepWarm",
                "scaleUpDetails",
                "scaleDownDetails",
            )
        )
        up, down = fields.has("scaleUpDetails"), fields.has("scaleDownDetails")
        if up != down:
            raise InvalidRecord(
                fields.path("scaleUpDetails"), "scaleUpDetails and scaleDownDetails belong together"
            )
        return cls(
            wait_slo=_bounded(fields, "waitSlo", 0.001, 3600.0),
            target_utilisation=_bounded(fields, "targetUtilisation", 0.01, 1.0),
            scale_to_zero_delay=_bounded(fields, "scaleToZeroDelay", 0.0, 7 * 24 * 3600.0),
            keep_warm=fields.integer("keepWarm", 0, maximum=1000),
            scale_up=ScalingRule.from_fields(fields.object("scaleUpDetails")) if up else None,
            scale_down=ScalingRule.from_fields(fields.object("scaleDownDetails")) if down else None,
        )


def _bounded(fields: Fields, name: str, minimum: float, maximum: float) -> float | None:
    if not fields.has(name):
        return None
    value = fields.number(name)
    if not minimum <= value <= maximum:
        raise InvalidRecord(fields.path(name), f"expected {minimum:g} to {maximum:g}, got {value:g}")
    return value


def _optional_count(fields: Fields, name: str, maximum: int) -> int | None:
    return fields.integer(name, minimum=1, maximum=maximum) if fields.has(name) else None


@dataclass(frozen=True)
class Deployment(Record):
    """A version that shall have instances. Key: the version's id; no record = not deployed.

    `keep_queued` [ext]: requests still unanswered at the end of the poll time stay, and can be polled.
    `max_queue_depth`: requests that may be queued or in work; `max_body_bytes`: size of one request's body;
    None: only the contract's and the installation's bounds.
    """

    version_id: str
    function_id: str
    created_at: float
    specifications: tuple[DeploymentSpecification, ...]
    keep_queued: bool = True
    max_queue_depth: int | None = None
    max_body_bytes: int | None = None
    scaling: ScalingPreferences | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "functionVersionId": self.version_id,
            "functionId": self.function_id,
            "createdAt": self.created_at,
            "deploymentSpecifications": [spec.to_dict() for spec in self.specifications],
            "keepQueued": self.keep_queued,
            "maxQueueDepth": self.max_queue_depth,
            "maxBodyBytes": self.max_body_bytes,
            "scaling": None if self.scaling is None else self.scaling.to_dict(),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        return cls(
            version_id=fields.id("functionVersionId"),
            function_id=fields.id("functionId"),
            created_at=fields.number("createdAt"),
            specifications=fields.objects("deploymentSpecifications", DeploymentSpecification.from_fields),
            keep_queued=fields.boolean("keepQueued", True),
            max_queue_depth=_optional_count(fields, "maxQueueDepth", 100_000),
            max_body_bytes=_optional_count(fields, "maxBodyBytes", 2**63 - 1),
            scaling=ScalingPreferences.from_fields(fields.object("scaling"))
            if fields.has("scaling")
            else None,
        )


@dataclass(frozen=True)
class Instance(Record):
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
    specification_id: str | None = None
    gpu: str | None = None
    visible_devices: str | None = None
    draining_since: float | None = None

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
            "gpuSpecificationId": self.specification_id,
            "gpu": self.gpu,
            "visibleDevices": self.visible_devices,
            "drainingSince": self.draining_since,
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
            specification_id=fields.optional_text("gpuSpecificationId"),
            gpu=fields.optional_text("gpu"),
            visible_devices=fields.optional_text("visibleDevices"),
            draining_since=fields.number("drainingSince") if fields.has("drainingSince") else None,
        )


@dataclass(frozen=True)
class ApiKey(Record):
    """An API key without its secret. Key: its id, 12 hex digits.

    `secret_hash` is the SHA-256 of the key text as 64 hex digits. From `expires_at` on the key is void. With
    `function_ids` it is good for these functions only. A revoked key keeps its record, so that nobody
    takes it for one that is still to be made; its hash is gone.
    """

    id: str
    secret_hash: str
    nca_id: str
    scopes: tuple[Scope, ...]
    created_at: float
    description: str | None = None
    expires_at: float | None = None
    function_ids: tuple[str, ...] = ()
    revoked_at: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "secretHash": self.secret_hash,
            "ncaId": self.nca_id,
            "scopes": [scope.value for scope in self.scopes],
            "createdAt": self.created_at,
            "description": self.description,
            "expiresAt": self.expires_at,
            "functionIds": list(self.function_ids),
            "revokedAt": self.revoked_at,
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
            expires_at=fields.number("expiresAt") if fields.has("expiresAt") else None,
            function_ids=fields.texts("functionIds"),
            revoked_at=fields.number("revokedAt") if fields.has("revokedAt") else None,
        )

    def allows(self, scope: Scope) -> bool:
        """Whether the key carries `scope` itself or by being an admin key."""
        across = (Scope.AGENT, Scope.SERVICE)
        return scope in self.scopes or (Scope.ADMIN in self.scopes and scope not in across)

    def covers(self, function_id: str) -> bool:
        """Whether the key is good for this function."""
        return not self.function_ids or function_id in self.function_ids

    def is_live(self, now: float) -> bool:
        """Whether the key is neither expired nor revoked at `now` (Unix seconds)."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def revoked(self, now: float) -> Self:
        """The record of the same key, revoked."""
        return replace(self, revoked_at=now, secret_hash="0" * 64)
