"""Other accounts of a platform: keys as an operator makes them, and their callers."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import aiohttp

from nvcf_broker.connection import connect_broker
from nvcf_broker.kv import KvMirror
from nvcf_proto.models import API_KEYS_BUCKET, ApiKey, Scope
from nvcf_proto.models.keys import api_key_id, hash_api_key, new_api_key
from tests.support.platform.nvcf_up import LocalUp


async def account_key(up: LocalUp, account: str, *scopes: Scope) -> str:
    """Return a new key of an account."""
    key = new_api_key()
    record = ApiKey(
        id=api_key_id(key),
        secret_hash=hash_api_key(key),
        nca_id=account,
        scopes=scopes,
        created_at=time.time(),
    )
    credentials = up.data / "broker" / "control.credentials"
    client = await connect_broker(up.state["nats"], credentials, name="test")
    try:
        async with KvMirror(client, API_KEYS_BUCKET, ApiKey.from_json, ApiKey.to_json) as keys:
            await keys.create(record.id, record)
    finally:
        await client.close()
    return key


@dataclass(frozen=True)
class Account:
    """What somebody with a key asks of a gateway."""

    url: str
    key: str

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return the status and the JSON of the response."""
        headers = {"Authorization": f"Bearer {self.key}"}
        async with aiohttp.ClientSession(self.url, headers=headers) as session:
            async with session.request(method, path, json=body) as response:
                text = await response.text()
                return response.status, json.loads(text) if text else None

    async def deploy(self, name: str, **process: Any) -> tuple[str, str]:
        """Deploy one instance of a process function. Return the ids of function and version."""
        source = {"python": sys.executable, **process}
        status, made = await self.call("POST", "/v2/nvcf/functions", {"name": name, "process": source})
        assert status < 300, made
        function, version = made["function"]["id"], made["function"]["versionId"]
        path = f"/v2/nvcf/deployments/functions/{function}/versions/{version}"
        one = {"minInstances": 1, "maxInstances": 1}
        status, made = await self.call("POST", path, {"deploymentSpecifications": [one]})
        assert status < 300, made
        return function, version

    async def invoke(self, function: str, body: Any) -> Any:
        """Return the response of a call that succeeds."""
        status, answer = await self.call("POST", f"/v2/nvcf/pexec/functions/{function}", body)
        assert status == 200, answer
        return answer
