"""Large results and input assets: objects in the broker's object store, reached by links (section 4)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from nvcf_broker.errors import BrokerError
from nvcf_broker.objects import BucketFullError, ObjectBucket, StoredObject
from nvcf_gateway.access.signed_links import Links
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.exchange.sinks import SERVER
from nvcf_gateway.queue.regional_buckets import RegionalBuckets

_log = logging.getLogger(__name__)

LINK_LIFE = 24 * 3600.0
UPLOAD_LINK_LIFE = 3600.0
UPLOAD_METHODS = ("PUT", "POST")


async def upload(
    request: web.BaseRequest, bucket: ObjectBucket, name: str, headers: dict[str, str], limit: int
) -> StoredObject:
    """Store a request's body. Raises HttpProblem 413, 503 and 507."""
    if request.content_length is not None and request.content_length > limit:
        raise HttpProblem(413, f"at most {limit} bytes are taken")
    try:
        return await bucket.put(name, _limited(request, limit), headers)
    except BucketFullError as error:
        raise HttpProblem(507, str(error)) from None
    except BrokerError as error:
        raise HttpProblem(503, str(error), headers={"Retry-After": "1"}) from None


async def _limited(request: web.BaseRequest, limit: int) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise HttpProblem(413, f"at most {limit} bytes are taken")
        yield chunk


async def download(
    request: web.BaseRequest, buckets: RegionalBuckets, name: str, content_type: str
) -> web.StreamResponse:
    """Stream an object. Raises HttpProblem 404 and 503."""
    try:
        found = await buckets.find(name)
    except BrokerError as error:
        raise HttpProblem(503, str(error), headers={"Retry-After": "1"}) from None
    if found is None:
        raise HttpProblem(404, "there is no such object (any more)")
    bucket, stored = found
    kind = stored.headers.get("content-type", content_type)
    headers = {
        "Content-Type": kind,
        "X-Content-Type-Options": "nosniff",
        # Anybody's HTML, on the origin where the dashboard keeps its session.
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Server": SERVER,
    }
    response = web.StreamResponse(headers=headers)
    response.content_length = stored.size
    await response.prepare(request)
    try:
        async for chunk in bucket.read(stored):
            await response.write(chunk)
    except BrokerError as error:
        _log.warning("download broke off: %s", error)
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("download aborted") from None
    await response.write_eof()
    return response


class LargeResults:
    """Zipped results beyond the direct size: the worker uploads, the caller follows a 302."""

    def __init__(self, buckets: RegionalBuckets, links: Links, limit: int) -> None:
        self._buckets = buckets
        self._links = links
        self._limit = limit

    def upload_url(self, request_id: str) -> str:
        """Where the worker puts the result of a request."""
        until = time.time() + LINK_LIFE
        return self._links.make(_result_path(request_id), "result-put", request_id, expires_at=until)

    def download_url(self, request_id: str) -> str:
        """Where the caller gets it."""
        until = time.time() + LINK_LIFE
        return self._links.make(_result_path(request_id), "result-get", request_id, expires_at=until)

    async def put(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """PUT /v2/nvcf/results/{requestId}."""
        request_id = values["request_id"]
        self._links.check(request.query, "result-put", request_id, time.time())
        kind = request.headers.get("Content-Type", "application/zip")
        await upload(request, self._buckets.own, request_id, {"content-type": kind[:256]}, self._limit)
        return web.Response(status=200)

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """GET /v2/nvcf/results/{requestId}."""
        request_id = values["request_id"]
        self._links.check(request.query, "result-get", request_id, time.time())
        return await download(request, self._buckets, request_id, "application/zip")


def _result_path(request_id: str) -> str:
    return f"/v2/nvcf/results/{request_id}"


def asset_headers(account: str, content_type: str, description: str) -> dict[str, str]:
    """What is stored beside an asset."""
    return {"account": account, "content-type": content_type, "description": json.dumps(description)}


def shown_asset(stored: StoredObject) -> dict[str, Any]:
    """An asset as the API lists it."""
    return {
        "assetId": stored.name,
        "contentType": stored.headers.get("content-type", "application/octet-stream"),
        "description": json.loads(stored.headers.get("description", '""')),
    }
