"""Input assets: uploaded once, named in `NVCF-INPUT-ASSET-REFERENCES`, fetched by the worker.

An asset is announced with its content type, which returns its id and an upload URL. The upload creates it: an
asset that was announced but never uploaded does not exist (protocol.md, section 4.7).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta

from nvcf_broker.errors import BrokerError
from nvcf_broker.objects import StoredObject
from nvcf_gateway.access.authorization import Authenticator, Caller
from nvcf_gateway.access.signed_tokens import SignedUrls
from nvcf_gateway.errors import HttpProblem, broker_errors
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import Route
from nvcf_gateway.objects.large_results import UPLOAD_METHODS, URL_LIFE, download, upload
from nvcf_gateway.queue.message import AssetReference
from nvcf_gateway.queue.regional_buckets import Found, RegionalBuckets
from nvcf_gateway.quotas.asset_index import AssetIndex
from nvcf_gateway.quotas.limits import Quota
from nvcf_gateway.quotas.usage import Usage
from nvcf_proto.errors import InvalidId
from nvcf_proto.ids import new_id, parse_id
from nvcf_proto.models import Scope
from nvcf_proto.models.record import Record, matching

UPLOAD_URL_LIFE = 3600.0
MAX_REFERENCES = 64
AT_ONCE = 16
_PATH = "/v2/nvcf/assets"
_ANNOUNCED = "announced"
_FUNCTIONS = "functions"
"""Of an asset that a key limited to some functions has made: the ids of those."""


class AssetCreation(Record, frozen=True, forbid_unknown_fields=True):
    """An asset that is announced."""

    content_type: Annotated[
        str, matching(r"[\x21-\x7e]+/[\x20-\x7e]+", max_length=256, examples=["image/png"])
    ]
    description: Annotated[str, Meta(max_length=1024)] = ""


class Assets:
    """Handlers of `/v2/nvcf/assets…`, and the assets that an invocation names."""

    def __init__(
        self,
        authenticator: Authenticator,
        buckets: RegionalBuckets,
        urls: SignedUrls,
        limit: int,
        life: float,
        index: AssetIndex,
        usage: Usage,
    ) -> None:
        self._life = life
        self._index = index
        self._usage = usage
        self._authenticator = authenticator
        self._buckets = buckets
        self._urls = urls
        self._limit = limit

    def routes(self) -> list[Route]:
        """Return the routes of assets."""
        asset = "/v2/nvcf/assets/{asset_id}"
        return [
            ("POST", "/v2/nvcf/assets", self.create),
            ("GET", "/v2/nvcf/assets", self.list_all),
            ("GET", asset, self.get),
            ("DELETE", asset, self.delete),
            ("GET", f"{asset}/content-redirect", self.redirect),
            *((method, asset, self.put) for method in UPLOAD_METHODS),
        ]

    async def create(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST /v2/nvcf/assets: announce an asset and return where to upload it."""
        caller = self._caller(request)
        wanted = await read_record(request, AssetCreation)
        self._usage.require(caller.nca_id, Quota.ASSETS)
        asset_id = new_id()
        made_for = {_FUNCTIONS: " ".join(caller.key.function_ids)} if caller.key.function_ids else {}
        url = await self._announce(caller.nca_id, asset_id, wanted.content_type, wanted.description, made_for)
        announced = {
            "assetId": asset_id,
            "uploadUrl": url,
            "contentType": wanted.content_type,
            "description": wanted.description,
        }
        return json_response(200, announced)

    async def announce(self, account: str, asset_id: str, content_type: str, description: str) -> str:
        """Announce an asset on behalf of an account, unless there is one; return where to upload it.

        An asset that is there stays until the upload is complete. Raises HttpProblem 503 and 507.
        """
        if await self._found(asset_id) is not None:
            return self._upload_url(asset_id)
        self._usage.require(account, Quota.ASSETS)
        return await self._announce(account, asset_id, content_type, description, {})

    async def _announce(
        self, account: str, asset_id: str, content_type: str, description: str, more: dict[str, str]
    ) -> str:
        headers = {
            "account": account,
            "content-type": content_type,
            "description": json.dumps(description),
            _ANNOUNCED: "true",
        }
        with broker_errors():
            await self._index.note(account, asset_id, 0, self._life)
            await self._buckets.put(asset_id, _empty(), headers | more)
        return self._upload_url(asset_id)

    def _upload_url(self, asset_id: str) -> str:
        until = time.time() + UPLOAD_URL_LIFE
        return self._urls.make(f"{_PATH}/{asset_id}", "asset-put", asset_id, expires_at=until)

    async def put(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT /v2/nvcf/assets/{assetId}: the upload URL."""
        asset_id = values["asset_id"]
        self._urls.check(request.query, "asset-put", asset_id, time.time())
        found = await self._found(asset_id)
        if found is None:
            raise HttpProblem(404, f"no asset {asset_id}")
        bucket, announced = found
        headers = {name: value for name, value in announced.headers.items() if name != _ANNOUNCED}
        account = announced.headers.get("account", "")
        before, size = self._index.size_of(account, asset_id), request.content_length or 0
        self._usage.require(account, Quota.ASSET_BYTES, size - before)
        limit = self._limit
        if request.content_length is None:
            # Uploads of unknown length at the same time see the same room.
            limit = min(limit, before + self._usage.room(account, Quota.ASSET_BYTES))
        try:
            with broker_errors():
                await self._index.note(account, asset_id, size, self._life)
            stored = await upload(request, bucket, asset_id, headers, limit)
        except BaseException:
            with contextlib.suppress(BrokerError):
                await self._index.note(account, asset_id, before, self._life)
            raise
        if stored.size != size:
            with broker_errors():
                await self._index.note(account, asset_id, stored.size, self._life)
        return web.Response(status=200)

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/assets/{assetId}: its description, or by a signed URL the asset itself."""
        asset_id = values["asset_id"]
        if "seal" in request.query:
            self._urls.check(request.query, "asset-get", asset_id, time.time())
            return await download(request, self._buckets, asset_id, "application/octet-stream")
        return json_response(200, {"asset": _shown(await self._own(self._caller(request), asset_id))})

    async def redirect(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/assets/{assetId}/content-redirect: say where the asset itself is."""
        stored = await self._own(self._caller(request), values["asset_id"])
        headers = {"Location": self.download_url(stored.name), "Cache-Control": "no-store"}
        return web.Response(status=302, headers=headers)

    async def list_all(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/assets: list the account's assets that are uploaded."""
        caller = self._caller(request)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(asset_id: str) -> StoredObject | None:
            async with gate:
                found = await self._found(asset_id)
            usable = found is not None and _ANNOUNCED not in found[1].headers and _may_use(caller, found[1])
            return found[1] if found is not None and usable else None

        found = await asyncio.gather(*map(one, self._index.ids(caller.nca_id)))
        return json_response(200, {"assets": [_shown(each) for each in found if each is not None]})

    async def delete(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE /v2/nvcf/assets/{assetId}."""
        caller = self._caller(request)
        stored = await self._own(caller, values["asset_id"])
        if caller.key.function_ids and _FUNCTIONS not in stored.headers:
            raise HttpProblem(403, "an API key limited to some functions deletes only assets of such keys")
        with broker_errors():
            await self._buckets.delete(stored.name)
            await self._index.forget(stored.headers.get("account", ""), stored.name)
        return web.Response(status=204)

    async def references(self, caller: Caller, ids: Iterable[str]) -> tuple[AssetReference, ...]:
        """Return where a worker fetches each asset. Raises HttpProblem 400 and 404."""
        wanted = list(dict.fromkeys(ids))
        if len(wanted) > MAX_REFERENCES:
            raise HttpProblem(400, f"at most {MAX_REFERENCES} assets can be referenced")
        found = []
        for asset_id in wanted:
            stored = await self._own(caller, asset_id)
            url, kind = self.download_url(stored.name), stored.headers["content-type"]
            found.append(AssetReference(stored.name, url, kind))
        return tuple(found)

    def download_url(self, asset_id: str) -> str:
        """Return a new download URL."""
        until = time.time() + URL_LIFE
        return self._urls.make(f"{_PATH}/{asset_id}", "asset-get", asset_id, expires_at=until)

    async def content_type(self, asset_id: str, nca_id: str) -> str | None:
        """Return the content type of an account's asset, None if there is none. Raises HttpProblem 503."""
        found = await self._found(asset_id)
        if found is None or _ANNOUNCED in found[1].headers or found[1].headers.get("account") != nca_id:
            return None
        return found[1].headers["content-type"]

    def _caller(self, request: web.BaseRequest) -> Caller:
        caller = self._authenticator.caller(request.headers)
        caller.require(Scope.INVOKE)
        return caller

    async def _own(self, caller: Caller, asset_id: str) -> StoredObject:
        try:
            found = await self._found(parse_id(asset_id, "asset id"))
        except InvalidId:
            found = None
        stored = None if found is None else found[1]
        # An asset of others looks like a missing one, so that nobody can probe for ids.
        if stored is None or _ANNOUNCED in stored.headers or not _may_use(caller, stored):
            raise HttpProblem(404, f"no asset {asset_id[:64]}")
        return stored

    async def _found(self, asset_id: str) -> Found | None:
        with broker_errors():
            return await self._buckets.find(asset_id)


def _shown(stored: StoredObject) -> dict[str, Any]:
    return {
        "assetId": stored.name,
        "contentType": stored.headers.get("content-type", "application/octet-stream"),
        "description": json.loads(stored.headers.get("description", '""')),
    }


def _may_use(caller: Caller, stored: StoredObject) -> bool:
    """Whether an asset is the account's, and not that of keys for other functions only."""
    if stored.headers.get("account") != caller.nca_id:
        return False
    made_for = stored.headers.get(_FUNCTIONS, "").split()
    return (
        not made_for or not caller.key.function_ids or not set(made_for).isdisjoint(caller.key.function_ids)
    )


async def _empty() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for part in nothing:
        yield part
