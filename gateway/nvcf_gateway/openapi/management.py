"""Routes of owners and agents: functions, deployments, access, keys."""

from __future__ import annotations

from functools import partial

from nvcf_gateway.management.events import MAX_LIMIT
from nvcf_gateway.openapi.parts import KEYED, NOTHING, Operation, json_answer, operation_of
from nvcf_gateway.openapi.schemas import EVENT_KIND, UUID, ref


def functions() -> dict[str, dict[str, Operation]]:
    """Return the routes of functions, versions, sharing and rate limits."""
    one, many = json_answer(ref("VersionAnswer")), json_answer(ref("VersionList"))
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
                {200: one},
                (*KEYED, 413, 409),
                body=ref("FunctionCreation"),
            ),
            "get": make("listFunctions", "All versions of the account's functions.", {200: many}, KEYED),
        },
        named: {
            "get": make("getFunction", "The versions of a function.", {200: many}, found),
            "delete": make("deleteFunction", "A function with all versions.", {204: NOTHING}, (*found, 409)),
        },
        f"{named}/versions": {
            "post": make(
                "createVersion",
                "One more version.",
                {200: one},
                (*found, 413, 409),
                body=ref("VersionCreation"),
            ),
            "get": make("listVersions", "The versions of a function.", {200: many}, found),
        },
        version: {
            "get": make("getVersion", "One version.", {200: one}, found),
            "delete": make("deleteVersion", "Delete a version.", {204: NOTHING}, (*found, 409)),
        },
        f"{named}/authorizations": {
            "put": make(
                "putAuthorizations",
                "Share the function with these accounts and no others.",
                {200: json_answer(ref("AuthorizationsAnswer"))},
                (*found, 413, 409),
                body=ref("Authorizations"),
            ),
            "get": make(
                "getAuthorizations",
                "The accounts that may invoke the function.",
                {200: json_answer(ref("AuthorizationsAnswer"))},
                found,
            ),
            "delete": make(
                "deleteAuthorizations",
                "Share the function with nobody.",
                {200: json_answer(ref("AuthorizationsAnswer"))},
                (*found, 409),
            ),
        },
        f"{version}/rate-limit": {
            "put": make(
                "putRateLimit",
                "Set the version's rate limits.",
                {200: json_answer(ref("RateLimitAnswer"))},
                (*found, 413, 409),
                body=ref("RateLimitPolicy"),
            ),
            "get": make(
                "getRateLimit",
                "The version's rate limits.",
                {200: json_answer(ref("RateLimitAnswer"))},
                found,
            ),
            "delete": make("deleteRateLimit", "No rate limits.", {204: NOTHING}, (*found, 409)),
        },
    }


def deployments() -> dict[str, dict[str, Operation]]:
    """Return the routes of deployments and instances, and what agents fetch."""
    found = (*KEYED, 404)
    deployment = json_answer(ref("DeploymentAnswer"))

    make = partial(operation_of, tag="deployments")

    return {
        "/v2/nvcf/deployments/functions/{function_id}/versions/{version_id}": {
            "post": make(
                "deploy",
                "Give a version instances.",
                {200: deployment},
                (*found, 413, 409),
                body=ref("DeploymentCreation"),
            ),
            "put": make(
                "changeDeployment",
                "Change a deployment in place; requests go on meanwhile.",
                {200: deployment},
                (*found, 413, 409),
                body=ref("DeploymentCreation"),
            ),
            "get": make("getDeployment", "The deployment of a version.", {200: deployment}, found),
            "delete": make("undeploy", "Take a version's instances away.", {200: deployment}, found),
        },
        "/v2/nvcf/instances": {
            "get": make(
                "listInstances",
                "The account's instances.",
                {200: json_answer(ref("InstanceList"))},
                KEYED,
                parameters=({"name": "functionVersionId", "in": "query", "schema": UUID},),
            )
        },
        "/v2/nvcf/events": {
            "get": make(
                "listEvents",
                "What happened to the account's versions, newest first.",
                {200: json_answer(ref("EventList"))},
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
        "/v2/nvcf/clusters": {
            "get": make(
                "listClusters",
                "All clusters, as their agents last reported them.",
                {200: json_answer(ref("ClusterList"))},
                KEYED,
            )
        },
        "/v2/nvcf/agents/worker-tokens": {
            "post": make(
                "issueWorkerToken",
                "First token of an instance; for agents.",
                {200: json_answer(ref("WorkerToken"))},
                (*found, 413),
                body=ref("WorkerTokenRequest"),
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
                {200: json_answer(ref("KeyAnswer"))},
                (*KEYED, 413, 409),
                body=ref("KeyCreation"),
            ),
            "get": make("listKeys", "The account's API keys.", {200: json_answer(ref("KeyList"))}, KEYED),
        },
        "/v2/nvcf/keys/{key_id}": {
            "get": make("getKey", "One API key.", {200: json_answer(ref("KeyAnswer"))}, (*KEYED, 404)),
            "delete": make("revokeKey", "Revoke an API key.", {204: NOTHING}, (*KEYED, 404, 409)),
        },
    }


def telemetries() -> dict[str, dict[str, Operation]]:
    """Return the routes of telemetry endpoints."""
    one, found = json_answer(ref("TelemetryAnswer")), (*KEYED, 404)

    make = partial(operation_of, tag="telemetries")

    return {
        "/v2/nvcf/telemetries": {
            "post": make(
                "createTelemetry",
                "A new telemetry endpoint of the account.",
                {200: one},
                (*KEYED, 413, 409),
                body=ref("TelemetryCreation"),
            ),
            "get": make(
                "listTelemetries",
                "The account's telemetry endpoints.",
                {200: json_answer(ref("TelemetryList"))},
                KEYED,
            ),
        },
        "/v2/nvcf/telemetries/{telemetry_id}": {
            "get": make("getTelemetry", "One telemetry endpoint.", {200: one}, found),
            "put": make(
                "changeTelemetry",
                "Change all of it but its name; instances that start from then on use it.",
                {200: one},
                (*found, 413, 409),
                body=ref("TelemetryChange"),
            ),
            "delete": make(
                "deleteTelemetry",
                "Delete a telemetry endpoint that no version uses.",
                {204: NOTHING},
                (*found, 409),
            ),
        },
    }
