"""HTTP calls of the agent to the control plane (protocol.md, section 6.5)."""

from functools import cache
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

import aiohttp

from nvcf_agent.errors import ControlPlaneError
from nvcf_agent.icms.identity import Identity
from nvcf_proto.icms.reports import (
    Acknowledgement,
    Heartbeat,
    HeartbeatAnswer,
    Jwks,
    KnownInstances,
    PrefetchImages,
    Registration,
    RegistrationAnswer,
    StatusReport,
)
from nvcf_proto.launch import DISTRIBUTION
from nvcf_proto.models import Record

TIMEOUT_SECONDS = 10.0
_LARGEST_ANSWER = 16 * 1024 * 1024
_DETAIL_LIMIT = 200


@cache
def agent_version() -> str:
    """Return the version of this package."""
    return version(DISTRIBUTION)


class IcmsClient:
    """Makes one call at a time with a deadline; whoever calls decides about another try.

    Every method raises `ControlPlaneError` for any answer but 200 and for none, `IdentityError` without a key
    or token, and `InvalidRecord` for an answer that cannot be read.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, cluster_id: str, identity: Identity) -> None:
        self._session = session
        self.url = url.rstrip("/")
        self._cluster_id = cluster_id
        self._identity = identity

    async def register(self, registration: Registration) -> RegistrationAnswer:
        """Register what the cluster has."""
        body = await self._call("PUT", f"/v1/nvca/clusters/{self._cluster_id}/register", registration)
        return RegistrationAnswer.from_json(body)

    async def heartbeat(self, heartbeat: Heartbeat) -> HeartbeatAnswer:
        """Send a heartbeat."""
        body = await self._call("POST", f"/v1/nvca/clusters/{self._cluster_id}/heartbeat", heartbeat)
        return HeartbeatAnswer.from_json(body)

    async def acknowledge(self, request_id: str, body: Acknowledgement, trace: str | None) -> None:
        """Acknowledge a request: this agent has taken it on."""
        await self._call("PUT", f"/v1/sirs/{quote(request_id, safe='')}", body, trace=trace)

    async def report(self, request_id: str, instance_id: str, body: StatusReport) -> None:
        """Report an instance's state."""
        path = f"/v1/sirs/{quote(request_id, safe='')}/{quote(instance_id, safe='')}"
        await self._call("POST", path, body)

    async def instances(self) -> KnownInstances:
        """Return the cluster's instances as the control plane knows them."""
        return KnownInstances.from_json(
            await self._call("GET", f"/v1/si/clusters/{self._cluster_id}/instances")
        )

    async def prefetch(self) -> PrefetchImages:
        """Return the images that nodes are to have [ext]."""
        return PrefetchImages.from_json(
            await self._call("GET", f"/v1/nvca/clusters/{self._cluster_id}/prefetch")
        )

    async def put_jwks(self, jwks: str) -> None:
        """Send the key set by which the control plane checks this agent's tokens, as text of JSON."""
        await self._call("PUT", f"/v1/nvca/clusters/{self._cluster_id}/jwks", Jwks(jwks))

    async def headers(self) -> dict[str, str]:
        """Return the headers by which the control plane knows this agent. Raises `IdentityError`."""
        return {
            "Authorization": f"Bearer {await self._identity.current()}",
            "X-Nv-Cluster-Id": self._cluster_id,
            "User-Agent": f"nvcf-agent/{agent_version()}",
            "Accept": "application/json",
        }

    async def _call(
        self, method: str, path: str, body: Record | None = None, *, trace: str | None = None
    ) -> bytes:
        headers = await self.headers()
        if body is not None:
            headers["Content-Type"] = "application/json"
        if trace is not None:
            headers["traceparent"] = trace
        options: dict[str, Any] = {"data": body.to_json()} if body is not None else {}
        try:
            async with self._session.request(
                method,
                self.url + path,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
                allow_redirects=False,
                **options,
            ) as response:
                answer = await response.content.read(_LARGEST_ANSWER)
                # A stream may give less than was asked for.
                while not response.content.at_eof() and len(answer) < _LARGEST_ANSWER:
                    answer += await response.content.read(_LARGEST_ANSWER - len(answer))
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            reason = str(error) or type(error).__name__
            raise ControlPlaneError(f"{method} {path}: no answer ({reason})") from error
        if status != 200:
            raise ControlPlaneError(f"{method} {path}: HTTP {status}{_detail(answer)}", status)
        return answer


def _detail(answer: bytes) -> str:
    text = " ".join(answer[: 4 * _DETAIL_LIMIT].decode(errors="replace").split())[:_DETAIL_LIMIT]
    return f" {text}" if text else ""
