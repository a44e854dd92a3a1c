"""JSON schemas of the HTTP API's documents (OpenAPI 3.1, JSON Schema 2020-12).

Those of bodies and stored records are generated from the records. An answer differs from what is stored by
a few members, and its times are RFC 3339.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec

from nvcf_gateway.clusters.registration import ClusterChange, ClusterCreation
from nvcf_gateway.management import bodies, deployment_bodies, function_bodies, secret_bodies
from nvcf_gateway.management.events import KINDS
from nvcf_gateway.management.invocation_tokens import FunctionsTokenCreation, TokenCreation
from nvcf_gateway.management.shown import INSTANCE_TIMES
from nvcf_gateway.objects.assets import AssetCreation
from nvcf_gateway.quotas.limits import Quota
from nvcf_gateway.secrets.delivery import SecretTokenRequest
from nvcf_gateway.tasks.bodies import TaskCreation
from nvcf_proto.compute import Cluster, Event
from nvcf_proto.icms.reports import Acknowledgement, Heartbeat, Introspection, Jwks, Registration
from nvcf_proto.models import (
    NAME_PATTERN,
    ApiKey,
    Deployment,
    FunctionVersion,
    Instance,
    InstanceState,
    Record,
    TelemetryEndpoint,
    VersionStatus,
)
from nvcf_proto.models.secrets import SECRET_NAME_PATTERN

Schema = dict[str, Any]

UUID: Schema = {"type": "string", "format": "uuid"}
TEXT: Schema = {"type": "string"}
TIME: Schema = {"type": "string", "format": "date-time"}
INTEGER: Schema = {"type": "integer"}
NAME: Schema = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
KEY_ID: Schema = {"type": "string", "pattern": "^[0-9a-f]{12}$"}
SECRET_NAME: Schema = {"type": "string", "pattern": f"^{SECRET_NAME_PATTERN}$"}
EVENT_KIND: Schema = {"type": "string", "enum": list(KINDS)}
_PREFIX = "#/components/schemas/"
_NULL: Schema = {"type": "null"}

_BODIES = (
    bodies.Authorizations,
    bodies.DeploymentCreation,
    function_bodies.FunctionCreation,
    bodies.KeyCreation,
    bodies.PartyChange,
    bodies.RateLimitPolicy,
    bodies.TelemetryChange,
    bodies.TelemetryCreation,
    function_bodies.MetadataUpdate,
    FunctionsTokenCreation,
    TokenCreation,
    function_bodies.RateLimitUpdate,
    function_bodies.VersionCreation,
    function_bodies.VersionUpdate,
    secret_bodies.RegistryChange,
    secret_bodies.RegistryCreation,
    secret_bodies.SecretsChange,
    secret_bodies.TelemetrySecretChange,
    SecretTokenRequest,
    TaskCreation,
    deployment_bodies.SpecificationUpdate,
    AssetCreation,
    ClusterChange,
    ClusterCreation,
    Registration,
    Heartbeat,
    Acknowledgement,
    Introspection,
    Jwks,
)
_OPEN = ("ClusterChange", "ClusterCreation")
"""Bodies that may have members which nobody knows."""
_HIDDEN = ("secretHash", "revokedAt", "createdBy", "versions")
_STORED = (ApiKey, Cluster, Deployment, Event, FunctionVersion, Instance, TelemetryEndpoint)
_NAMES = {"Health": "ContainerHealth", "ProcessSource": "Process", "ScalingPreferences": "Scaling"}


def ref(name: str) -> Schema:
    """Return a reference to the schema of that name."""
    return {"$ref": _PREFIX + name}


def object_of(properties: dict[str, Schema], *required: str, **more: Any) -> Schema:
    """Return the schema of an object."""
    return {"type": "object", "properties": properties, "required": list(required), **more}


def list_of(items: Schema, **more: Any) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items, **more}


def enum_of(values: Any) -> Schema:
    """Return the schema of an enumeration."""
    return {"type": "string", "enum": [each.value for each in values]}


@functools.cache
def _generated() -> dict[str, Schema]:
    """Return the schemas of all records by name, in the form that this document has."""
    _, components = msgspec.json.schema_components((*_BODIES, *_STORED), ref_template=_PREFIX + "{name}")
    found = {_NAMES.get(name, name): _tidied(schema) for name, schema in components.items()}
    for schema_name, schema in found.items():
        if "enum" in schema:
            schema["type"] = "string"
        elif schema.get("additionalProperties") is False or schema_name in _OPEN:
            _accept_null(schema)
    return found


def _tidied(schema: Any) -> Any:
    """Drop titles and empty defaults, and write patterns in the form of JSON Schema."""
    if isinstance(schema, list):
        return [_tidied(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tidied = {name: _tidied(value) for name, value in schema.items() if name != "title"}
    default = tidied.get("default")
    if default is None or isinstance(default, (list, dict)) or default == 0 < tidied.get("minimum", 0):
        tidied.pop("default", None)
    if isinstance(pattern := tidied.get("pattern"), str):
        tidied["pattern"] = pattern.replace(r"\Z", "$")
        if tidied.get("format") == "uuid":
            del tidied["pattern"]
    if "$ref" in tidied:
        name = tidied["$ref"].removeprefix(_PREFIX)
        tidied["$ref"] = _PREFIX + _NAMES.get(name, name)
    return tidied


def _accept_null(schema: Schema) -> None:
    """Allow null for members that a body may leave out."""
    for name, member in schema["properties"].items():
        if name not in schema["required"] and _NULL not in member.get("anyOf", ()):
            schema["properties"][name] = {"anyOf": [member, _NULL]}


def _answer(
    record: type[Record],
    times: tuple[str, ...],
    /,
    *,
    without: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
    **more: Schema,
) -> Schema:
    """Return the schema of a stored record as it is answered: with `more` members, and `times` as text."""
    schema = _generated()[record.__name__]
    properties: dict[str, Schema] = {}
    for name, member in {**schema["properties"], **dict.fromkeys(times, TIME), **more}.items():
        if name not in without:
            kinds = [each for each in member.get("anyOf", ()) if each != _NULL]
            plain = kinds[0] if len(kinds) == 1 else member
            properties[name] = {key: value for key, value in plain.items() if key != "default"}
    return object_of(properties, *(name for name in schema["required"] if name in properties), *required)


def _listed(name: str, member: str, schema: Schema) -> dict[str, Schema]:
    return {name: object_of({member: list_of(schema)}, member)}


def _wrapped(name: str, member: str) -> dict[str, Schema]:
    return {f"{name}Answer": object_of({member: ref(name)}, member)}


def schemas() -> dict[str, Schema]:
    """Return the schemas of all documents but the dashboard's."""
    stored = {kind.__name__ for kind in _STORED}
    return {
        **{name: schema for name, schema in _generated().items() if name not in stored},
        **_answers(),
        **_wrapped("Version", "function"),
        **_listed("VersionList", "functions", ref("Version")),
        **_wrapped("Deployment", "deployment"),
        **_listed("InstanceList", "instances", _answer(Instance, INSTANCE_TIMES, clusterName=TEXT)),
        **_listed("EventList", "events", _answer(Event, ("at",), kind=EVENT_KIND, functionVersionId=UUID)),
        **_listed("ClusterList", "clusters", _answer(Cluster, ("heartbeatAt",), required=("pools",))),
        **_wrapped("Key", "key"),
        **_listed("KeyList", "keys", ref("Key")),
        **_wrapped("Telemetry", "telemetry"),
        **_listed("TelemetryList", "telemetries", ref("Telemetry")),
        "Quotas": {
            "type": "object",
            "required": ["account", "quotas"],
            "properties": {
                "account": {"type": "string"},
                "quotas": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["quota", "used", "limit"],
                        "properties": {
                            "quota": {"type": "string", "enum": list(Quota)},
                            "used": {"type": "integer", "minimum": 0},
                            "limit": {"type": ["integer", "null"], "minimum": 0},
                        },
                    },
                },
            },
        },
        **_OTHERS,
    }


