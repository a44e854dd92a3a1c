"""Management API: API keys. The text of a key is shown once, when it is made; only its hash is stored."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator, Caller
from nvcf_gateway.errors import HttpProblem, invalid_field
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.management.functions import json_body, stored, timestamp
from nvcf_gateway.management.update import amend
from nvcf_gateway.registry import Registry
from nvcf_proto.apikeys import api_key_id, hash_api_key, new_api_key
from nvcf_proto.errors import InvalidId, InvalidRecord
from nvcf_proto.ids import parse_id
from nvcf_proto.models import ACCOUNT_PATTERN, ApiKey, Scope
from nvcf_proto.records import Fields

MAX_FUNCTIONS = 256
_FIELDS = frozenset(("scopes", "description", "functionIds", "expiresAt", "ncaId"))
_KEY_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class KeyWish:
    """What a new key shall be good for. `expires_at` is a Unix time in seconds."""

    scopes: tuple[Scope, ...]
    description: str | None
    function_ids: tuple[str, ...]
    expires_at: float | None
    nca_id: str | None


def read_wish(fields: Fields, now: float) -> KeyWish:
    """Read a creation body. Raises InvalidRecord naming the field."""
    fields.only(_FIELDS)
    expires_at = read_time(fields, "expiresAt") if fields.has("expiresAt") else None
    if expires_at is not None and expires_at <= now:
        raise InvalidRecord("expiresAt", "lies in the past")
    return KeyWish(
        scopes=_scopes(fields),
        description=fields.optional_text("description", max_length=1024),
        function_ids=_function_ids(fields),
        expires_at=expires_at,
        nca_id=fields.optional_text("ncaId", pattern=ACCOUNT_PATTERN),
    )


def _scopes(fields: Fields) -> tuple[Scope, ...]:
    scopes = []
    for index, text in enumerate(fields.texts("scopes")):
        if text not in set(Scope):
            raise InvalidRecord(f"scopes[{index}]", f"expected one of {', '.join(sorted(Scope))}")
        scopes.append(Scope(text))
    if not scopes:
        raise InvalidRecord("scopes", "a key needs at least one scope")
    return tuple(dict.fromkeys(scopes))


def _function_ids(fields: Fields) -> tuple[str, ...]:
    values = fields.texts("functionIds")
    if len(values) > MAX_FUNCTIONS:
        raise InvalidRecord("functionIds", f"more than {MAX_FUNCTIONS} functions")
    if fields.has("functionIds") and not values:
        # An empty list would be read as "for no function" by some and as "for all" by others.
        raise InvalidRecord("functionIds", "empty; leave it out for a key that is good for all functions")
    ids = []
    for index, value in enumerate(values):
        try:
            ids.append(parse_id(value, "functionIds"))
        except InvalidId:
            raise InvalidRecord(f"functionIds[{index}]", "not a UUID") from None
    return tuple(dict.fromkeys(ids))


def read_time(fields: Fields, name: str) -> float:
    """An RFC 3339 time with its offset as Unix seconds. Raises InvalidRecord."""
    try:
        moment = datetime.fromisoformat(fields.text(name, max_length=64))
        if moment.tzinfo is None:
            raise ValueError
        return moment.astimezone(UTC).timestamp()
    except (ValueError, OverflowError) as error:
        if isinstance(error, InvalidRecord):
            raise
        raise InvalidRecord(fields.path(name), "expected a time like 2030-01-31T12:00:00Z") from None


class ApiKeys:
    """Handlers of `/v2/nvcf/keys…`: for keys with the scope admin that are not limited to some functions."""

    def __init__(self, authenticator: Authenticator, registry: Registry) -> None:
        self._authenticator = authenticator
        self._registry = registry

    async def create(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """POST /v2/nvcf/keys: a new key of the caller's account, which can do no more than the caller's."""
        caller, now = self._admin(request), time.time()
        fields = await json_body(request)
        try:
            wish = read_wish(fields, now)
        except InvalidRecord as error:
            raise invalid_field(error) from None
        for scope in wish.scopes:
            # Otherwise an account's admin could give itself reach into other accounts.
            caller.require(scope)
        account = wish.nca_id or caller.nca_id
        if account != caller.nca_id:
            caller.require(Scope.SERVICE)
        text = new_api_key()
        record = ApiKey(
            id=api_key_id(text),
            secret_hash=hash_api_key(text),
            nca_id=account,
            scopes=wish.scopes,
            created_at=now,
            description=wish.description,
            expires_at=wish.expires_at,
            function_ids=wish.function_ids,
        )
        await stored(self._registry.keys.create(record.id, record))
        return json_response(
            200, {"key": {**shown_key(record), "key": text}}, headers=[("Cache-Control", "no-store")]
        )

    async def list(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """GET /v2/nvcf/keys: the account's keys but the revoked ones, oldest first, without their texts."""
        caller = self._admin(request)
        records = [
            record
            for record in self._registry.keys.values()
            if record.nca_id == caller.nca_id and record.revoked_at is None
        ]
        records.sort(key=lambda each: (each.created_at, each.id))
        return json_response(200, {"keys": [shown_key(record) for record in records]})

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """GET /v2/nvcf/keys/{keyId}."""
        return json_response(200, {"key": shown_key(self._own(self._admin(request), values))})

    async def revoke(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """DELETE /v2/nvcf/keys/{keyId}: in effect on every replica as soon as it has heard of it."""
        record = self._own(self._admin(request), values)
        now = time.time()
        await amend(self._registry.keys, record.id, lambda key: key.revoked(now))
        return web.Response(status=204)

    def _admin(self, request: web.BaseRequest) -> Caller:
        caller = self._authenticator.caller(request.headers)
        caller.require(Scope.ADMIN)
        caller.require_unlimited("manage keys")
        return caller

    def _own(self, caller: Caller, values: dict[str, str]) -> ApiKey:
        key_id = values["key_id"]
        record = self._registry.keys.get(key_id) if _KEY_ID.fullmatch(key_id) else None
        # Another account's key is as unknown as one that is not there.
        if record is None or record.revoked_at is not None or record.nca_id != caller.nca_id:
            raise HttpProblem(404, f"no API key {key_id[:64]}")
        return record


def shown_key(record: ApiKey) -> dict[str, Any]:
    """A key as the management API shows it."""
    shown = {
        "id": record.id,
        "ncaId": record.nca_id,
        "scopes": [scope.value for scope in record.scopes],
        "description": record.description,
        "functionIds": list(record.function_ids) or None,
        "createdAt": timestamp(record.created_at),
        "expiresAt": None if record.expires_at is None else timestamp(record.expires_at),
    }
    return {key: value for key, value in shown.items() if value is not None}
