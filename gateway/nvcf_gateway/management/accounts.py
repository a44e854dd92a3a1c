"""Management API: the caller's account, and the routes that name it."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import Handler, Route
from nvcf_gateway.management.resources import authorized
from nvcf_gateway.quotas.limits import Quota
from nvcf_gateway.quotas.usage import Usage
from nvcf_proto.models import Scope

BASE = "/v2/nvcf/accounts"
# Subjects whose routes exist below an account, too.
_SUBJECTS = (
    "authorizations",
    "clusterGroups",
    "deployments",
    "functions",
    "instances",
    "metadata",
    "queues",
    "ratelimit",
    "telemetries",
    "usage",
)


def account_path(path: str) -> str | None:
    """Return the route below an account that is the same as `path`, None if there is none."""
    subject = path.removeprefix("/v2/nvcf/")
    if subject == path or subject.partition("/")[0] not in _SUBJECTS:
        return None
    return f"{BASE}/{{nca_id}}/{subject}"


class Accounts:
    """Handlers of `/v2/nvcf/accounts…`. Nobody learns which other accounts exist."""

    def __init__(self, authenticator: Authenticator, usage: Usage) -> None:
        self._authenticator = authenticator
        self._usage = usage

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [("GET", BASE, self.list_all), ("GET", f"{BASE}/{{nca_id}}", self.of_account(self.get))]

    def aliases(self, routes: list[Route]) -> list[Route]:
        """Return the routes below an account that are the same as some of `routes`."""
        return [
            (method, alias, self.of_account(handler))
            for method, path, handler in routes
            if (alias := account_path(path)) is not None
        ]

    def of_account(self, handler: Handler) -> Handler:
        """Return a handler for callers of the path's account; others get 404."""

        async def checked(request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
            caller = self._authenticator.caller(request.headers)
            named = unquote(values["nca_id"])
            if named != caller.nca_id:
                raise HttpProblem(404, f"Account '{named[:128]}': Not found")
            return await handler(request, values)

        return checked

    async def list_all(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/accounts: list the caller's account."""
        caller = authorized(self._authenticator, request, Scope.LIST)
        return json_response(200, {"accounts": [self._shown(caller.nca_id)]})

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/accounts/{ncaId}: return the caller's account."""
        caller = authorized(self._authenticator, request, Scope.LIST)
        return json_response(200, {"account": self._shown(caller.nca_id)})

    def _shown(self, account: str) -> dict[str, Any]:
        members: dict[str, Any] = {
            "ncaId": account,
            "name": account,
            "currentNumberFunctions": self._usage.used(account, Quota.FUNCTIONS),
        }
        limits = {
            "maxFunctionsAllowed": Quota.FUNCTIONS,
            "maxRegistryCredentialsAllowed": Quota.REGISTRY_CREDENTIALS,
        }
        for name, quota in limits.items():
            if (limit := self._usage.limit(account, quota)) is not None:
                members[name] = limit
        return members
