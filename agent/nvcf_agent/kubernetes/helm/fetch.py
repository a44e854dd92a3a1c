"""Fetch charts from `https://…/name-version.tgz` and `oci://…`, and configurations of images.

A chart's URL comes from a user of the platform, and the agent sits in the cluster's network. So every
connection, those of redirects and token services included, goes to a public address, unless the operator has
named the host; and logins are sent only to the host that they are for. helm could fetch charts too, but
checks neither. The chart stays packed: helm reads the archive itself, within limits of its own.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import aiohttp
from yarl import URL

from nvcf_agent.kubernetes.helm.errors import ChartError, ChartPullError, ChartUnavailable
from nvcf_agent.kubernetes.helm.public_hosts import PublicResolver, check_literal
from nvcf_agent.kubernetes.pods.launch import decoded
from nvcf_proto.charts.objects import member
from nvcf_proto.charts.source import InvalidSource, Source, chart_source
from nvcf_proto.errors import InvalidRecord

SECONDS = 120.0
MOST_BYTES = 16 * 2**20
_MOST_DOCUMENT = 2**20
_MOST_REDIRECTS = 5
_CHART = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ACCEPTED = ", ".join(
    (
        _MANIFEST,
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "*/*",
    )
)
_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_TEXT = re.compile(r'(\w+)="([^"]*)"')
_REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class FetchSettings:
    """`private` are hosts, `HOST` or `HOST:PORT`, whose addresses need not be public; `plain` serve HTTP."""

    private: frozenset[str] = frozenset()
    plain: frozenset[str] = frozenset()
    most_bytes: int = MOST_BYTES
    seconds: float = SECONDS


def parse_source(url: str) -> Source:
    """Return where a chart is. Raises `ChartError`. Pure."""
    try:
        return chart_source(url)
    except InvalidSource as error:
        raise ChartError(f"helmChart {error}") from None


def parse_logins(text: str | None) -> dict[str, str]:
    """Return base64 of `user:password` by host from HELM_REGISTRIES_CREDENTIALS. Raises ChartError. Pure."""
    if not text:
        return {}
    try:
        document = decoded(text, "HELM_REGISTRIES_CREDENTIALS")
        return {
            host: str(login["auth"])
            for secret in document.get("k8sSecrets", ())
            for host, login in secret.get("auths", {}).items()
        }
    except (InvalidRecord, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ChartError("HELM_REGISTRIES_CREDENTIALS has not the expected form") from error


@dataclass
class Fetcher:
    """Fetches charts. Closes its connections after each."""

    settings: FetchSettings = field(default_factory=FetchSettings)

    async def fetch(self, url: str, logins: Mapping[str, str]) -> bytes:
        """Return a packed chart. Raises `ChartError` and `ChartUnavailable`."""
        source = parse_source(url)
        async with self._client(source, logins) as client:
            return await (client.pull() if source.repository else client.download())

    async def image_config(self, source: Source, logins: Mapping[str, str]) -> bytes:
        """Return the configuration of an image. Raises `ChartError` and `ChartUnavailable`."""
        async with self._client(source, logins) as client:
            return await client.config()

    @asynccontextmanager
    async def _client(self, source: Source, logins: Mapping[str, str]) -> AsyncGenerator["_Client"]:
        try:
            async with asyncio.timeout(self.settings.seconds):
                connector = aiohttp.TCPConnector(resolver=PublicResolver(self.settings.private))
                # A few compressed bytes may unpack to more than the agent has memory for.
                async with aiohttp.ClientSession(
                    connector=connector, trust_env=False, auto_decompress=False
                ) as session:
                    yield _Client(session, self.settings, logins, source)
        except TimeoutError:
            raise ChartUnavailable(f"{source.host} took longer than {self.settings.seconds:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ChartUnavailable(f"cannot fetch {source.url[:200]}: {error}") from error


@dataclass
class _Client:
    session: aiohttp.ClientSession
    settings: FetchSettings
    logins: Mapping[str, str]
    source: Source
    authorization: str | None = None

    async def download(self) -> bytes:
        """Return a file."""
        return await self._get(self.source.url, self._basic(), self.settings.most_bytes)

    async def pull(self) -> bytes:
        """Return the chart of an OCI artifact."""
        digest, size = _layer(await self._manifest(self.source.reference), self.source.url)
        if size > self.settings.most_bytes:
            raise _too_large(self.source.url, self.settings.most_bytes)
        return await self._blob(digest, self.settings.most_bytes)

    async def config(self) -> bytes:
        """Return the configuration of an image, of one that is for Linux where there are several."""
        found = await self._manifest(self.source.reference)
        listed = found.get("manifests")
        if isinstance(listed, list):
            found = await self._manifest(_for_linux(listed, self.source.url))
        config = found.get("config")
        digest = config.get("digest") if isinstance(config, dict) else None
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ChartError(f"{self.source.url} is no image: its manifest names no configuration")
        return await self._blob(digest, _MOST_DOCUMENT)

    @property
    def _base(self) -> str:
        host = self.source.host
        return f"{self._scheme(host)}://{host}/v2/{self.source.repository}"

    async def _manifest(self, reference: str) -> dict[str, Any]:
        url = f"{self._base}/manifests/{reference}"
        try:
            body = await self._get(url, self.authorization, _MOST_DOCUMENT)
        except _Unauthorized as refused:
            self.authorization = await self._authorize(refused.challenge)
            body = await self._get(url, self.authorization, _MOST_DOCUMENT)
        return _parsed(body, self.source.url)

    async def _blob(self, digest: str, most: int) -> bytes:
        body = await self._get(f"{self._base}/blobs/{digest}", self.authorization, most)
        if f"sha256:{hashlib.sha256(body).hexdigest()}" != digest:
            raise ChartUnavailable(f"{self.source.url} arrived damaged: its checksum is another one")
        return body

    def _basic(self) -> str | None:
        login = self.logins.get(self.source.host)
        return None if login is None else f"Basic {login}"

    def _scheme(self, host: str) -> str:
        return "http" if host in self.settings.plain else "https"

    async def _authorize(self, challenge: str) -> str | None:
        """Return the header that answers a registry's challenge."""
        kind, _, rest = challenge.partition(" ")
        if kind.lower() != "bearer":
            return self._basic()
        asked = dict(_TEXT.findall(rest))
        query = {
            "service": asked.get("service", ""),
            "scope": f"repository:{self.source.repository}:pull",
        }
        realm = f"{asked.get('realm', '')}?{urlencode(query)}"
        # The registry names the service that its logins are for.
        body = _parsed(await self._get(realm, self._basic(), _MOST_DOCUMENT, follow=False), realm)
        token = body.get("token") or body.get("access_token")
        return f"Bearer {token}" if isinstance(token, str) else None

    async def _get(self, url: str, authorization: str | None, most: int, *, follow: bool = True) -> bytes:
        """Return what a URL has, after redirects. Raises `ChartError` and aiohttp's errors."""
        origin = urlsplit(url).netloc
        for _ in range(_MOST_REDIRECTS if follow else 1):
            # aiohttp reads it as this: in other letters than those of ASCII, a name may be an address.
            target, netloc = URL(url), urlsplit(url).netloc
            self._check(target.scheme, netloc, target.host or "")
            headers = {"Accept": _ACCEPTED, "Accept-Encoding": "identity"}
            if authorization is not None and netloc == origin:
                headers["Authorization"] = authorization
            async with self.session.get(target, headers=headers, allow_redirects=False) as answer:
                if answer.status in _REDIRECTS and "Location" in answer.headers:
                    url = urljoin(url, answer.headers["Location"])
                    continue
                self._check_status(answer)
                found = bytearray()
                async for chunk in answer.content.iter_chunked(65_536):
                    found += chunk
                    if len(found) > most:
                        raise _too_large(self.source.url, most)
                return bytes(found)
        raise ChartPullError(f"{self.source.url} is redirected too often")

    def _check(self, scheme: str, netloc: str, host: str) -> None:
        if scheme != "https" and netloc not in self.settings.plain:
            raise ChartPullError(f"{netloc} does not use https: use a registry that does")
        check_literal(self.settings.private, netloc, host)

    def _check_status(self, answer: aiohttp.ClientResponse) -> None:
        status, host = answer.status, answer.url.host
        if status == HTTPStatus.OK:
            return
        if status == HTTPStatus.UNAUTHORIZED and self.source.repository and self.authorization is None:
            raise _Unauthorized(answer.headers.get("WWW-Authenticate", ""), self.source)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise _denied(self.source)
        if status == HTTPStatus.NOT_FOUND:
            text = f"there is no {self.source.what} {self.source.url}: check its name and version"
            raise ChartPullError(text)
        if status < HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.TOO_MANY_REQUESTS:
            raise ChartPullError(f"{host} answers {status} for {self.source.url}")
        raise ChartUnavailable(f"{host} answers {status} for {self.source.url}")


