"""Management API: secrets of functions. Values come in and never go out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import Route
from nvcf_gateway.management.functions import Management
from nvcf_gateway.management.resources import update
from nvcf_gateway.management.secret_bodies import SecretsChange, values_of
from nvcf_gateway.registry import Registry
from nvcf_gateway.secrets.owners import Owner
from nvcf_gateway.secrets.store import SecretStore
from nvcf_proto.models import FunctionVersion, Scope

BASE = "/v2/nvcf/secrets"
MAX_BODY = 1024 * 1024
"""Values may need six bytes for each of theirs in JSON."""


class FunctionSecrets:
    """Handlers of `/v2/nvcf/secrets/functions/…`."""

    def __init__(
        self,
        authenticator: Authenticator,
        registry: Registry,
        management: Management,
        store: SecretStore,
    ) -> None:
        self._authenticator = authenticator
        self._registry = registry
        self._management = management
        self._store = store

    def routes(self) -> list[Route]:
        """Return the routes."""
        function = f"{BASE}/functions/{{function_id}}"
        version = f"{function}/versions/{{version_id}}"
        return [
            ("PUT", function, self.put_all),
            ("GET", function, self.get_all),
            ("PUT", version, self.put),
            ("GET", version, self.get),
            ("DELETE", version, self.delete),
            ("DELETE", f"{version}/names/{{secret_name}}", self.delete_one),
        ]

    async def put(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT …/functions/{id}/versions/{vid}: add secrets, replace those of the same name."""
        version = self._management.version(request, Scope.MANAGE, values)
        wanted = values_of((await read_record(request, SecretsChange, MAX_BODY)).secrets)
        await self._merge(version, wanted, self._by(request))
        return web.Response(status=204)

    async def put_all(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT …/functions/{id} [ext]: the same for every version of the function."""
        function = self._management.function(request, Scope.MANAGE, values)
        wanted = values_of((await read_record(request, SecretsChange, MAX_BODY)).secrets)
        by = self._by(request)
        for version in self._registry.versions_of(function.id):
            await self._merge(version, wanted, by)
        return web.Response(status=204)

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET …/functions/{id}/versions/{vid} [ext]: return the names."""
        return json_response(200, self._shown(self._management.version(request, Scope.LIST, values)))

    async def get_all(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET …/functions/{id} [ext]: return the names of each version."""
        function = self._management.function(request, Scope.LIST, values)
        versions = [self._shown(version) for version in self._registry.versions_of(function.id)]
        return json_response(200, {"functions": versions})

    async def delete(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE …/functions/{id}/versions/{vid} [ext]: remove all secrets of a version."""
        version = self._management.version(request, Scope.MANAGE, values)
        await self._store.remove(Owner.version(version), self._by(request))
        return web.Response(status=204)

    async def delete_one(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE …/versions/{vid}/names/{name} [ext]: remove one secret."""
        version = self._management.version(request, Scope.MANAGE, values)
        name = values["secret_name"]
        removed = await self._store.remove(Owner.version(version), self._by(request), [name])
        if not removed:
            raise HttpProblem(404, f"version {version.id} has no secret {name[:64]}")
        return web.Response(status=204)

    async def _merge(self, version: FunctionVersion, wanted: Mapping[str, Any], by: str) -> None:
        await self._store.merge(Owner.version(version), wanted, by)
        if wanted and not version.has_secrets:
            await update(self._registry.versions, version.id, lambda record: record.replace(has_secrets=True))

    def _by(self, request: web.BaseRequest) -> str:
        return self._authenticator.caller(request.headers).subject

    def _shown(self, version: FunctionVersion) -> dict[str, Any]:
        names = self._store.names(Owner.version(version).key)
        return {"id": version.function_id, "versionId": version.id, "secrets": names}
