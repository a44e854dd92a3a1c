"""Secrets over HTTP, as owners, agents and workers use them."""

from __future__ import annotations

import json
import time
from typing import Any

import grpc

from nvcf_broker.kv import KvMirror
from nvcf_proto.ids import new_id
from nvcf_proto.models import INSTANCES_BUCKET, Instance, InstanceState
from nvcf_proto.pb import nvcf_pb2, nvcf_pb2_grpc
from nvcf_proto.secrets import function_secrets_path
from tests.support.platform.gateways import Platform, Version
from tests.support.platform.records import add_instance, write_record
from tests.support.waiting import eventually

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


async def end_instances(platform: Platform, version: Version) -> None:
    """Close the records of a version's instances, as the autoscaler does when it is not deployed any more."""
    client = await platform.broker_client()
    try:
        async with KvMirror(client, INSTANCES_BUCKET, Instance.from_json, Instance.to_json) as mirror:
            await mirror.ready()
            for key, each in mirror.items():
                if each.version_id == version.id:
                    over = each.replace(state=InstanceState.COMPLETED)
                    await write_record(platform, INSTANCES_BUCKET, key, over.to_json())
    finally:
        await client.close()


CREDENTIALS = "/v2/nvcf/agents/secret-credentials"


async def started(platform: Platform, version: Version, cluster: str = "of-secrets") -> Instance:
    """Return a new instance of a version in a registered cluster; a gateway may know it a moment later."""
    cluster_id = await platform.register_cluster(cluster)
    return await add_instance(platform, version, InstanceState.STARTING, cluster_id=cluster_id)


async def ask_for_token(
    platform: Platform, instance: Instance, cluster: str = "of-secrets"
) -> tuple[int, dict[str, Any]]:
    """Ask for a token for the secrets of an instance as the agent of a cluster; return status and answer."""
    body = {
        "instanceId": instance.id,
        "functionId": instance.function_id,
        "functionVersionId": instance.version_id,
    }
    headers = {
        "Authorization": f"Bearer {platform.cluster_key(cluster).read_text()}",
        "X-Nv-Cluster-Id": platform.cluster_ids[cluster],
    }
    url = platform.gateway.url + CREDENTIALS
    async with platform.session.post(url, json=body, headers=headers) as response:
        return response.status, await response.json()


async def agent_token(platform: Platform, version: Version) -> str:
    """Return a token for the secrets of a new instance, requested as an agent does."""
    instance = await started(platform, version)
    answers: list[dict[str, Any]] = []

    async def given() -> bool:
        status, answer = await ask_for_token(platform, instance)
        answers.append(answer)
        return status == 200

    await eventually(given, "the gateway knows the instance")
    return str(answers[-1]["token"])


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
