"""Finds the files of an artifact: one at a URL, the keys of a bucket, the layers of an OCI artifact."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from yarl import URL

from nvcf_worker.fetch import s3
from nvcf_worker.fetch.addresses import host_of
from nvcf_worker.fetch.artifacts import Artifact, Logins, file_name
from nvcf_worker.fetch.client import Client, FetchError

MOST_FILES = 10_000
_LARGEST_LIST = 16 * 2**20
_TITLE = "org.opencontainers.image.title"
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
)
_HUB, _HUB_SERVER = "docker.io", "registry-1.docker.io"


@dataclass(frozen=True)
class RemoteFile:
    """A file to download: its path below the artifact's folder, and where it is.

    `headers` returns those of a request, made anew for each try. `archive`: it is unpacked into the folder.
    `local`: it is a file of this machine instead. `renew` gets a new token when the old one is refused.
    """

    path: PurePosixPath
    url: str
    headers: Callable[[], Mapping[str, str]] = field(default=dict, repr=False)
    size: int | None = None
    sha256: str | None = None
    archive: bool = False
    local: Path | None = None
    renew: Callable[[], Awaitable[None]] | None = None


class Sources:
    """Finds files with the account's logins.

    `environ` has AWS' variables. Addresses with `file:` may name what is in `folders`.
    """

    def __init__(
        self, client: Client, logins: Logins, environ: Mapping[str, str], folders: tuple[Path, ...] = ()
    ) -> None:
        self._client = client
        self._logins = logins
        self._environ = environ
        self._folders = folders

    async def files(self, artifact: Artifact) -> list[RemoteFile]:
        """Return the files of an artifact. Raises FetchError."""
        match urlsplit(artifact.uri).scheme:
            case "s3":
                found = await self._s3(artifact)
            case "oci":
                found = await self._oci(artifact)
            case "file":
                found = await asyncio.to_thread(self._local, artifact)
            case _:
                found = [self._http(artifact)]
        if not found:
            raise FetchError(f"{artifact.label}: there is nothing at its address")
        if len(found) > MOST_FILES:
            raise FetchError(f"{artifact.label}: more than {MOST_FILES} files")
        if artifact.sha256 is not None and len(found) > 1:
            raise FetchError(f"{artifact.label}: a checksum is for one file, here are {len(found)}")
        for each in found:
            if each.path.is_absolute() or ".." in each.path.parts or not each.path.name:
                raise FetchError(f"{artifact.label}: {str(each.path)!r} is no path below its folder")
        return found

    def _http(self, artifact: Artifact) -> RemoteFile:
        login = self._logins.of(host_of(URL(artifact.uri)))
        headers = self._client.basic(login) if login is not None else {}
        name = PurePosixPath(artifact.path or file_name(artifact.uri, artifact.name))
        return RemoteFile(name, artifact.uri, lambda: headers, sha256=artifact.sha256)

    async def _s3(self, artifact: Artifact) -> list[RemoteFile]:
        bucket, key = s3.parse_s3(artifact.uri)
        settings = s3.S3Settings.of(self._environ, self._logins.of(bucket))

        def remote(name: str, path: PurePosixPath, size: int | None) -> RemoteFile:
            url = settings.url(bucket, name)
            headers = lambda: s3.signed_headers(settings, url)  # noqa: E731
            return RemoteFile(path, url, headers, size, artifact.sha256)

        if key and not key.endswith("/"):
            return [remote(unquote(key), PurePosixPath(file_name(artifact.uri, artifact.name)), None)]
        prefix, found, token = unquote(key), [], None
        while True:
            url = settings.url(bucket, query=s3.list_query(prefix, token))
            text = await self._client.read(url, s3.signed_headers(settings, url), _LARGEST_LIST)
            try:
                page = s3.parse_page(text)
            except ValueError as error:
                raise FetchError(f"{artifact.label}: {error}") from error
            keys = [(name, size) for name, size in page.keys if not name.endswith("/")]
            found += [remote(name, PurePosixPath(name.removeprefix(prefix)), size) for name, size in keys]
            token = page.next_token
            if token is None or len(found) > MOST_FILES:
                return found

    async def _oci(self, artifact: Artifact) -> list[RemoteFile]:
        host, repository, reference = parse_oci(artifact.uri)
        login = self._logins.of(host)
        server = _HUB_SERVER if host == _HUB else host
        base = f"{self._client.scheme_of(server)}://{server}/v2/{repository}"
        url = f"{base}/manifests/{reference}"
        headers: dict[str, str] = {}

        async def renew() -> None:
            headers.update(await self._client.registry_headers(url, repository, login))

        await renew()
        text = await self._client.read(url, {**headers, "Accept": _MANIFESTS}, _LARGEST_LIST)
        try:
            layers = list(json.loads(text)["layers"])
            return [replace(_layer(base, each, headers, artifact), renew=renew) for each in layers]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FetchError(f"{artifact.label}: its manifest has no layers") from error

    def _local(self, artifact: Artifact) -> list[RemoteFile]:
        path = Path(unquote(urlsplit(artifact.uri).path)).resolve()
        if not any(path.is_relative_to(folder.resolve()) for folder in self._folders):
            raise FetchError(f"{artifact.label}: files of this machine are only allowed below --files")
        if path.is_file():
            return [RemoteFile(PurePosixPath(path.name), "", local=path, sha256=artifact.sha256)]
        listed = sorted(each for each in path.rglob("*") if each.is_file() and not each.is_symlink())
        return [RemoteFile(PurePosixPath(each.relative_to(path)), "", local=each) for each in listed]


def _layer(base: str, layer: Mapping[str, Any], headers: Mapping[str, str], artifact: Artifact) -> RemoteFile:
    digest = str(layer["digest"])
    kind, title = str(layer.get("mediaType", "")), (layer.get("annotations") or {}).get(_TITLE)
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise FetchError(f"{artifact.label}: the digest {digest[:16]!r} is not known")
    archive = title is None and "tar" in kind
    name = PurePosixPath(title or digest.replace(":", "-"))
    return RemoteFile(
        name, f"{base}/blobs/{digest}", lambda: headers, layer.get("size"), digest[7:], archive=archive
    )


def parse_oci(uri: str) -> tuple[str, str, str]:
    """Return host, repository and tag or digest of `oci://HOST/REPOSITORY:TAG`. Raises FetchError."""
    host, _, rest = uri.removeprefix("oci://").partition("/")
    repository, at, digest = rest.partition("@")
    head, slash, last = repository.rpartition("/")
    name, _, tag = last.partition(":")
    if not host or not name:
        raise FetchError("an OCI artifact is written oci://HOST/REPOSITORY:TAG")
    return host.lower(), head + slash + name, digest if at else tag or "latest"
