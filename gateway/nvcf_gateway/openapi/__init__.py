"""The description of all HTTP routes (OpenAPI 3.1), served at `/openapi.json`."""

from __future__ import annotations

import functools
import json
from importlib import metadata
from typing import Any

from aiohttp import web

from nvcf_gateway.openapi.accounts import ACCOUNT_SCHEMAS, accounts, below_account, changes, sharing, tokens
from nvcf_gateway.openapi.calls import invocations, objects, others
from nvcf_gateway.openapi.clusters import CLUSTER_SCHEMAS, agents, clusters
from nvcf_gateway.openapi.dashboard import DASHBOARD_SCHEMAS, dashboard
from nvcf_gateway.openapi.llm import LLM_SCHEMAS, models
from nvcf_gateway.openapi.management import deployments, functions, keys, telemetries
from nvcf_gateway.openapi.schemas import KEY_ID, SECRET_NAME, TEXT, UUID, schemas
from nvcf_gateway.openapi.secrets import SECRET_SCHEMAS, secrets
from nvcf_gateway.openapi.tasks import TASK_SCHEMAS, tasks


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [segment[1:-1] for segment in path.split("/") if segment.startswith("{")]
    known = {
        "key_id": KEY_ID,
        "secret_name": SECRET_NAME,
        **dict.fromkeys(("file", "model", "name", "nca_id", "cluster_id", "instance_id", "client_id"), TEXT),
    }
    return [{"name": name, "in": "path", "required": True, "schema": known.get(name, UUID)} for name in names]


@functools.cache
def document() -> dict[str, Any]:
    """Return the OpenAPI document."""
    paths: dict[str, dict[str, Any]] = {}
    parts = (functions(), deployments(), telemetries(), secrets(), keys(), objects(), dashboard(), others())
    described: dict[str, dict[str, Any]] = {}
    for part in (
        invocations(),
        models(),
        *parts,
        clusters(),
        agents(),
        changes(),
        sharing(),
        accounts(),
        tokens(),
        tasks(),
    ):
        for path, operations in part.items():
            described[path] = {**described.get(path, {}), **operations}
    for part in (described, below_account(described)):
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
            "schemas": {
                **schemas(),
                **CLUSTER_SCHEMAS,
                **DASHBOARD_SCHEMAS,
                **SECRET_SCHEMAS,
                **ACCOUNT_SCHEMAS,
                **TASK_SCHEMAS,
                **LLM_SCHEMAS,
            },
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key; for workers, the token out of their request; for agents, "
                    "the key of their cluster or a token of its service account.",
                }
            },
        },
    }


@functools.cache
def _text() -> bytes:
    return json.dumps(document(), separators=(",", ":")).encode()


async def serve_document(request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
    """Handle GET /openapi.json, without a key."""
    return web.Response(
        body=_text(), headers={"Content-Type": "application/json", "Cache-Control": "max-age=300"}
    )
