"""Routes of callers and workers: invocation, polling, objects, request-attach."""

from __future__ import annotations

from functools import partial

from nvcf_gateway.openapi.parts import (
    ANY_ANSWER,
    KEEP_QUEUED,
    KEYED,
    NOT_YET,
    NOTHING,
    POLL_SECONDS,
    SEAL,
    Operation,
    json_answer,
    operation_of,
)
from nvcf_proto.headers import OCTET_STREAM, OCTET_STREAM_H1
from nvcf_proto.settings import ATTACH_PATH


def invocations() -> dict[str, dict[str, Operation]]:
    """Return the routes of exec, pexec and their status."""
    calling = (*KEYED, 404, 413, 429, 500, 502, 504)
    paths: dict[str, dict[str, Operation]] = {}
    for suffix, name in (("", ""), ("/versions/{version_id}", "Version")):
        paths[f"/v2/nvcf/pexec/functions/{{function_id}}{suffix}"] = {
            "post": operation_of(
                f"pexec{name}",
                "Invoke a function; body and response pass unchanged.",
                {202: NOT_YET, "default": ANY_ANSWER},
                calling,
                tag="invocation",
                raw_body="*/*",
                parameters=(POLL_SECONDS, KEEP_QUEUED),
            )
        }
        paths[f"/v2/nvcf/exec/functions/{{function_id}}{suffix}"] = {
            "post": operation_of(
                f"exec{name}",
                "Invoke a function with a JSON wrapper around body and response.",
                {
                    200: json_answer("ExecAnswer"),
                    202: json_answer("ExecAnswer", "Not answered yet."),
                    "default": ANY_ANSWER,
                },
                calling,
                tag="invocation",
                body="ExecRequest",
                parameters=(POLL_SECONDS, KEEP_QUEUED),
            )
        }
    polling = (*KEYED, 404, 502, 504)
    paths["/v2/nvcf/pexec/status/{request_id}"] = {
        "get": operation_of(
            "pexecStatus",
            "The response to a request that got 202.",
            {202: NOT_YET, "default": ANY_ANSWER},
            polling,
            tag="invocation",
            parameters=(POLL_SECONDS,),
        ),
        "delete": operation_of("cancelRequest", "Give a request up.", None, (*KEYED, 404), tag="invocation"),
    }
    paths["/v2/nvcf/exec/status/{request_id}"] = {
        "get": operation_of(
            "execStatus",
            "The same with a JSON wrapper around the response.",
            {
                200: json_answer("ExecAnswer"),
                202: json_answer("ExecAnswer", "Not answered yet."),
                "default": ANY_ANSWER,
            },
            polling,
            tag="invocation",
            parameters=(POLL_SECONDS,),
        )
    }
    return paths


def objects() -> dict[str, dict[str, Operation]]:
    """Return the routes of assets and large results."""
    make = partial(operation_of, tag="objects")
    sealed = partial(make, security=False, parameters=SEAL)
    storing = (400, 403, 404, 413, 503, 507)
    uploads = {
        method: sealed(
            f"{method}Asset", "Upload an asset to its link.", {200: NOTHING}, storing, raw_body="*/*"
        )
        for method in ("put", "post")
    }
    results = {
        method: sealed(
            f"{method}Result",
            "Workers: upload a large result to its link.",
            {200: NOTHING},
            storing,
            raw_body="*/*",
        )
        for method in ("put", "post")
    }
    bytes_of_it = {"description": "Its bytes.", "content": {"*/*": {"schema": {}}}}
    return {
        "/v2/nvcf/assets": {
            "post": make(
                "createAsset",
                "Announce an asset; the response says where to upload it.",
                "AssetAnnounced",
                KEYED,
                body="AssetCreation",
            ),
            "get": make("listAssets", "The account's assets.", "AssetList", KEYED),
        },
        "/v2/nvcf/assets/{asset_id}": {
            "get": make(
                "getAsset",
                "What is known of an asset; by its link, the asset itself.",
                {200: {**bytes_of_it, "description": "Its description, or its bytes."}},
                (*KEYED, 404),
            ),
            "delete": make("deleteAsset", "Delete an asset.", None, (*KEYED, 404)),
            **uploads,
        },
        "/v2/nvcf/assets/{asset_id}/content-redirect": {
            "get": make(
                "redirectToAsset",
                "Where the asset itself is, as a redirection.",
                {302: NOTHING},
                (*KEYED, 404),
            )
        },
        "/v2/nvcf/results/{request_id}": {
            "get": sealed(
                "getResult", "A large result, by its link.", {200: bytes_of_it}, (400, 403, 404, 503)
            ),
            **results,
        },
    }


def others() -> dict[str, dict[str, Operation]]:
    """Return the routes of request-attach, of health and of the description itself."""
    return {
        ATTACH_PATH: {
            "get": operation_of(
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
            "post": operation_of(
                "deliverResponse",
                "Workers: the response to a request, an HTTP/1.1 response head and the body.",
                {200: {"description": "Delivered."}},
                (400, 401, 408, 415, 500, 503),
                tag="workers",
                raw_body=OCTET_STREAM_H1,
            ),
        },
        "/health": {
            "get": operation_of(
                "health", "Whether the gateway can serve.", "Health", (400, 503), tag="health", security=False
            )
        },
        "/health/live": {
            "get": operation_of(
                "live", "Whether the process answers.", "Health", (400,), tag="health", security=False
            )
        },
        "/health/ready": {
            "get": operation_of(
                "ready",
                "What does not work, and since when.",
                {
                    200: json_answer("Readiness", "Calls are served."),
                    503: json_answer("Readiness", "Calls cannot be served."),
                },
                (400,),
                tag="health",
                security=False,
            )
        },
        "/openapi.json": {
            "get": operation_of(
                "describe",
                "This document.",
                {
                    200: {
                        "description": "Done.",
                        "content": {"application/json": {"schema": {"type": "object"}}},
                    }
                },
                (400,),
                tag="health",
                security=False,
            )
        },
    }
