"""An instance's first worker token, requested from the gateway's HTTP API."""

from typing import Protocol

import aiohttp

from nvcf_agent.errors import TokenError

PATH = "/v2/nvcf/agents/worker-tokens"
TIMEOUT_SECONDS = 10.0


class TokenSource(Protocol):
    """A source of worker tokens."""

    async def worker_token(self, instance_id: str, function_id: str, version_id: str) -> str:
        """Return a new token for one instance. Raises `TokenError`."""
        ...


class GatewayTokens:
    """Worker tokens by `POST /v2/nvcf/agents/worker-tokens`, authorised by an API key of scope `agent`."""

    def __init__(self, session: aiohttp.ClientSession, gateway: str, api_key: str) -> None:
        self._session = session
        self._url = gateway.rstrip("/") + PATH
        self._headers = {"Authorization": f"Bearer {api_key}"}

    async def worker_token(self, instance_id: str, function_id: str, version_id: str) -> str:
        body = {"instanceId": instance_id, "functionId": function_id, "functionVersionId": version_id}
        try:
            async with self._session.post(
                self._url,
                json=body,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    raise TokenError(f"the gateway gave no worker token (HTTP {response.status})")
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise TokenError(f"the gateway gave no worker token: {reason}") from error
        token = answer.get("token") if isinstance(answer, dict) else None
        if not isinstance(token, str) or not token:
            raise TokenError("the gateway's response has no worker token")
        return token
