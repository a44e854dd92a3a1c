"""JSON schemas of the HTTP API's documents (OpenAPI 3.1, JSON Schema 2020-12)."""

from __future__ import annotations

from typing import Any

from nvcf_proto.models import (
    ACCOUNT_PATTERN,
    MAX_ACCOUNTS_IN_LIST,
    NAME_PATTERN,
    RATE_PATTERN,
    FunctionType,
    InstanceState,
    Scope,
    VersionStatus,
)

Schema = dict[str, Any]

UUID: Schema = {"type": "string", "format": "uuid"}
TEXT: Schema = {"type": "string"}
TIME: Schema = {"type": "string", "format": "date-time"}
ACCOUNT: Schema = {"type": "string", "pattern": f"^{ACCOUNT_PATTERN}$"}
NAME: Schema = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
RATE: Schema = {
    "type": "string",
    "pattern": f"^{RATE_PATTERN}$",
    "examples": ["100-S", "5-S,300-H"],
    "description": "N-S, N-M, N-H or N-D: calls per second, minute, hour or day; several with commas.",
}
KEY_ID: Schema = {"type": "string", "pattern": "^[0-9a-f]{12}$"}
EVENT_KIND: Schema = {"type": "string", "enum": ["deployment", "scaling", "instance", "cluster"]}


