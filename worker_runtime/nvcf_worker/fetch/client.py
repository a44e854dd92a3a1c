"""HTTP for downloads: deadlines, redirects that are checked, and logins of registries."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from nvcf_worker.control.tls import client_context
from nvcf_worker.errors import WorkerError
from nvcf_worker.fetch.addresses import GuardedResolver, check_address, host_of

_MOST_REDIRECTS = 5
_CONNECT_SECONDS = 20.0
_SILENCE_SECONDS = 60.0
_REDIRECTS = (301, 302, 303, 307, 308)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_LARGEST_TOKEN = 2**20


class FetchError(WorkerError):
    """An artifact cannot be downloaded. `retry`: another try may help."""

    exit_code = 1
    category = "fetch"

    def __init__(self, text: str, *, retry: bool = False) -> None:
        super().__init__(text)
        self.retry = retry


class Client:
    """Makes GET requests. `allow_private`: redirects may lead to private addresses.

    `plain` are registries without TLS.
    """

    def __init__(self, *, allow_private: bool = False, plain: frozenset[str] = frozenset()) -> None:
        self._allow_private = allow_private
        self._plain = plain
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
        self._sessions = [
            aiohttp.ClientSession(
                timeout=timeout,
                connector=aiohttp.TCPConnector(
                    resolver=GuardedResolver(allow_private=private), ssl=client_context(), use_dns_cache=False
                ),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            for private in (True, allow_private)
        ]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in self._sessions:
            await session.close()

    def scheme_of(self, host: str) -> str:
        """Return the scheme of a registry."""
        return "http" if host in self._plain else "https"

    @staticmethod
    def basic(login: tuple[str, str]) -> dict[str, str]:
        """Return the header of a login."""
        return {"Authorization": "Basic " + base64.b64encode(":".join(login).encode()).decode()}

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open a response, after redirects. Credentials stay with their host. Raises FetchError."""
        target, sent = URL(url, encoded=True), dict(headers)
        for hops in range(_MOST_REDIRECTS + 1):
            private = hops == 0 or self._allow_private
            try:
                check_address(target.host or "", allow_private=private)
                async with self._sessions[0 if hops == 0 else 1].get(
                    target, headers=sent, allow_redirects=False
                ) as response:
                    if response.status not in _REDIRECTS or "Location" not in response.headers:
                        yield response
                        return
                    following = target.join(URL(response.headers["Location"], encoded=True))
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise _failure(error) from error
            if following.scheme not in ("http", "https") or (target.scheme, following.scheme) == (
                "https",
                "http",
            ):
                raise FetchError("a redirect leads away from HTTPS")
            if host_of(following) != host_of(target):
                own = ("authorization", "x-amz-security-token", "x-amz-date", "x-amz-content-sha256")
                sent = {name: value for name, value in sent.items() if name.lower() not in own}
            target = following
        raise FetchError(f"more than {_MOST_REDIRECTS} redirects")

    async def read(self, url: str, headers: Mapping[str, str], limit: int) -> bytes:
        """Return a small body. Raises FetchError."""
        async with self.get(url, headers) as response:
            check_status(response.status)
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > limit:
                    raise FetchError(f"an answer of more than {limit} bytes")
            return bytes(body)

    async def registry_headers(
        self, url: str, repository: str, login: tuple[str, str] | None
    ) -> dict[str, str]:
        """Return the headers with which a registry lets a repository be read. Raises FetchError."""
        async with self.get(url, {}) as response:
            if response.status != 401:
                return {}
            challenge = response.headers.get("WWW-Authenticate", "")
        if not challenge.lower().startswith("bearer"):
            return self.basic(login) if login is not None else {}
        asked = dict(_CHALLENGE.findall(challenge))
        realm = asked.get("realm", "")
        query = {"scope": f"repository:{repository}:pull"}
        query |= {"service": asked["service"]} if "service" in asked else {}
        text = await self.read(
            f"{realm}?{urlencode(query)}", self.basic(login) if login is not None else {}, _LARGEST_TOKEN
        )
        try:
            answer = json.loads(text)
            return {"Authorization": f"Bearer {answer.get('token') or answer['access_token']}"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FetchError("the registry gave no token") from error


def check_status(status: int) -> None:
    """Raise FetchError unless a status is 200 or 206."""
    if status in (200, 206):
        return
    reasons = {401: "a login is missing or wrong", 403: "access is denied", 404: "there is no such file"}
    retry = status in (408, 425, 429) or status >= 500
    reason = f": {reasons[status]}" if status in reasons else ""
    raise FetchError(f"HTTP {status}{reason}", retry=retry)


def _failure(error: Exception) -> FetchError:
    inner: BaseException | None = error
    while inner is not None:
        if type(inner).__name__ == "AddressRefused":
            return FetchError(str(inner))
        inner = getattr(inner, "os_error", None) or inner.__cause__
    return FetchError(str(error) or type(error).__name__, retry=True)
