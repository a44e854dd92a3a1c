"""The description of all HTTP routes (OpenAPI 3.1), served at `/openapi.json`."""

from __future__ import annotations

import functools
import json
from importlib import metadata
from typing import Any

from aiohttp import web

from nvcf_gateway.openapi_schemas import KEY_ID, SCHEMAS, TEXT, UUID, Schema, ref
from nvcf_proto.headers import OCTET_STREAM, OCTET_STREAM_H1, PROBLEM_JSON
from nvcf_proto.settings import ATTACH_PATH

Operation = dict[str, Any]

_REASONS = {
    400: "The request is malformed; `field` names the offending field of the body.",
    401: "No key or token, or one that is unknown, revoked, expired or used.",
    403: "The key lacks the scope, or belongs to another account or other functions.",
    404: "There is no such thing.",
    408: "The head of the answer did not come in time.",
    409: "It exists already, or is in use.",
    413: "The body is too large.",
    415: "The body is of another type.",
    429: "A rate limit is reached, or the queue is full: again after Retry-After seconds.",
    500: "The request could not be queued, or its caller is gone.",
    502: "The worker left in the middle of its answer.",
    503: "The broker is not reachable: again after Retry-After seconds.",
    504: "No answer in time.",
    507: "There is no room for it.",
}
_INTEGER: Schema = {"type": "integer"}
_IN_ANSWERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"schema": TEXT}},
    429: {
        "Retry-After": {"schema": _INTEGER, "description": "Seconds."},
        "RateLimit-Policy": {"schema": TEXT, "description": "draft-ietf-httpapi-ratelimit-headers"},
        "RateLimit": {"schema": TEXT},
    },
    503: {"Retry-After": {"schema": _INTEGER, "description": "Seconds."}},
}
_POLL_SECONDS = {
    "name": "NVCF-POLL-SECONDS",
    "in": "header",
    "schema": {"type": "integer", "minimum": 0, "maximum": 3600},
    "description": "How long to wait for the answer; less than 1 counts as 1, the default is 60.",
}
_SEAL = (
    {"name": "until", "in": "query", "schema": TEXT},
    {"name": "seal", "in": "query", "schema": TEXT, "description": "Part of the link that was given out."},
)
_KEEP_QUEUED = {
    "name": "NVCF-KEEP-QUEUED",
    "in": "header",
    "schema": {"type": "string", "enum": ["true", "false"]},
    "description": "Whether a request that is still queued at the end of that time stays queued (202).",
}