def ref(name: str) -> Schema:
    """A reference to one of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def thing(properties: dict[str, Schema], *required: str, closed: bool = False, **more: Any) -> Schema:
    """An object that is answered, or with `closed` one that is sent.

    Of what is sent, unknown members are refused, and null stands for a member that is left out.
    """
    if closed:
        properties = {
            name: member if name in required else {"anyOf": [member, {"type": "null"}]}
            for name, member in properties.items()
        }
    schema: Schema = {"type": "object", "properties": properties, **more}
    if required:
        schema["required"] = list(required)
    if closed:
        schema["additionalProperties"] = False
    return schema


def many(items: Schema, **more: Any) -> Schema:
    """A list."""
    return {"type": "array", "items": items, **more}


def _number(minimum: float, maximum: float, description: str | None = None) -> Schema:
    schema: Schema = {"type": "number", "minimum": minimum, "maximum": maximum}
    return schema if description is None else {**schema, "description": description}


def one_of(values: Any) -> Schema:
    """A text out of an enumeration."""
    return {"type": "string", "enum": [each.value for each in values]}


_VERSION_FIELDS: dict[str, Schema] = {
    "inferenceUrl": {"type": "string", "pattern": "^/[\\x21-\\x7e]*$", "maxLength": 2048, "default": "/"},
    "description": {"type": "string", "maxLength": 1024},
    "tags": many(TEXT),
    "functionType": {**one_of(FunctionType), "default": "DEFAULT"},
    "containerImage": {"type": "string", "pattern": "^[\\x21-\\x7e]+$", "maxLength": 1024},
    "process": ref("Process"),
    "telemetries": ref("Telemetries"),
}
_ONE_SOURCE = "Give either containerImage or process."
_POSITIVE: Schema = {"type": "integer", "minimum": 1, "maximum": 1000}

SCHEMAS: dict[str, Schema] = {
    "Problem": thing(
        {
            "type": TEXT,
            "title": TEXT,
            "status": {"type": "integer"},
            "detail": TEXT,
            "field": {"type": "string", "description": "Path of the offending field of the body."},
            "violated-policies": many(TEXT, description="Rate limits that the call would have broken."),
        },
        "type",
        "title",
        "status",
        description="RFC 9457.",
    ),
    "Process": thing(
        {
            "python": {"type": "string", "pattern": "^/.+$"},
            "file": {"type": "string", "pattern": "^/.+$"},
            "workingDirectory": {"type": "string", "pattern": "^/.*$"},
            "handler": {"type": ["string", "null"], "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
            "environment": {"type": "object", "additionalProperties": TEXT},
        },
        "python",
        "file",
        "workingDirectory",
    ),
    "FunctionCreation": thing(
        {"name": NAME, **_VERSION_FIELDS}, "name", closed=True, description=_ONE_SOURCE
    ),
    "VersionCreation": thing({"name": NAME, **_VERSION_FIELDS}, closed=True, description=_ONE_SOURCE),
    "Version": thing(
        {
            "id": UUID,
            "versionId": UUID,
            "name": NAME,
            "ncaId": TEXT,
            "status": one_of(VersionStatus),
            "statusReason": TEXT,
            **_VERSION_FIELDS,
            "rateLimit": ref("RateLimit"),
            "createdAt": TIME,
            "instances": {"type": "integer"},
        },
        "id",
        "versionId",
        "name",
        "ncaId",
        "status",
        "createdAt",
    ),
    "VersionAnswer": thing({"function": ref("Version")}, "function"),
    "VersionList": thing({"functions": many(ref("Version"))}, "functions"),
    "RateLimit": thing(
        {
            "rate": RATE,
            "excludedNcaIds": many(ACCOUNT, maxItems=MAX_ACCOUNTS_IN_LIST),
            "perNcaIdConfigs": many(
                thing({"ncaId": ACCOUNT, "rate": RATE}, "ncaId", "rate", closed=True),
                maxItems=MAX_ACCOUNTS_IN_LIST,
            ),
            "perUserRate": RATE,
            "syncCheck": {"type": "boolean", "default": False},
        },
        closed=True,
    ),
    "RateLimitAnswer": thing(
        {"functionId": UUID, "functionVersionId": UUID, "config": ref("RateLimit")},
        "functionId",
        "functionVersionId",
        "config",
    ),
    "Authorizations": thing(
        {
            "authorizedParties": many(
                thing({"ncaId": ACCOUNT}, "ncaId", closed=True), maxItems=MAX_ACCOUNTS_IN_LIST
            )
        },
        "authorizedParties",
        closed=True,
    ),
    "AuthorizationsAnswer": thing(
        {
            "function": thing(
                {"id": UUID, "ncaId": TEXT, "authorizedParties": many(thing({"ncaId": TEXT}, "ncaId"))},
                "id",
                "authorizedParties",
            )
        },
        "function",
    ),
    "DeploymentCreation": thing(
        {
            "deploymentSpecifications": many(ref("DeploymentSpecification"), minItems=1),
            "keepQueued": {"type": "boolean", "default": True},
            "maxQueueDepth": {"type": "integer", "minimum": 1, "maximum": 100_000},
            "maxBodyBytes": {"type": "integer", "minimum": 1, "maximum": 2**63 - 1},
            "scaling": ref("Scaling"),
        },
        "deploymentSpecifications",
        closed=True,
    ),
    "Scaling": thing(
        {
            "waitSlo": _number(0.001, 3600, "Seconds that a request may wait."),
            "targetUtilisation": _number(0.01, 1),
            "scaleToZeroDelay": _number(0, 604_800, "Seconds without a request."),
            "keepWarm": {"type": "integer", "minimum": 0, "maximum": 1000},
            "scaleUpDetails": ref("ScalingRule"),
            "scaleDownDetails": ref("ScalingRule"),
        },
        closed=True,
        description="scaleUpDetails and scaleDownDetails belong together.",
    ),
    "ScalingRule": thing(
        {
            "metric": {"type": "string", "enum": ["utilization"]},
            "factor": {"type": "number"},
            "threshold": {"type": "integer", "minimum": 0, "maximum": 100},
            "stickiness": thing(
                {
                    "size": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 3600},
                    "threshold": {"type": "number", "minimum": 0, "description": "Below size."},
                },
                "size",
                "threshold",
            ),
        },
        "factor",
        "threshold",
        closed=True,
    ),
    "DeploymentSpecification": thing(
        {
            "gpu": {"type": "string", "maxLength": 128, "default": "CPU"},
            "instanceType": {"type": "string", "maxLength": 128, "default": "process"},
            "minInstances": {"type": "integer", "minimum": 0, "maximum": 1000, "default": 1},
            "maxInstances": {**_POSITIVE, "description": "At least minInstances."},
            "maxRequestConcurrency": {**_POSITIVE, "maximum": 1024, "default": 1},
            "clusters": many(TEXT),
            "regions": many(TEXT),
            "clusterGroup": {"type": "string", "maxLength": 128},
            "attributes": {"type": "object", "additionalProperties": TEXT},
            "gpusPerInstance": {"type": "integer", "minimum": 0, "maximum": 64, "default": 0},
        }
    ),
    "Deployment": thing(
        {
            "functionId": UUID,
            "functionVersionId": UUID,
            "functionName": TEXT,
            "functionStatus": one_of(VersionStatus),
            "createdAt": TIME,
            "deploymentSpecifications": many(ref("DeploymentSpecification")),
            "keepQueued": {"type": "boolean"},
            "maxQueueDepth": {"type": "integer"},
            "maxBodyBytes": {"type": "integer"},
            "scaling": ref("Scaling"),
        },
        "functionId",
        "functionVersionId",
        "deploymentSpecifications",
    ),
    "DeploymentAnswer": thing({"deployment": ref("Deployment")}, "deployment"),
    "InstanceList": thing(
        {
            "instances": many(
                thing(
                    {
                        "instanceId": UUID,
                        "functionId": UUID,
                        "functionVersionId": UUID,
                        "clusterId": TEXT,
                        "state": one_of(InstanceState),
                        "createdAt": TIME,
                        "updatedAt": TIME,
                        "readyAt": TIME,
                    },
                    "instanceId",
                    "state",
                )
            )
        },
        "instances",
    ),
    "EventList": thing(
        {
            "events": many(
                thing(
                    {
                        "at": TIME,
                        "kind": EVENT_KIND,
                        "functionVersionId": UUID,
                        "functionName": TEXT,
                        "text": TEXT,
                        "data": {"type": "object", "additionalProperties": TEXT},
                    },
                    "at",
                    "kind",
                    "functionVersionId",
                    "text",
                )
            )
        },
        "events",
    ),
    "ClusterList": thing(
        {
            "clusters": many(
                thing(
                    {
                        "clusterId": TEXT,
                        "region": TEXT,
                        "clusterGroup": TEXT,
                        "backend": TEXT,
                        "attributes": {"type": "object", "additionalProperties": TEXT},
                        "draining": {"type": "boolean"},
                        "heartbeatAt": TIME,
                        "pools": many(
                            thing(
                                {
                                    "gpu": TEXT,
                                    "instanceType": TEXT,
                                    "instancesTotal": {"type": "integer"},
                                    "instancesFree": {"type": "integer"},
                                },
                                "gpu",
                                "instanceType",
                                "instancesTotal",
                                "instancesFree",
                            )
                        ),
                    },
                    "clusterId",
                    "region",
                    "heartbeatAt",
                    "pools",
                )
            )
        },
        "clusters",
    ),
    "WorkerTokenRequest": thing(
        {"instanceId": UUID, "functionId": UUID, "functionVersionId": UUID},
        "instanceId",
        "functionId",
        "functionVersionId",
        closed=True,
    ),
    "WorkerToken": thing({"token": TEXT, "expiration": TIME}, "token", "expiration"),
    "KeyCreation": thing(
        {
            "scopes": many(one_of(Scope), minItems=1),
            "description": {"type": "string", "maxLength": 1024},
            "functionIds": many(UUID, minItems=1, maxItems=256),
            "expiresAt": {**TIME, "description": "In the future."},
            "ncaId": {**ACCOUNT, "description": "Another account than the caller's: scope service."},
        },
        "scopes",
        closed=True,
    ),
    "Key": thing(
        {
            "id": KEY_ID,
            "ncaId": TEXT,
            "scopes": many(one_of(Scope)),
            "description": TEXT,
            "functionIds": many(UUID),
            "createdAt": TIME,
            "expiresAt": TIME,
            "key": {"type": "string", "description": "The key itself: shown when it is made, never again."},
        },
        "id",
        "ncaId",
        "scopes",
        "createdAt",
    ),
    "KeyAnswer": thing({"key": ref("Key")}, "key"),
    "KeyList": thing({"keys": many(ref("Key"))}, "keys"),
    "ExecRequest": thing(
        {
            "requestHeader": thing(
                {
                    "inputAssetReferences": many(TEXT),
                    "pollDurationSeconds": {"type": "integer", "minimum": 1, "maximum": 3600},
                }
            ),
            "requestBody": {"description": "Any JSON: the function's input."},
        }
    ),
    "ExecAnswer": thing(
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
    "AssetCreation": thing(
        {
            "contentType": {
                "type": "string",
                "maxLength": 256,
                "pattern": "^[\\x21-\\x7e]+/[\\x20-\\x7e]+$",
                "examples": ["image/png"],
            },
            "description": {"type": "string", "maxLength": 1024},
        },
        "contentType",
        closed=True,
    ),
    "AssetAnnounced": thing(
        {"assetId": UUID, "uploadUrl": TEXT, "contentType": TEXT, "description": TEXT},
        "assetId",
        "uploadUrl",
    ),
    "Health": thing({"status": TEXT}, "status"),
}
