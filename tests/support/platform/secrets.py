"""Secrets over HTTP, as owners, agents and workers use them."""

from __future__ import annotations

import json
import time
from typing import Any

import grpc

from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from nvcf_proto.secrets import function_secrets_path
from tests.support.platform.gateways import Platform, Version

BASE = "/v2/nvcf/secrets"
VALUE = "hunter2-is-a-password-nobody-may-see"


def secrets_path(version: Version) -> str:
    return f"{BASE}/functions/{version.function_id}/versions/{version.id}"


async def put_secrets(
    platform: Platform, version: Version, *, expect: int = 204, key: str = "admin", **values: Any
) -> Any:
    body = {"secrets": [{"name": name, "value": value} for name, value in values.items()]}
    return await platform.call("PUT", secrets_path(version), body, expect=expect, key=key)


async def secret_names(platform: Platform, version: Version) -> list[str]:
    return list((await platform.call("GET", secrets_path(version), key="list"))["secrets"])


async def agent_token(platform: Platform, version: Version, instance_id: str | None = None) -> str:
    """Return a token for the secrets of a new instance, requested as an agent does."""
    body = {
        "instanceId": instance_id or new_id(),
        "functionId": version.function_id,
        "functionVersionId": version.id,
    }
    answer = await platform.call("POST", "/v2/nvcf/agents/secret-credentials", body, key="agent")
    return str(answer["token"])


async def read_secrets(
    platform: Platform, token: str, where: str, *, tag: str = "", namespace: str = "nvcf"
) -> tuple[int, dict[str, Any], str]:
    headers = {"X-ESS-Token": token, "X-ESS-Namespace": namespace, "If-None-Match": tag}
    url = f"{platform.gateway.url}/v1/{where}"
    async with platform.session.get(url, headers={k: v for k, v in headers.items() if v}) as response:
        text = await response.text()
        answer = json.loads(text) if text else {}
        if response.status == 200:
            answer = {"data": answer["data"]["data"]}
        return response.status, answer, response.headers.get("ETag", "")


def ess_path(version: Version) -> str:
    return function_secrets_path(version.function_id, version.id)


async def worker_token(platform: Platform, version: Version) -> str:
    """Return the token that a worker gets with its worker token (gRPC)."""
    worker = await platform.worker_token(version, new_id())
    async with grpc.aio.insecure_channel(platform.gateway.grpc) as channel:
        request = nvcf_pb2.SecretCredentialsRequest(
            functionId=version.function_id, functionVersionId=version.id
        )
        answer = await nvcf_pb2_grpc.WorkerStub(channel).RequestSecretCredentials(
            request, metadata=(("authorization", f"Bearer {worker}"),)
        )
        assert 0 < answer.expiration.seconds - time.time() <= 900
        return str(answer.secretCredentialsToken)
