"""Management API: functions shared with other accounts, under the routes of cloud-functions."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import Route
from nvcf_gateway.management.bodies import Authorizations, PartyChange
from nvcf_gateway.management.functions import Management
from nvcf_gateway.management.resources import authorized, update
from nvcf_gateway.registry import Registry
from nvcf_proto.models import MAX_ACCOUNTS_IN_LIST, Function, FunctionVersion, Scope

BASE = "/v2/nvcf/authorizations/functions"


class AuthorizedParties:
    """Handlers of `/v2/nvcf/authorizations/functions…`. All versions of a function share its accounts."""

    def __init__(self, authenticator: Authenticator, registry: Registry, management: Management) -> None:
        self._authenticator = authenticator
        self._registry = registry
        self._management = management

    def routes(self) -> list[Route]:
        """Return the routes."""
        function = f"{BASE}/{{function_id}}"
        return [
            ("GET", BASE, self.list_all),
            ("GET", function, self.list_versions),
            ("POST", function, self.replace),
            ("DELETE", function, self.clear),
            ("PATCH", f"{function}/add", self.add),
            ("PATCH", f"{function}/remove", self.remove),
            ("GET", f"{function}/versions/{{version_id}}", self.get),
        ]

    async def list_all(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET: list the versions that are shared with others."""
        caller = authorized(self._authenticator, request, Scope.LIST)
        shared = [
            version
            for version in self._registry.versions.values()
            if version.nca_id == caller.nca_id
            and caller.key.covers(version.function_id)
            and self._parties(version)
        ]
        shared.sort(key=lambda each: (each.created_at, each.id))
        return json_response(200, {"functions": [self._version(each) for each in shared]})

    async def list_versions(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET …/{id}: list the versions of a function with their accounts."""
        function = self._management.function(request, Scope.LIST, values)
        versions = self._registry.versions_of(function.id)
        return json_response(200, {"functions": [self._version(each) for each in versions]})

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET …/{id}/versions/{vid}: return the accounts of a version."""
        version = self._management.version(request, Scope.LIST, values)
        return json_response(200, {"function": self._version(version)})

    async def replace(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST …/{id}: share the function with these accounts and no others."""
        function = self._management.function(request, Scope.MANAGE, values)
        wanted = (await read_record(request, Authorizations)).authorized_parties
        accounts = [_other(function, each.nca_id, f"authorizedParties[{i}]") for i, each in enumerate(wanted)]
        return await self._write(function, lambda known: tuple(dict.fromkeys(accounts)))

    async def clear(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE …/{id}: share the function with nobody."""
        return await self._write(self._management.function(request, Scope.MANAGE, values), lambda known: ())

    async def add(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PATCH …/{id}/add: share the function with one more account."""
        function, account = await self._change(request, values)

        def more(known: tuple[str, ...]) -> tuple[str, ...]:
            if not known:
                raise HttpProblem(
                    404, f"Function id '{function.id}': No authorized parties; create them first"
                )
            if account in known:
                raise HttpProblem(
                    409, f"Function id '{function.id}': Account '{account}' is authorized already"
                )
            if len(known) >= MAX_ACCOUNTS_IN_LIST:
                raise HttpProblem(400, f"a function is shared with at most {MAX_ACCOUNTS_IN_LIST} accounts")
            return (*known, account)

        return await self._write(function, more)

    async def remove(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PATCH …/{id}/remove: share the function with one account less."""
        function, account = await self._change(request, values)

        def fewer(known: tuple[str, ...]) -> tuple[str, ...]:
            if account not in known:
                raise HttpProblem(404, f"Function id '{function.id}': Account '{account}' is not authorized")
            return tuple(each for each in known if each != account)

        return await self._write(function, fewer)

    async def _change(self, request: web.BaseRequest, values: dict[str, str]) -> tuple[Function, str]:
        function = self._management.function(request, Scope.MANAGE, values)
        wanted = await read_record(request, PartyChange)
        return function, _other(function, wanted.authorized_party.nca_id, "authorizedParty")

    async def _write(self, function: Function, change: Any) -> web.StreamResponse:
        changed = await update(
            self._registry.functions,
            function.id,
            lambda record: record.replace(authorized=change(record.authorized)),
        )
        if changed is None:
            raise HttpProblem(404, f"Function id '{function.id}': Not found in account '{function.nca_id}'")
        shown = {"id": changed.id, "ncaId": changed.nca_id, "authorizedParties": _parties(changed)}
        return json_response(200, {"function": shown})

    def _parties(self, version: FunctionVersion) -> list[dict[str, str]]:
        function = self._registry.functions.get(version.function_id)
        return [] if function is None else _parties(function)

    def _version(self, version: FunctionVersion) -> dict[str, Any]:
        return {
            "id": version.function_id,
            "versionId": version.id,
            "ncaId": version.nca_id,
            "authorizedParties": self._parties(version),
        }


def _parties(function: Function) -> list[dict[str, str]]:
    return [{"ncaId": account} for account in function.authorized]


def _other(function: Function, account: str, path: str) -> str:
    """Return an account that is not the function's own. Raises HttpProblem 400."""
    if account == function.nca_id:
        field = f"{path}.ncaId"
        raise HttpProblem(400, f"{field}: the function belongs to this account", field=field)
    return account
