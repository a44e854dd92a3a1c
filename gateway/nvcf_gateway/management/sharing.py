"""Management API: functions shared with other accounts, and rate limits of versions."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.management.bodies import Authorizations, RateLimitPolicy
from nvcf_gateway.management.functions import Management
from nvcf_gateway.management.resources import update
from nvcf_gateway.registry import Registry
from nvcf_proto.models import Function, FunctionVersion, RateLimit, Scope


class Sharing:
    """Handlers of `/v2/nvcf/functions/{id}/authorizations`: which accounts may invoke all its versions."""

    def __init__(self, registry: Registry, management: Management) -> None:
        self._registry = registry
        self._management = management

    async def put(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT: share the function with these accounts and no others."""
        function = self._management.function(request, Scope.MANAGE, values)
        wanted = await read_record(request, Authorizations)
        return await self._write(function, tuple(party.nca_id for party in wanted.authorized_parties))

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET: return the accounts."""
        return _shown(self._management.function(request, Scope.LIST, values))

    async def delete(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE: share the function with nobody."""
        return await self._write(self._management.function(request, Scope.MANAGE, values), ())

    async def _write(self, function: Function, accounts: tuple[str, ...]) -> web.StreamResponse:
        others = tuple(dict.fromkeys(account for account in accounts if account != function.nca_id))
        changed = await update(
            self._registry.functions, function.id, lambda record: record.replace(authorized=others)
        )
        if changed is None:
            raise HttpProblem(404, f"no function {function.id}")
        return _shown(changed)


def _shown(function: Function) -> web.StreamResponse:
    parties = [{"ncaId": account} for account in function.authorized]
    shown = {"id": function.id, "ncaId": function.nca_id, "authorizedParties": parties}
    return json_response(200, {"function": shown})


class RateLimits:
    """Handlers of `/v2/nvcf/functions/{id}/versions/{vid}/rate-limit`."""

    def __init__(self, registry: Registry, management: Management) -> None:
        self._registry = registry
        self._management = management

    async def put(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT: replace the policy."""
        version = self._management.version(request, Scope.MANAGE, values)
        wanted = await read_record(request, RateLimitPolicy)
        policy = RateLimit.from_dict(wanted.to_dict())
        return json_response(200, _policy(await self._write(version, policy)))

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET: return the policy; 404 when the version has none."""
        version = self._management.version(request, Scope.LIST, values)
        if version.rate_limit is None:
            raise HttpProblem(404, f"version {version.id} has no rate limit")
        return json_response(200, _policy(version))

    async def delete(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE: remove the policy."""
        version = self._management.version(request, Scope.MANAGE, values)
        await self._write(version, None)
        return web.Response(status=204)

    async def _write(self, version: FunctionVersion, policy: RateLimit | None) -> FunctionVersion:
        changed = await update(
            self._registry.versions, version.id, lambda record: record.replace(rate_limit=policy)
        )
        if changed is None:
            raise HttpProblem(404, f"function {version.function_id} has no version {version.id}")
        return changed


def _policy(version: FunctionVersion) -> dict[str, Any]:
    config = None if version.rate_limit is None else version.rate_limit.to_dict()
    return {"functionId": version.function_id, "functionVersionId": version.id, "config": config}
