"""The connection to the API server: its address, certificates and token, and one call."""

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from kubernetes.aio import config
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config.incluster_config import SERVICE_HOST_ENV_NAME

from nvcf_agent.errors import AgentError
from nvcf_agent.kubernetes.client.errors import ApiError

USER_AGENT = "nvcf-agent"
JSON = "application/json"
# The cluster's key set has a type of its own, and no other.
_ACCEPT = f"{JSON}, application/jwk-set+json"
CALL_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
_LONGEST_TEXT = 500


class Connection:
    """Calls the API server with the identity of a kubeconfig or of the agent's pod.

    The token of a pod is read again every minute. Any credentials are loaded again when the API server does
    not accept them any more.
    """

    def __init__(self, configuration: Configuration, kubeconfig: str | None) -> None:
        self._configuration = configuration
        self._kubeconfig = kubeconfig
        self._rest = RESTClientObject(configuration)

    @classmethod
    async def open(cls, kubeconfig: str | None = None) -> Self:
        """Load the settings of a kubeconfig, of the agent's pod, or of the user's kubeconfig, in this order.

        Calls nothing yet. Raises `AgentError` if they cannot be used.
        """
        configuration = Configuration()
        try:
            await _load(configuration, kubeconfig)
            return cls(configuration, kubeconfig)
        except (config.ConfigException, OSError, ssl.SSLError, ValueError) as error:
            raise AgentError(f"cannot use the settings of the Kubernetes API server: {error}") from error

    async def close(self) -> None:
        """Close all connections."""
        await self._rest.close()

    async def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        content_type: str = JSON,
        deadline: float = CALL_SECONDS,
    ) -> bytes:
        """Return the body of the answer, within `deadline` seconds. Raises `ApiError`."""
        async with self.stream(
            method, path, query, body, content_type=content_type, deadline=deadline
        ) as answer:
            return await answer.read()

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        content_type: str = JSON,
        deadline: float,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Call, and give the answer to be read within `deadline` seconds. Raises `ApiError`, also then."""
        url = self._configuration.host + path + (f"?{urlencode(query, quote_via=quote)}" if query else "")
        what = f"{method} {path}"
        # aiohttp's total covers all from the connection to the last byte read.
        limits = aiohttp.ClientTimeout(total=deadline, sock_connect=min(_CONNECT_SECONDS, deadline))
        try:
            answer = await self._send(method, url, content_type, body, limits)
            if answer.status == HTTPStatus.UNAUTHORIZED:
                answer.close()
                async with asyncio.timeout(deadline):
                    await _load(self._configuration, self._kubeconfig)
                answer = await self._send(method, url, content_type, body, limits)
            # A connection whose answer is not read to its end is closed here, the others are used again.
            async with answer:
                if answer.status >= HTTPStatus.BAD_REQUEST:
                    raise _refusal(answer.status, await answer.read(), what)
                yield answer
        except TimeoutError as error:
            raise ApiError(0, "Timeout", f"{what}: no answer within {deadline:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError, config.ConfigException) as error:
            raise ApiError(0, type(error).__name__, f"{what}: {error}") from error

    async def _send(
        self, method: str, url: str, content_type: str, body: Any, limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": _ACCEPT, "Content-Type": content_type, "User-Agent": USER_AGENT}
        if token := await self._configuration.get_api_key_with_prefix("BearerToken"):
            headers["Authorization"] = token
        answer = await self._rest.request(method, url, headers, body=body, _request_timeout=limits)
        response: aiohttp.ClientResponse = answer.response
        return response


async def _load(configuration: Configuration, kubeconfig: str | None) -> None:
    if kubeconfig is None and os.environ.get(SERVICE_HOST_ENV_NAME):
        config.load_incluster_config(client_configuration=configuration)
    else:
        await config.load_kube_config(kubeconfig, client_configuration=configuration, persist_config=False)


def _refusal(status: int, body: bytes, what: str) -> ApiError:
    """Return the error that the API server's answer tells."""
    try:
        told = msgspec.json.decode(body)
        return ApiError(status, str(told["reason"]), str(told["message"]))
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError):
        if status == HTTPStatus.NOT_FOUND:
            hint = "404, there is no such kind: is its custom resource definition installed?"
            return ApiError(status, "", f"{what}: {hint}")
        text = body[:_LONGEST_TEXT].decode(errors="replace").strip()
        return ApiError(status, "", f"{what}: {status} {text}")
