"""Routes of owners and agents: functions, deployments, access, keys."""

from __future__ import annotations

from functools import partial

from nvcf_gateway.management.events import MAX_LIMIT
from nvcf_gateway.openapi.parts import KEYED, Operation, operation_of
from nvcf_gateway.openapi.schemas import EVENT_KIND, UUID


def functions() -> dict[str, dict[str, Operation]]:
    """Return the routes of functions, versions, sharing and rate limits."""
    base = "/v2/nvcf/functions"
    named = f"{base}/{{function_id}}"
    version = f"{named}/versions/{{version_id}}"
    found = (*KEYED, 404)

    make = partial(operation_of, tag="functions")

    return {
        base: {
            "post": make(
                "createFunction",
                "A function with its first version.",
                "VersionAnswer",
                (*KEYED, 409),
                body="FunctionCreation",
            ),
            "get": make("listFunctions", "All versions of the account's functions.", "VersionList", KEYED),
        },
        named: {
            "get": make("getFunction", "The versions of a function.", "VersionList", found),
            "delete": make("deleteFunction", "A function with all versions.", None, (*found, 409)),
        },
        f"{named}/versions": {
            "post": make(
                "createVersion", "One more version.", "VersionAnswer", (*found, 409), body="VersionCreation"
            ),
            "get": make("listVersions", "The versions of a function.", "VersionList", found),
        },
        version: {
            "get": make("getVersion", "One version.", "VersionAnswer", found),
            "put": make(
                "changeVersion",
                "Change tags, rate limit, models' rates and priorities of a version.",
                "VersionAnswer",
                (*found, 409),
                body="VersionUpdate",
            ),
            "delete": make("deleteVersion", "Delete a version.", None, (*found, 409)),
        },
        f"{named}/authorizations": {
            "put": make(
                "putAuthorizations",
                "Share the function with these accounts and no others.",
                "AuthorizationsAnswer",
                (*found, 409),
                body="Authorizations",
            ),
            "get": make(
                "getAuthorizations",
                "The accounts that may invoke the function.",
                "AuthorizationsAnswer",
                found,
            ),
            "delete": make(
                "deleteAuthorizations",
                "Share the function with nobody.",
                "AuthorizationsAnswer",
                (*found, 409),
            ),
        },
        f"{version}/rate-limit": {
            "put": make(
                "putRateLimit",
                "Set the version's rate limits.",
                "RateLimitAnswer",
                (*found, 409),
                body="RateLimitPolicy",
            ),
            "get": make("getRateLimit", "The version's rate limits.", "RateLimitAnswer", found),
            "delete": make("deleteRateLimit", "No rate limits.", None, (*found, 409)),
        },
    }


def deployments() -> dict[str, dict[str, Operation]]:
    """Return the routes of deployments and instances, and what agents fetch."""
    found = (*KEYED, 404)

    make = partial(operation_of, tag="deployments")

    return {
        "/v2/nvcf/deployments/functions/{function_id}/versions/{version_id}": {
            "post": make(
                "deploy",
                "Give a version instances.",
                "DeploymentAnswer",
                (*found, 409),
                body="DeploymentCreation",
            ),
            "put": make(
                "changeDeployment",
                "Change a deployment in place; requests go on meanwhile.",
                "DeploymentAnswer",
                (*found, 409),
                body="DeploymentCreation",
            ),
            "get": make("getDeployment", "The deployment of a version.", "DeploymentAnswer", found),
            "delete": make(
                "undeploy",
                "Take a version's instances away.",
                "UndeploymentAnswer",
                found,
                parameters=(
                    {
                        "name": "graceful",
                        "in": "query",
                        "schema": {"type": "boolean", "default": True},
                        "description": "Whether instances first empty the version's queue.",
                    },
                ),
            ),
        },
        "/v2/nvcf/deployments/{deployment_id}": {
            "get": make("getDeploymentById", "One deployment.", "DeploymentAnswer", found),
        },
        "/v2/nvcf/deployments/{deployment_id}/gpu-specifications/{specification_id}": {
            "patch": make(
                "changeSpecification",
                "Change counts and autoscaling of one GPU specification.",
                "SpecificationAnswer",
                (*found, 409),
                body="SpecificationUpdate",
            ),
        },
        "/v2/nvcf/instances/{instance_id}": {
            "delete": make("deleteInstance", "End one instance.", None, (*found, 409))
        },
        "/v2/nvcf/instances": {
            "get": make(
                "listInstances",
                "The account's instances.",
                "InstanceList",
                KEYED,
                parameters=({"name": "functionVersionId", "in": "query", "schema": UUID},),
            )
        },
        "/v2/nvcf/events": {
            "get": make(
                "listEvents",
                "What happened to the account's versions, newest first.",
                "EventList",
                KEYED,
                parameters=(
                    {"name": "functionVersionId", "in": "query", "schema": UUID},
                    {"name": "kind", "in": "query", "schema": EVENT_KIND},
                    {
                        "name": "limit",
                        "in": "query",
                        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
                    },
                ),
            )
        },
        "/v2/nvcf/quotas": {
            "get": make("getQuotas", "What the account uses of each quota, and its limits.", "Quotas", KEYED)
        },
        "/v2/nvcf/clusters": {
            "get": make(
                "listClusters", "All clusters, as their agents last reported them.", "ClusterList", KEYED
            )
        },
    }


def keys() -> dict[str, dict[str, Operation]]:
    """Return the routes of API keys."""
    make = partial(operation_of, tag="keys")

    return {
        "/v2/nvcf/keys": {
            "post": make(
                "createKey",
                "A new API key. Its text is in this response and nowhere else.",
                "KeyAnswer",
                (*KEYED, 409),
                body="KeyCreation",
            ),
            "get": make("listKeys", "The account's API keys.", "KeyList", KEYED),
        },
        "/v2/nvcf/keys/{key_id}": {
            "get": make("getKey", "One API key.", "KeyAnswer", (*KEYED, 404)),
            "delete": make("revokeKey", "Revoke an API key.", None, (*KEYED, 404, 409)),
        },
    }


def telemetries() -> dict[str, dict[str, Operation]]:
    """Return the routes of telemetry endpoints."""
    found = (*KEYED, 404)

    make = partial(operation_of, tag="telemetries")

    return {
        "/v2/nvcf/telemetries": {
            "post": make(
                "createTelemetry",
                "A new telemetry endpoint of the account.",
                "TelemetryAnswer",
                (*KEYED, 409),
                body="TelemetryCreation",
            ),
            "get": make("listTelemetries", "The account's telemetry endpoints.", "TelemetryList", KEYED),
        },
        "/v2/nvcf/telemetries/{telemetry_id}": {
            "get": make("getTelemetry", "One telemetry endpoint.", "TelemetryAnswer", found),
            "put": make(
                "changeTelemetry",
                "Change all of it but its name; instances that start from then on use it.",
                "TelemetryAnswer",
                (*found, 409),
                body="TelemetryChange",
            ),
            "delete": make(
                "deleteTelemetry", "Delete a telemetry endpoint that no version uses.", None, (*found, 409)
            ),
        },
    }