def _answers() -> dict[str, Schema]:
    """Return the schemas of answers about stored records."""
    shown_once: Schema = {
        "type": "string",
        "description": "The key itself: shown when it is made, never again.",
    }
    files = list_of(TEXT, description="Files that must lie in the agents' folder of secrets.")
    return {
        "Version": _answer(
            FunctionVersion,
            ("createdAt",),
            without=("functionId", "hasSecrets"),
            required=("versionId", "status"),
            versionId=UUID,
            status=enum_of(VersionStatus),
            statusReason=TEXT,
            instances=INTEGER,
            rateLimit={
                "allOf": [ref("RateLimit")],
                "properties": {"rateLimit": TEXT, "exemptedNcaIds": list_of(TEXT)},
            },
            activeInstances=list_of(ref("ActiveInstance")),
            secrets=list_of(SECRET_NAME, description="Names of its secrets."),
        ),
        "Deployment": _answer(
            Deployment,
            ("createdAt", "lastUpdatedAt"),
            required=("deploymentSpecifications", "deploymentId", "lastUpdatedAt", "healthInfo"),
            ncaId=TEXT,
            functionName=TEXT,
            functionStatus=enum_of(VersionStatus),
            healthInfo=list_of(
                object_of(
                    {
                        "icmsRequestId": TEXT,
                        "gpu": TEXT,
                        "backend": {"type": "string", "description": "The cluster group, or the cluster."},
                        "instanceType": TEXT,
                        "error": TEXT,
                    },
                    "icmsRequestId",
                    "error",
                ),
                description="Why instances failed, the newest first.",
            ),
        ),
        "UndeploymentAnswer": object_of(
            {"deployment": ref("Deployment"), "function": ref("Version")}, "deployment", "function"
        ),
        "SpecificationAnswer": object_of(
            {"gpuSpecification": ref("DeploymentSpecification")}, "gpuSpecification"
        ),
        "Key": _answer(
            ApiKey,
            ("createdAt", "expiresAt"),
            without=_HIDDEN,
            key=shown_once,
        ),
        "Telemetry": _answer(TelemetryEndpoint, ("createdAt",), secretFiles=files),
        "AuthorizationsAnswer": object_of(
            {
                "function": object_of(
                    {"id": UUID, "ncaId": TEXT, "authorizedParties": list_of(ref("Party"))},
                    "id",
                    "authorizedParties",
                )
            },
            "function",
        ),
        "RateLimitAnswer": object_of(
            {"functionId": UUID, "functionVersionId": UUID, "config": ref("RateLimit")},
            "functionId",
            "functionVersionId",
            "config",
        ),
    }


