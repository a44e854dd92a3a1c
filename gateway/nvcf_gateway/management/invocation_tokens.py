"""Management API: tokens that invoke some functions for a while, and whose account a client is of."""

from __future__ import annotations

import time
from typing import Annotated

from aiohttp import web
from msgspec import Meta

from nvcf_gateway.access.authorization import Authenticator, Authorizer, Caller
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import Route, path_id
from nvcf_gateway.management.resources import authorized, stored
from nvcf_gateway.quotas.limits import Quota
from nvcf_gateway.quotas.usage import Usage
from nvcf_gateway.registry import Registry
from nvcf_proto.models import ApiKey, Scope
from nvcf_proto.models.keys import api_key_id, hash_api_key, new_api_key
from nvcf_proto.models.record import Id, Record

LIFE_SECONDS = 900.0
MOST_FUNCTIONS = 4
_BASE = "/v2/nvcf/tokens/functions"

ClientId = Annotated[str, Meta(min_length=1, max_length=256, description="Who is going to use the token.")]


class TokenFunction(Record, frozen=True, forbid_unknown_fields=True):
    """A function that a token may invoke: one version, or without one all of them."""

    function_id: Id
    function_version_id: Id | None = None


class TokenCreation(Record, frozen=True, forbid_unknown_fields=True):
    """A token for the function of the path."""

    client_id: ClientId


class FunctionsTokenCreation(TokenCreation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A token for several functions."""

    functions: Annotated[tuple[TokenFunction, ...], Meta(min_length=1, max_length=MOST_FUNCTIONS)]


class InvocationTokens:
    """Handlers of `/v2/nvcf/tokens/functions…` and `/v2/nvcf/clients/{clientId}`.

    A token is an API key that can only invoke, and that goes by itself.
    """

    def __init__(self, authenticator: Authenticator, registry: Registry, usage: Usage) -> None:
        self._authenticator = authenticator
        self._authorizer = Authorizer(registry)
        self._registry = registry
        self._usage = usage

    def routes(self) -> list[Route]:
        """Return the routes."""
        function = f"{_BASE}/{{function_id}}"
        return [
            ("POST", _BASE, self.for_several),
            ("POST", function, self.for_function),
            ("POST", f"{function}/versions/{{version_id}}", self.for_function),
            ("GET", "/v2/nvcf/clients/{client_id}", self.client),
        ]

    async def for_several(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST …/functions: make a token for up to four functions."""
        caller = authorized(self._authenticator, request, Scope.INVOKE)
        wanted = await read_record(request, FunctionsTokenCreation)
        return await self._made(caller, wanted.client_id, wanted.functions)

    async def for_function(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST …/functions/{id}[/versions/{vid}]: make a token for one function or version."""
        caller = authorized(self._authenticator, request, Scope.INVOKE)
        function_id = path_id(values, "function_id")
        version_id = path_id(values, "version_id") if "version_id" in values else None
        wanted = await read_record(request, TokenCreation)
        return await self._made(caller, wanted.client_id, (TokenFunction(function_id, version_id),))

    async def _made(
        self, caller: Caller, client_id: str, functions: tuple[TokenFunction, ...]
    ) -> web.StreamResponse:
        for each in functions:
            self._authorizer.require_invocable(caller, each.function_id, each.function_version_id)
        now = time.time()
        end = min(now + LIFE_SECONDS, caller.key.expires_at or float("inf"))
        self._usage.require(caller.nca_id, Quota.KEYS)
        whole = {each.function_id for each in functions if each.function_version_id is None}
        text = new_api_key()
        record = ApiKey(
            id=api_key_id(text),
            secret_hash=hash_api_key(text),
            nca_id=caller.nca_id,
            scopes=(Scope.INVOKE,),
            created_at=now,
            description=f"invocation token for {client_id}",
            expires_at=end,
            function_ids=tuple(dict.fromkeys(each.function_id for each in functions)),
            versions=tuple(
                (each.function_id, each.function_version_id)
                for each in functions
                if each.function_version_id is not None and each.function_id not in whole
            ),
            created_by=caller.subject,
        )
        await stored(self._registry.keys.put(record.id, record, life=end - now))
        answer = {"access_token": text, "expires_in": int(end - now)}
        return json_response(200, answer, headers=[("Cache-Control", "no-store")])

    async def client(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/clients/{clientId}: return whose API key it is. Services see all accounts'."""
        caller = authorized(self._authenticator, request, Scope.ADMIN)
        client_id = values["client_id"]
        key = self._registry.keys.get(client_id)
        visible = key is not None and (key.nca_id == caller.nca_id or caller.key.allows(Scope.SERVICE))
        if key is None or key.revoked_at is not None or not visible:
            raise HttpProblem(404, f"Client '{client_id[:64]}': Not found")
        members = {"clientId": key.id, "ncaId": key.nca_id, "name": key.nca_id}
        return json_response(200, {"client": members})
