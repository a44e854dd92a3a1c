"""Large results in the object store: workers upload, callers are redirected (protocol.md, section 4.8)."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator

from aiohttp import web

from nvcf_broker.errors import BrokerError
from nvcf_broker.objects import ObjectBucket, ObjectMissingError, StoredObject
from nvcf_gateway.access.signed_tokens import SignedUrls, UrlPurpose
from nvcf_gateway.errors import HttpProblem, broker_errors
from nvcf_gateway.http.responses import SERVER
from nvcf_gateway.http.routing import Route
from nvcf_gateway.queue.regional_buckets import RegionalBuckets

_log = logging.getLogger(__name__)

URL_LIFE = 24 * 3600.0
UPLOAD_METHODS = ("PUT", "POST")


async def upload(
    request: web.BaseRequest, bucket: ObjectBucket, name: str, headers: dict[str, str], limit: int
) -> StoredObject:
    """Store the body of a request. Raises HttpProblem 413, 503 and 507."""
    if request.content_length is not None and request.content_length > limit:
        raise HttpProblem(413, f"the body has more than {limit} bytes")
    with broker_errors():
        return await bucket.put(name, _limited(request, limit), headers)


async def _limited(request: web.BaseRequest, limit: int) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > limit:
            raise HttpProblem(413, f"the body has more than {limit} bytes")
        yield chunk


async def download(
    request: web.BaseRequest, buckets: RegionalBuckets, name: str, content_type: str
) -> web.StreamResponse:
    """Stream an object. Raises HttpProblem 404 and 503."""
    with broker_errors():
        found = await buckets.find(name)
    if found is None:
        raise HttpProblem(404, "there is no such object, or it has expired")
    bucket, stored = found
    chunks = bucket.read(stored)
    try:
        first = await anext(chunks, b"")
    except ObjectMissingError:
        raise HttpProblem(404, "there is no such object, or it has expired") from None
    except BrokerError as error:
        raise HttpProblem(503, str(error), headers={"Retry-After": "1"}) from None
    headers = {
        "Content-Type": stored.headers.get("content-type", content_type),
        "X-Content-Type-Options": "nosniff",
        # The object may be HTML of anybody, on the origin where the dashboard keeps its session.
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Server": SERVER,
    }
    response = web.StreamResponse(headers=headers)
    response.content_length = stored.size
    await response.prepare(request)
    try:
        if first:
            await response.write(first)
        async for chunk in chunks:
            await response.write(chunk)
    except BrokerError as error:
        _log.warning("download aborted: %s", error)
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("download aborted") from None
    await response.write_eof()
    return response


class LargeResults:
    """Zipped results that are too large for a direct response."""

    def __init__(self, buckets: RegionalBuckets, urls: SignedUrls, limit: int) -> None:
        self._buckets = buckets
        self._urls = urls
        self._limit = limit

    def upload_url(self, request_id: str) -> str:
        """Return the URL where the worker puts the result of a request."""
        return self._url("result-put", request_id)

    def download_url(self, request_id: str) -> str:
        """Return the URL where the caller gets the result of a request."""
        return self._url("result-get", request_id)

    def _url(self, purpose: UrlPurpose, request_id: str) -> str:
        path, until = f"/v2/nvcf/results/{request_id}", time.time() + URL_LIFE
        return self._urls.make(path, purpose, request_id, expires_at=until)

    def routes(self) -> list[Route]:
        """Return the routes of large results."""
        result = "/v2/nvcf/results/{request_id}"
        return [("GET", result, self.get), *((method, result, self.put) for method in UPLOAD_METHODS)]

    async def put(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT /v2/nvcf/results/{requestId}."""
        request_id = values["request_id"]
        self._urls.check(request.query, "result-put", request_id, time.time())
        kind = request.headers.get("Content-Type", "application/zip")
        await upload(request, self._buckets.own, request_id, {"content-type": kind[:256]}, self._limit)
        return web.Response(status=200)

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/results/{requestId}."""
        request_id = values["request_id"]
        self._urls.check(request.query, "result-get", request_id, time.time())
        return await download(request, self._buckets, request_id, "application/zip")