class _Unauthorized(ChartPullError):
    """The registry wants a login; `challenge` says which."""

    def __init__(self, challenge: str, source: Source) -> None:
        super().__init__(str(_denied(source)))
        self.challenge = challenge


def _denied(source: Source) -> ChartPullError:
    return ChartPullError(
        f"{source.host} refuses the {source.what}: add or renew the account's login for this host and "
        f"{source.what}s (`nvcf registry add`)"
    )


def _too_large(url: str, most: int) -> ChartError:
    return ChartError(f"{url} has more than {most // 2**20} MiB: leave what is no template out of the chart")


def _parsed(body: bytes, url: str) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ChartPullError(f"{url} does not answer as a registry does")
    return found


def _for_linux(manifests: list[Any], url: str) -> str:
    """Return the digest of the first image for Linux in an index."""
    for each in manifests:
        if member(each, "platform", "os") == "linux":
            digest = each.get("digest")
            if isinstance(digest, str) and _DIGEST.fullmatch(digest):
                return digest
    raise ChartError(f"{url} has no image for Linux")


def _layer(manifest: dict[str, Any], url: str) -> tuple[str, int]:
    """Return digest and size of the chart in an OCI manifest."""
    layers = manifest.get("layers")
    for each in layers if isinstance(layers, list) else ():
        if isinstance(each, dict) and each.get("mediaType") == _CHART:
            digest, size = each.get("digest"), each.get("size")
            if isinstance(digest, str) and _DIGEST.fullmatch(digest) and isinstance(size, int):
                return digest, size
    raise ChartError(f"{url} is no Helm chart: it has no layer of the type {_CHART}")