def _operation(
    name: str,
    summary: str,
    answers: dict[int | str, Any],
    problems: tuple[int, ...],
    *,
    tag: str,
    body: Schema | None = None,
    raw_body: str | None = None,
    parameters: tuple[dict[str, Any], ...] = (),
    security: bool = True,
) -> Operation:
    responses = {str(status): answer for status, answer in answers.items()}
    for status in problems:
        responses.setdefault(str(status), _problem(status))
    operation: Operation = {
        "operationId": name,
        "summary": summary,
        "tags": [tag],
        "responses": dict(sorted(responses.items())),
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if raw_body is not None:
        operation["requestBody"] = {"content": {raw_body: {"schema": {}}}}
    if parameters:
        operation["parameters"] = list(parameters)
    if not security:
        operation["security"] = []
    return operation


def _problem(status: int) -> dict[str, Any]:
    answer = {
        "description": _REASONS[status],
        "content": {PROBLEM_JSON: {"schema": ref("Problem")}},
    }
    if status in _IN_ANSWERS:
        answer["headers"] = _IN_ANSWERS[status]
    return answer


def _json(schema: Schema, description: str = "Done.") -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_NOTHING = {"description": "Done."}
# What every route with a key may answer.
_KEYED = (400, 401, 403, 503)
_ANY_ANSWER = {
    "description": "The function's own answer: its status, headers and body.",
    "headers": {"nvcf-reqid": {"schema": UUID}, "nvcf-status": {"schema": TEXT}},
    "content": {"*/*": {"schema": {}}},
}
_NOT_YET = {
    "description": "Not answered yet: poll with nvcf-reqid.",
    "headers": {"nvcf-reqid": {"schema": UUID}, "nvcf-status": {"schema": TEXT}},
}


def _invocations() -> dict[str, dict[str, Operation]]:
    calling = (*_KEYED, 404, 413, 429, 500, 502, 504)
    paths: dict[str, dict[str, Operation]] = {}
    for suffix, name in (("", ""), ("/versions/{version_id}", "Version")):
        paths[f"/v2/nvcf/pexec/functions/{{function_id}}{suffix}"] = {
            "post": _operation(
                f"pexec{name}",
                "Invoke a function; body and answer pass as they are.",
                {202: _NOT_YET, "default": _ANY_ANSWER},
                calling,
                tag="invocation",
                raw_body="*/*",
                parameters=(_POLL_SECONDS, _KEEP_QUEUED),
            )
        }
        paths[f"/v2/nvcf/exec/functions/{{function_id}}{suffix}"] = {
            "post": _operation(
                f"exec{name}",
                "Invoke a function with a JSON wrapper around body and answer.",
                {
                    200: _json(ref("ExecAnswer")),
                    202: _json(ref("ExecAnswer"), "Not answered yet."),
                    "default": _ANY_ANSWER,
                },
                calling,
                tag="invocation",
                body=ref("ExecRequest"),
                parameters=(_POLL_SECONDS, _KEEP_QUEUED),
            )
        }
    polling = (*_KEYED, 404, 502, 504)
    paths["/v2/nvcf/pexec/status/{request_id}"] = {
        "get": _operation(
            "pexecStatus",
            "The answer to a request that was answered 202.",
            {202: _NOT_YET, "default": _ANY_ANSWER},
            polling,
            tag="invocation",
            parameters=(_POLL_SECONDS,),
        ),
        "delete": _operation(
            "cancelRequest", "Give a request up.", {204: _NOTHING}, (*_KEYED, 404), tag="invocation"
        ),
    }
    paths["/v2/nvcf/exec/status/{request_id}"] = {
        "get": _operation(
            "execStatus",
            "The same with a JSON wrapper around the answer.",
            {
                200: _json(ref("ExecAnswer")),
                202: _json(ref("ExecAnswer"), "Not answered yet."),
                "default": _ANY_ANSWER,
            },
            polling,
            tag="invocation",
            parameters=(_POLL_SECONDS,),
        )
    }
    return paths


def _functions() -> dict[str, dict[str, Operation]]:
    one, many = _json(ref("VersionAnswer")), _json(ref("VersionList"))
    functions = "/v2/nvcf/functions"
    named = f"{functions}/{{function_id}}"
    version = f"{named}/versions/{{version_id}}"
    found = (*_KEYED, 404)

    def make(name: str, summary: str, answers: Any, problems: tuple[int, ...], **more: Any) -> Operation:
        return _operation(name, summary, answers, problems, tag="functions", **more)

    return {
        functions: {
            "post": make(
                "createFunction",
                "A function with its first version.",
                {200: one},
                (*_KEYED, 413, 409),
                body=ref("FunctionCreation"),
            ),
            "get": make("listFunctions", "All versions of the account's functions.", {200: many}, _KEYED),
        },
        named: {
            "get": make("getFunction", "The versions of a function.", {200: many}, found),
            "delete": make("deleteFunction", "A function with all versions.", {204: _NOTHING}, (*found, 409)),
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
            "delete": make("deleteVersion", "Delete a version.", {204: _NOTHING}, (*found, 409)),
        },
        f"{named}/authorizations": {
            "put": make(
                "putAuthorizations",
                "Share the function with these accounts and no others.",
                {200: _json(ref("AuthorizationsAnswer"))},
                (*found, 413, 409),
                body=ref("Authorizations"),
            ),
            "get": make(
                "getAuthorizations",
                "The accounts that may invoke the function.",
                {200: _json(ref("AuthorizationsAnswer"))},
                found,
            ),
            "delete": make(
                "deleteAuthorizations",
                "Share the function with nobody.",
                {200: _json(ref("AuthorizationsAnswer"))},
                (*found, 409),
            ),
        },
        f"{version}/rate-limit": {
            "put": make(
                "putRateLimit",
                "Set the version's rate limits.",
                {200: _json(ref("RateLimitAnswer"))},
                (*found, 413, 409),
                body=ref("RateLimit"),
            ),
            "get": make(
                "getRateLimit", "The version's rate limits.", {200: _json(ref("RateLimitAnswer"))}, found
            ),
            "delete": make("deleteRateLimit", "No rate limits.", {204: _NOTHING}, (*found, 409)),
        },
    }


def _operations() -> dict[str, dict[str, Operation]]:
    found = (*_KEYED, 404)
    deployment = _json(ref("DeploymentAnswer"))

    def make(name: str, summary: str, answers: Any, problems: tuple[int, ...], **more: Any) -> Operation:
        return _operation(name, summary, answers, problems, tag="deployments", **more)

    return {
        "/v2/nvcf/deployments/functions/{function_id}/versions/{version_id}": {
            "post": make(
                "deploy",
                "Give a version instances.",
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
                {200: _json(ref("InstanceList"))},
                _KEYED,
                parameters=({"name": "functionVersionId", "in": "query", "schema": UUID},),
            )
        },
        "/v2/nvcf/agents/worker-tokens": {
            "post": make(
                "issueWorkerToken",
                "First token of an instance; for agents.",
                {200: _json(ref("WorkerToken"))},
                (*found, 413),
                body=ref("WorkerTokenRequest"),
            )
        },
    }


def _access() -> dict[str, dict[str, Operation]]:
    def make(name: str, summary: str, answers: Any, problems: tuple[int, ...], **more: Any) -> Operation:
        return _operation(name, summary, answers, problems, tag="keys", **more)

    return {
        "/v2/nvcf/keys": {
            "post": make(
                "createKey",
                "A new API key. Its text is in this answer and nowhere else.",
                {200: _json(ref("KeyAnswer"))},
                (*_KEYED, 413, 409),
                body=ref("KeyCreation"),
            ),
            "get": make("listKeys", "The account's API keys.", {200: _json(ref("KeyList"))}, _KEYED),
        },
        "/v2/nvcf/keys/{key_id}": {
            "get": make("getKey", "One API key.", {200: _json(ref("KeyAnswer"))}, (*_KEYED, 404)),
            "delete": make("revokeKey", "Revoke an API key.", {204: _NOTHING}, (*_KEYED, 404, 409)),
        },
    }


def _objects() -> dict[str, dict[str, Operation]]:
    def make(name: str, summary: str, answers: Any, problems: tuple[int, ...], **more: Any) -> Operation:
        return _operation(name, summary, answers, problems, tag="objects", **more)

    sealed = {"security": False, "parameters": _SEAL}
    storing = (400, 403, 404, 413, 503, 507)
    uploads = {
        method: make(
            f"{method}Asset",
            "Upload an asset to its link.",
            {200: _NOTHING},
            storing,
            raw_body="*/*",
            **sealed,
        )
        for method in ("put", "post")
    }
    results = {
        method: make(
            f"{method}Result",
            "Workers: upload a large result to its link.",
            {200: _NOTHING},
            storing,
            raw_body="*/*",
            **sealed,
        )
        for method in ("put", "post")
    }
    bytes_of_it = {"description": "Its bytes.", "content": {"*/*": {"schema": {}}}}
    return {
        "/v2/nvcf/assets": {
            "post": make(
                "createAsset",
                "Announce an asset; the answer says where to upload it.",
                {200: _json(ref("AssetAnnounced"))},
                (*_KEYED, 413),
                body=ref("AssetCreation"),
            )
        },
        "/v2/nvcf/assets/{asset_id}": {
            "get": make(
                "getAsset",
                "What is known of an asset; by its link, the asset itself.",
                {200: {**bytes_of_it, "description": "Its description, or its bytes."}},
                (*_KEYED, 404),
            ),
            "delete": make("deleteAsset", "Delete an asset.", {204: _NOTHING}, (*_KEYED, 404)),
            **uploads,
        },
        "/v2/nvcf/results/{request_id}": {
            "get": make(
                "getResult",
                "A large result, by its link.",
                {200: bytes_of_it},
                (400, 403, 404, 503),
                **sealed,
            ),
            **results,
        },
    }


def _others() -> dict[str, dict[str, Operation]]:
    return {
        ATTACH_PATH: {
            "get": _operation(
                "fetchRequest",
                "Workers: the rest of a caller's request.",
                {
                    200: {
                        "description": "Its bytes.",
                        "content": {OCTET_STREAM: {"schema": {}}, OCTET_STREAM_H1: {"schema": {}}},
                    }
                },
                (400, 401, 500, 503),
                tag="workers",
            ),
            "post": _operation(
                "deliverResponse",
                "Workers: the answer to a request, an HTTP/1.1 response head and the body.",
                {200: {"description": "Delivered."}},
                (400, 401, 408, 415, 500, 503),
                tag="workers",
                raw_body=OCTET_STREAM_H1,
            ),
        },
        "/health": {
            "get": _operation(
                "health",
                "Whether the gateway can serve.",
                {200: _json(ref("Health"))},
                (400, 503),
                tag="health",
                security=False,
            )
        },
        "/openapi.json": {
            "get": _operation(
                "describe",
                "This document.",
                {200: _json({"type": "object"})},
                (400,),
                tag="health",
                security=False,
            )
        },
    }


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [segment[1:-1] for segment in path.split("/") if segment.startswith("{")]
    return [
        {"name": name, "in": "path", "required": True, "schema": KEY_ID if name == "key_id" else UUID}
        for name in names
    ]


@functools.cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    paths: dict[str, dict[str, Any]] = {}
    for part in (_invocations(), _functions(), _operations(), _access(), _objects(), _others()):
        for path, operations in part.items():
            parameters = _path_parameters(path)
            paths[path] = {**({"parameters": parameters} if parameters else {}), **operations}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "NVCF gateway",
            "version": metadata.version("nvcf-worker"),
            "summary": "Invoke and manage GPU functions.",
            "description": "Besides these routes, a request with the header `function-id`, or to a host name "
            "that begins with a function's id, goes to that function as it is, whatever its method and path.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key; for workers, the token out of their request.",
                }
            },
        },
    }


@functools.cache
def _text() -> bytes:
    return json.dumps(document(), separators=(",", ":")).encode()


async def serve_document(request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
    """GET /openapi.json, without a key."""
    return web.Response(
        body=_text(), headers={"Content-Type": "application/json", "Cache-Control": "max-age=300"}
    )
