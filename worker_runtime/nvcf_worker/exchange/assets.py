"""Fetching input assets before a handler runs (protocol.md, section 4.7)."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
from pathlib import Path
from typing import Protocol

import aiohttp
from yarl import URL

from nvcf_proto import settings
from nvcf_proto.errors import InvalidId
from nvcf_proto.ids import parse_id
from nvcf_proto.pb import nvcf_pb2
from nvcf_proto.pb.nvcf_pb2 import WorkerInvokeFunctionRequest as Request
from nvcf_worker.control.tls import client_context
from nvcf_worker.errors import AssetUnavailable, ControlError
from nvcf_worker.function.request import Asset
from nvcf_worker.process.durations import Backoff

log = logging.getLogger("nvcf_worker")

ATTEMPTS = 5
BACKOFF = Backoff(first=0.2, limit=5.0)
CHUNK = 1024 * 1024
PARALLEL = 4
EXPIRED = frozenset((400, 401, 403, 404, 410))
"""Statuses of object stores for a URL whose signature has expired."""


class AssetCredentials(Protocol):
    """Renews the URLs of assets."""

    async def refresh_asset(self, request_id: str, asset_id: str, api: str) -> str:
        """Return a new URL, from the service at `api` (directResponseUrl). Raises ControlError."""


class AssetFetcher:
    """Downloads the assets of requests, PARALLEL at once."""

    def __init__(self, http: HttpClient, credentials: AssetCredentials, *, open_files: bool = False) -> None:
        self._http = http
        self._credentials = credentials
        self._mode = 0o755 if open_files else 0o700

    async def fetch(self, message: Request, directory: Path) -> dict[str, Asset]:
        """Download all assets of a request into `directory`; return them by id. Raises AssetUnavailable."""
        gate = asyncio.Semaphore(PARALLEL)

        async def one(reference: nvcf_pb2.InputAssetReference) -> Asset:
            async with gate:
                return await self._one(message, reference, directory)

        await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True, mode=self._mode)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(reference)) for reference in message.inputAssetReference]
        except BaseException as error:
            # Nobody else removes the files that are there already.
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
            if isinstance(error, ExceptionGroup):
                raise error.exceptions[0] from None
            raise
        return {asset.id: asset for asset in (task.result() for task in tasks)}

    async def _one(self, message: Request, reference: nvcf_pb2.InputAssetReference, directory: Path) -> Asset:
        try:
            asset_id = parse_id(reference.assetId, "assetId")
        except InvalidId as error:
            raise AssetUnavailable(str(error)) from None
        asset = Asset(asset_id, directory / asset_id, reference.contentType)
        url, problem, refreshed = reference.reference, "", False
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(BACKOFF.delay(attempt - 1, random.random()))  # noqa: S311 - jitter
            try:
                status = await self._download(url, asset.path)
                if status == 200:
                    return asset
                problem = f"its store answered {status}"
                if status in EXPIRED:
                    if refreshed and status != 403:
                        break
                    api = message.directResponseUrl
                    url = await self._credentials.refresh_asset(message.requestId, asset_id, api)
                    refreshed = True
            except ControlError as error:
                problem = str(error)
                if error.permanent:
                    break
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
        log.error("asset %s could not be fetched: %s", asset_id, problem)
        raise AssetUnavailable(f"input asset {asset_id} could not be fetched")

    async def _download(self, url: str, path: Path) -> int:
        # Encoded: the URL is sent as it is, because its signature may cover every character.
        async with self._http.session().get(URL(url, encoded=True)) as response:
            if response.status != 200:
                return response.status
            file = await asyncio.to_thread(path.open, "wb")
            try:
                async for chunk in response.content.iter_chunked(CHUNK):
                    await asyncio.to_thread(file.write, chunk)
            finally:
                await asyncio.to_thread(file.close)
            return 200


class HttpClient:
    """A connection pool for object stores, opened on first use."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    def session(self) -> aiohttp.ClientSession:
        """Return the pool."""
        if self._session is None:
            self._session = self._open()
        return self._session

    def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=client_context()),
            # `sock_read` starts when the request is sent; a store that reads nothing has only `total`.
            timeout=aiohttp.ClientTimeout(total=settings.CALL_MAX_SECONDS, sock_connect=10.0, sock_read=60.0),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
