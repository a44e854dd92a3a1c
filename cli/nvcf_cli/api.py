"""The platform's HTTP API as the commands use it (protocol.md, section 4 and the management routes)."""

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import aiohttp

from nvcf_cli.errors import CliError

MANAGEMENT_TIMEOUT_SECONDS = 30.0
CONNECT_TIMEOUT_SECONDS = 5.0

Json = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """Which platform to talk to, as whom."""

    url: str
    key: str


class ApiProblem(CliError):
    """The platform refused; `status` is the HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Api:
    """One session with a platform; an async context manager. All calls raise `CliError`."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._session: aiohttp.ClientSession | None = None
        self._account: str | None = None

    @property
    def url(self) -> str:
        """The platform's address."""
        return self._target.url

    @property
    def authorization(self) -> dict[str, str]:
        """The header that says on whose behalf calls are made."""
        return {"Authorization": f"Bearer {self._target.key}"}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={**self.authorization, "User-Agent": "nvcf"},
            auto_decompress=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: float | None = MANAGEMENT_TIMEOUT_SECONDS,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and yield its response, whatever its status. `timeout`: seconds for all of it."""
        if self._session is None:
            raise CliError("the API session is not open")
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT_SECONDS)
        try:
            async with self._session.request(
                method, self._target.url + path, headers=headers, data=body, timeout=limits
            ) as response:
                yield response
        except aiohttp.InvalidURL as error:
            raise CliError(f"{self._target.url} is no address: check --url") from error
        except aiohttp.ClientConnectorError as error:
            raise CliError(
                f"nothing answers at {self._target.url}: is the platform up (nvcf up), is --url right?"
            ) from error
        except TimeoutError as error:
            limit = f" within {timeout:g} s" if timeout is not None else ""
            raise CliError(f"no answer from {self._target.url}{limit}") from error
        except aiohttp.ClientError as error:
            raise CliError(f"the connection to {self._target.url} broke: {error}") from error

    async def call(self, method: str, path: str, body: Json | None = None) -> Json:
        """Send a management call with JSON and return the JSON answer; `ApiProblem` for anything but 2xx."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        data = json.dumps(body).encode() if body is not None else None
        async with self.request(method, path, headers=headers, body=data) as response:
            text = await response.read()
            if response.status >= 300:
                raise ApiProblem(response.status, problem_text(response.status, text))
        if not text:
            return {}
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise CliError(f"{self._target.url} does not answer like this platform: check --url")
        return answer

    async def functions(self) -> list[Json]:
        """Return all versions of all functions of the account."""
        return objects(await self.call("GET", "/v2/nvcf/functions"), "functions")

    async def instances(self, version_id: str | None = None) -> list[Json]:
        """Return the instance records of one version or of all."""
        query = f"?functionVersionId={version_id}" if version_id else ""
        return objects(await self.call("GET", f"/v2/nvcf/instances{query}"), "instances")

    async def account_path(self, path: str) -> str:
        """Return the path of an administrator's route of the key's account."""
        if self._account is None:
            self._account = str((await self.call("GET", "/v2/nvcf/quotas")).get("account", ""))
        return f"/v1/accounts/{quote(self._account, safe='')}{path}"

    async def quotas(self) -> list[Json]:
        """Return use and limit of each quota of the key's account."""
        return objects(await self.call("GET", "/v2/nvcf/quotas"), "quotas")

    async def troubles(self) -> list[Json]:
        """Return what does not work on the platform: objects with `part` and `detail`."""
        try:
            async with self.request("GET", "/health/ready") as response:
                found = json.loads(await response.read())
        except (ValueError, RecursionError):
            return []
        return objects(found, "troubles") if isinstance(found, dict) else []

    async def clusters(self) -> list[Json]:
        """Return the cluster records as their agents last wrote them."""
        return objects(await self.call("GET", "/v2/nvcf/clusters"), "clusters")

    async def telemetries(self) -> list[Json]:
        """Return the account's telemetry endpoints."""
        return objects(await self.call("GET", "/v2/nvcf/telemetries"), "telemetries")

    async def events(
        self, version_id: str | None = None, *, kind: str | None = None, limit: int = 100
    ) -> list[Json]:
        """Return what happened to one version or to all, newest first."""
        query = {"functionVersionId": version_id, "kind": kind, "limit": str(limit)}
        text = urlencode({name: value for name, value in query.items() if value is not None})
        return objects(await self.call("GET", f"/v2/nvcf/events?{text}"), "events")

    async def create_version(self, body: Json, function_id: str | None) -> Json:
        """Create a function (`function_id` None) or a version of one; return its description."""
        path = f"/v2/nvcf/functions/{function_id}/versions" if function_id else "/v2/nvcf/functions"
        answer = await self.call("POST", path, body)
        function = answer.get("function")
        if not isinstance(function, dict):
            raise CliError("the platform answered without the new function")
        return function

    async def deploy(self, function_id: str, version_id: str, deployment: Json) -> None:
        """Give a version instances."""
        await self.call("POST", _deployment(function_id, version_id), deployment)

    async def deployment(self, function_id: str, version_id: str) -> Json:
        """Return the deployment of a version."""
        answer = await self.call("GET", _deployment(function_id, version_id))
        found: Json = answer.get("deployment") or {}
        return found

    async def change_deployment(self, function_id: str, version_id: str, deployment: Json) -> Json:
        """Change a deployment in place and return it."""
        answer = await self.call("PUT", _deployment(function_id, version_id), deployment)
        changed: Json = answer.get("deployment") or {}
        return changed

    async def undeploy(self, function_id: str, version_id: str) -> bool:
        """Take a version's instances away; False if it had no deployment."""
        try:
            await self.call("DELETE", _deployment(function_id, version_id))
        except ApiProblem as problem:
            if problem.status == 404:
                return False
            raise
        return True

    async def delete_version(self, function_id: str, version_id: str) -> None:
        """Remove a version that is not deployed; the last one takes its function along."""
        await self.call("DELETE", f"/v2/nvcf/functions/{function_id}/versions/{version_id}")


def _deployment(function_id: str, version_id: str) -> str:
    return f"/v2/nvcf/deployments/functions/{function_id}/versions/{version_id}"


def objects(answer: Json, name: str) -> list[Json]:
    """Return the objects in the list `name` of an answer; none if it has no such list."""
    values = answer.get(name)
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def problem_text(status: int, body: bytes) -> str:
    """Return a problem document, or whatever came instead, as one line."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        title, detail = document.get("title"), document.get("detail")
        text = ": ".join(str(part) for part in (title, detail) if part)
    else:
        text = body[:300].decode(errors="replace").strip()
    hint = {
        401: " (is the key right? see --key-file and NVCF_API_KEY)",
        403: " (this key may not do that)",
    }.get(status, "")
    return " ".join(f"{text or 'refused'} [HTTP {status}]{hint}".split())
