"""Management API: how many requests wait for a function, and where a request is among them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator, Caller
from nvcf_gateway.errors import HttpProblem, broker_errors
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import Route, path_id
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.registry import Registry
from nvcf_gateway.stats.queues import Queues
from nvcf_proto.models import FunctionVersion, Scope

MAX_POSITION = 1000


class RequestPlace(Protocol):
    """Where a request is queued."""

    @property
    def request_id(self) -> str:
        """Id of the request."""

    @property
    def region(self) -> str:
        """Region of its queue."""

    @property
    def function_id(self) -> str:
        """Function that it is for."""

    @property
    def version_id(self) -> str:
        """Version that it is for."""


class QueueDetails:
    """Handlers of `/v2/nvcf/queues/…`, for all accounts that may invoke a function."""

    def __init__(
        self,
        authenticator: Authenticator,
        registry: Registry,
        queues: Queues,
        queue: RequestQueue,
        tracked: Callable[[Caller, str], Awaitable[RequestPlace]],
    ) -> None:
        self._authenticator = authenticator
        self._registry = registry
        self._queues = queues
        self._queue = queue
        self._tracked = tracked

    def routes(self) -> list[Route]:
        """Return the routes."""
        function = "/v2/nvcf/queues/functions/{function_id}"
        return [
            ("GET", function, self.of_function),
            ("GET", f"{function}/versions/{{version_id}}", self.of_version),
            ("GET", "/v2/nvcf/queues/{request_id}/position", self.position),
        ]

    async def of_function(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET …/functions/{id}: return the queues of a function's deployed versions."""
        function_id = self._function(request, values)
        versions = self._registry.versions_of(function_id)
        deployed = [each for each in versions if self._registry.index.is_deployed(each.id)]
        return await self._answer(function_id, deployed)

    async def of_version(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET …/functions/{id}/versions/{vid}: return the queue of a version."""
        function_id, version_id = self._function(request, values), path_id(values, "version_id")
        version = self._registry.versions.get(version_id)
        if version is None or version.function_id != function_id:
            raise HttpProblem(404, f"Function id '{function_id}', version '{version_id}': Not found")
        return await self._answer(function_id, [version])

    async def position(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET …/{requestId}/position: return how many requests go first, this one included."""
        caller = self._caller(request)
        tracked = await self._tracked(caller, path_id(values, "request_id"))
        with broker_errors():
            place = await self._queue.position(tracked.version_id, tracked.request_id, tracked.region)
        if place is None:
            raise HttpProblem(404, f"Request id '{tracked.request_id}': Not queued any more")
        answer = {
            "functionId": tracked.function_id,
            "functionVersionId": tracked.version_id,
            "positionInQueue": min(place, MAX_POSITION),
        }
        return json_response(200, answer)

    def _caller(self, request: web.BaseRequest) -> Caller:
        caller = self._authenticator.caller(request.headers)
        if not caller.key.allows(Scope.INVOKE):
            caller.require(Scope.LIST)
        return caller

    def _function(self, request: web.BaseRequest, values: dict[str, str]) -> str:
        caller, function_id = self._caller(request), path_id(values, "function_id")
        function = self._registry.functions.get(function_id)
        # Nobody learns which ids exist in other accounts.
        if function is None or not function.may_be_invoked_by(caller.nca_id):
            raise HttpProblem(404, f"Function id '{function_id}': Not found in account '{caller.nca_id}'")
        caller.require_function(function_id)
        return function_id

    async def _answer(self, function_id: str, versions: list[FunctionVersion]) -> web.StreamResponse:
        found = await self._queues.read(each.id for each in versions)
        if len(found) < len(versions):
            raise HttpProblem(
                503, "the broker did not say how long the queue is", headers={"Retry-After": "1"}
            )
        queues = [
            {
                "functionVersionId": each.id,
                "functionName": each.name,
                "functionStatus": self._registry.status_of(each).value,
                "queueDepth": found[each.id].queued,
            }
            for each in versions
        ]
        return json_response(200, {"functionId": function_id, "queues": queues})
