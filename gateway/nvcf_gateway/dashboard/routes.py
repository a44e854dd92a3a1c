"""Routes of the dashboard: `/dashboard…`, `/v2/nvcf/dashboard/{tickets,sessions}`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from importlib import resources

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator, Caller, bearer_token
from nvcf_gateway.access.signed_tokens import DashboardTokens, TokenKind
from nvcf_gateway.errors import HttpProblem, broker_errors
from nvcf_gateway.http.responses import json_response, timestamp
from nvcf_gateway.http.routing import Route
from nvcf_proto.models import Scope

PATH = "/dashboard"
UseOnce = Callable[[str, str], Awaitable[bool]]
"""Use up a text of an account; return whether it was the first time, at whatever gateway."""
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
PAGE_HEADERS = {
    # Only this gateway's own files and API, whatever content gets into the page.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class Page:
    """The static files of the dashboard, read once."""

    def __init__(self) -> None:
        folder = resources.files("nvcf_gateway.dashboard") / "static"
        self._files = {
            each.name: (each.read_bytes(), _TYPES[each.name.rpartition(".")[2]])
            for each in folder.iterdir()
            if each.name.rpartition(".")[2] in _TYPES
        }

    async def folder(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /dashboard/: the page itself."""
        return self._serve("index.html", request)

    async def file(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /dashboard/{file}."""
        return self._serve(values["file"], request)

    def _serve(self, name: str, request: web.BaseRequest) -> web.StreamResponse:
        if name not in self._files:
            raise HttpProblem(404, f"nothing is served at {PATH}/{name[:64]}")
        body, content_type = self._files[name]
        tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        headers = {**PAGE_HEADERS, "ETag": tag}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers={**headers, "Content-Type": f"{content_type}; charset=utf-8"})


async def _to_folder(request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
    # Relative, so that it works behind a proxy too. A browser keeps the fragment.
    return web.Response(status=308, headers={"Location": "dashboard/"})


class DashboardAccess:
    """Handlers that issue tickets and sessions."""

    def __init__(self, authenticator: Authenticator, tokens: DashboardTokens, use_once: UseOnce) -> None:
        self._use_once = use_once
        self._authenticator = authenticator
        self._tokens = tokens

    async def ticket(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST /v2/nvcf/dashboard/tickets: exchange an API key for a ticket."""
        caller = self._authenticator.caller(request.headers)
        caller.require(Scope.LIST)
        if caller.viewing:
            raise HttpProblem(403, "a session cannot create tickets: use an API key")
        return self._issue(TokenKind.TICKET, caller)

    async def session(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST /v2/nvcf/dashboard/sessions: exchange a ticket or an API key for a session."""
        token = bearer_token(request.headers)
        holder = self._authenticator.ticket_holder(token)
        if holder is not None:
            await self._use_up(holder, token)
        caller = holder or self._authenticator.identify(token)
        caller.require(Scope.LIST)
        if caller.viewing:
            raise HttpProblem(403, "a session cannot extend itself: use an API key")
        return self._issue(TokenKind.SESSION, caller)

    async def _use_up(self, holder: Caller, ticket: str) -> None:
        """Let a ticket be good once, at whatever gateway. Raises HttpProblem 401 and 503."""
        with broker_errors():
            first = await self._use_once(holder.nca_id, ticket)
        if not first:
            raise HttpProblem(401, "the ticket has been used: ask for a new one")

    def _issue(self, kind: TokenKind, caller: Caller) -> web.StreamResponse:
        text, until = self._tokens.make(kind, caller.key.id, time.time())
        shown = {kind.value: text, "expiresAt": timestamp(until), "ncaId": caller.nca_id}
        return json_response(200, shown, headers=[("Cache-Control", "no-store")])


def dashboard_routes(authenticator: Authenticator, tokens: DashboardTokens, use_once: UseOnce) -> list[Route]:
    """Return the routes of the dashboard."""
    access, page = DashboardAccess(authenticator, tokens, use_once), Page()
    return [
        ("POST", "/v2/nvcf/dashboard/tickets", access.ticket),
        ("POST", "/v2/nvcf/dashboard/sessions", access.session),
        ("GET", PATH, _to_folder),
        ("GET", f"{PATH}/", page.folder),
        ("GET", f"{PATH}/{{file}}", page.file),
    ]
