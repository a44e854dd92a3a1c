"""Management API: API keys. The text of a key is shown once, when it is made; only its hash is stored."""

from __future__ import annotations

import re
import time
from typing import Any

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator, Caller
from nvcf_gateway.errors import HttpProblem, invalid_field
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.management.bodies import KeyCreation
from nvcf_gateway.management.resources import authorized, stored, update
from nvcf_gateway.management.shown import shown
from nvcf_gateway.quotas.limits import Quota
from nvcf_gateway.quotas.usage import Usage
from nvcf_gateway.registry import Registry
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import ApiKey, Scope
from nvcf_proto.models.keys import api_key_id, hash_api_key, new_api_key

_KEY_ID = re.compile(r"[0-9a-f]{12}")


class ApiKeys:
    """Handlers of `/v2/nvcf/keys…`: for keys with the scope admin that are not limited to some functions."""

    def __init__(self, authenticator: Authenticator, registry: Registry, usage: Usage) -> None:
        self._usage = usage
        self._authenticator = authenticator
        self._registry = registry

    async def create(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST /v2/nvcf/keys: make a key that can do no more than the caller's own key."""
        caller, now = self._admin(request), time.time()
        wanted = await read_record(request, KeyCreation)
        expires_at = wanted.expiry()
        if expires_at is not None and expires_at <= now:
            raise invalid_field(InvalidRecord("expiresAt", "lies in the past"))
        for scope in wanted.scopes:
            # Otherwise an account's admin could give itself reach into other accounts.
            caller.require(scope)
        account = wanted.nca_id or caller.nca_id
        if account != caller.nca_id:
            caller.require(Scope.SERVICE)
        self._usage.require(account, Quota.KEYS)
        text = new_api_key()
        record = ApiKey(
            id=api_key_id(text),
            secret_hash=hash_api_key(text),
            nca_id=account,
            scopes=wanted.scopes,
            created_at=now,
            description=wanted.description,
            expires_at=expires_at,
            function_ids=wanted.function_ids or (),
            created_by=caller.subject,
        )
        await stored(self._registry.keys.create(record.id, record))
        return json_response(
            200, {"key": {**shown_key(record), "key": text}}, headers=[("Cache-Control", "no-store")]
        )

    async def list(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/keys: list the keys that are not revoked, oldest first, without their text."""
        caller = self._admin(request)
        records = [
            record
            for record in self._registry.keys.values()
            if record.nca_id == caller.nca_id and record.revoked_at is None
        ]
        records.sort(key=lambda each: (each.created_at, each.id))
        return json_response(200, {"keys": [shown_key(record) for record in records]})

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/keys/{keyId}."""
        return json_response(200, {"key": shown_key(self._own(self._admin(request), values))})

    async def revoke(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE /v2/nvcf/keys/{keyId}; each replica refuses the key as soon as it learns of it."""
        record = self._own(self._admin(request), values)
        now = time.time()
        await update(self._registry.keys, record.id, lambda key: key.revoked(now))
        return web.Response(status=204)

    def _admin(self, request: web.BaseRequest) -> Caller:
        caller = authorized(self._authenticator, request, Scope.ADMIN)
        caller.require_unlimited("manage keys")
        return caller

    def _own(self, caller: Caller, values: dict[str, str]) -> ApiKey:
        key_id = values["key_id"]
        record = self._registry.keys.get(key_id) if _KEY_ID.fullmatch(key_id) else None
        # A key of another account looks like a missing one.
        if record is None or record.revoked_at is not None or record.nca_id != caller.nca_id:
            raise HttpProblem(404, f"no API key {key_id[:64]}")
        return record


def shown_key(record: ApiKey) -> dict[str, Any]:
    """Return a key as the management API shows it."""
    members = shown(record, "createdAt", "expiresAt")
    hidden = {"secretHash", "revokedAt", "createdBy", "versions"} | (
        set() if record.function_ids else {"functionIds"}
    )
    return {name: value for name, value in members.items() if name not in hidden}
