"""Management API: what an account uses of its quotas."""

from __future__ import annotations

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.quotas.usage import Usage


class Quotas:
    """Handler of `/v2/nvcf/quotas`."""

    def __init__(self, authenticator: Authenticator, usage: Usage) -> None:
        self._authenticator = authenticator
        self._usage = usage

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/quotas: use and limit of each quota of the caller's account."""
        caller = self._authenticator.caller(request.headers)
        return json_response(200, {"account": caller.nca_id, "quotas": self._usage.all_of(caller.nca_id)})