_OTHERS: dict[str, Schema] = {
    "Problem": object_of(
        {
            "type": TEXT,
            "title": TEXT,
            "status": INTEGER,
            "detail": TEXT,
            "field": {"type": "string", "description": "Path of the offending field of the body."},
            "violated-policies": list_of(TEXT, description="Rate limits that the call would have broken."),
        },
        "type",
        "title",
        "status",
        description="RFC 9457.",
    ),
    "ActiveInstance": object_of(
        {
            "instanceId": TEXT,
            "functionId": UUID,
            "functionVersionId": UUID,
            "ncaId": TEXT,
            "instanceType": TEXT,
            "instanceStatus": {"type": "string", "enum": ["ACTIVE"]},
            "status": enum_of(InstanceState),
            "gpu": TEXT,
            "location": {"type": "string", "description": "The cluster."},
            "instanceCreatedAt": TIME,
            "instanceUpdatedAt": TIME,
        },
        "instanceId",
        "instanceStatus",
        description="An instance that has not ended.",
    ),
    "ExecRequest": object_of(
        {
            "requestHeader": object_of(
                {
                    "inputAssetReferences": list_of(TEXT),
                    "pollDurationSeconds": {"type": "integer", "minimum": 1, "maximum": 3600},
                }
            ),
            "requestBody": {"description": "Any JSON: the function's input."},
        }
    ),
    "ExecAnswer": object_of(
        {
            "reqId": UUID,
            "status": {
                "type": "string",
                "enum": ["errored", "in-progress", "fulfilled", "pending-evaluation", "rejected"],
            },
            "responseReference": TEXT,
            "percentComplete": {"type": "integer"},
            "errorCode": {"type": "integer"},
            "response": {"description": "Any JSON: the function's answer."},
        },
        "reqId",
        "status",
    ),
    "AssetList": object_of({"assets": list_of(ref("Asset"))}, "assets"),
    "Asset": object_of({"assetId": UUID, "contentType": TEXT, "description": TEXT}, "assetId", "contentType"),
    "AssetAnnounced": object_of(
        {"assetId": UUID, "uploadUrl": TEXT, "contentType": TEXT, "description": TEXT},
        "assetId",
        "uploadUrl",
    ),
    "Health": object_of({"status": TEXT}, "status"),
    "Readiness": object_of(
        {
            "status": {"type": "string", "enum": ["ok", "degraded", "unavailable", "stopping"]},
            "troubles": list_of(
                object_of({"part": TEXT, "detail": TEXT, "since": TEXT}, "part", "detail", "since")
            ),
        },
        "status",
        "troubles",
    ),
}
