"""Management API: functions and their versions."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from nvcf_broker.errors import BrokerError, KeyExistsError, RevisionConflictError
from nvcf_gateway.access.authorization import Authenticator, Caller
from nvcf_gateway.errors import HttpProblem, invalid_field
from nvcf_gateway.exchange.call import read_all
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.registry import Registry
from nvcf_otel.byoo.plan import plan
from nvcf_proto.errors import InvalidId, InvalidRecord
from nvcf_proto.ids import new_id, parse_id
from nvcf_proto.models import (
    NAME_PATTERN,
    Function,
    FunctionType,
    FunctionVersion,
    ProcessSource,
    Scope,
    Telemetries,
)
from nvcf_proto.records import Fields, load_object

MAX_BODY = 1024 * 1024
BODY_PATIENCE = 30.0
_VERSION_FIELDS = frozenset(
    (
        "name",
        "inferenceUrl",
        "description",
        "tags",
        "functionType",
        "containerImage",
        "process",
        "telemetries",
    )
)


def timestamp(seconds: float) -> str:
    """Unix seconds as RFC 3339 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def path_id(values: dict[str, str], name: str) -> str:
    """A UUID out of the path. Raises HttpProblem 404: nothing can live under another name."""
    try:
        return parse_id(values[name], name)
    except InvalidId as error:
        raise HttpProblem(404, str(error)) from None


async def json_body(request: web.BaseRequest) -> Fields:
    """The request's JSON object. Raises HttpProblem 400, 408 and 413."""
    body = await read_all(request, MAX_BODY, BODY_PATIENCE)
    try:
        return Fields(load_object(body))
    except InvalidRecord as error:
        raise invalid_field(error) from None


def build_version(
    fields: Fields, *, function_id: str, version_id: str, nca_id: str, now: float, name: str | None = None
) -> FunctionVersion:
    """A version out of a creation body; `name` is given when the function exists already.

    Raises InvalidRecord naming the field.
    """
    fields.only(_VERSION_FIELDS)
    if name is None or fields.has("name"):
        given = fields.text("name", pattern=NAME_PATTERN)
        if name is not None and given != name:
            raise InvalidRecord("name", f"the function's name is {name!r} and cannot be changed by a version")
        name = given
    process = ProcessSource.from_fields(fields.object("process")) if fields.has("process") else None
    image = fields.optional_text("containerImage", pattern=r"[\x21-\x7e]+", max_length=1024)
    if (process is None) == (image is None):
        raise InvalidRecord("containerImage", "give either containerImage or process")
    return FunctionVersion(
        id=version_id,
        function_id=function_id,
        name=name,
        nca_id=nca_id,
        created_at=now,
        inference_url=fields.text("inferenceUrl", "/", pattern=r"/[\x21-\x7e]*", max_length=2048),
        description=fields.optional_text("description", max_length=1024),
        tags=fields.texts("tags"),
        function_type=FunctionType(fields.text("functionType", "DEFAULT", choices=list(FunctionType))),
        container_image=image,
        process=process,
        telemetries=Telemetries.from_fields(fields.object("telemetries"))
        if fields.has("telemetries")
        else None,
    )


class Management:
    """Handlers of `/v2/nvcf/functions…`."""

    def __init__(self, authenticator: Authenticator, registry: Registry, queue: RequestQueue) -> None:
        self._authenticator = authenticator
        self._registry = registry
        self._queue = queue

    async def create_function(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """POST /v2/nvcf/functions: a function with its first version."""
        caller = self._caller(request, Scope.MANAGE)
        caller.require_unlimited("create functions")
        fields, now = await json_body(request), time.time()
        version = self._version(fields, caller, new_id(), now)
        function = Function(version.function_id, version.name, caller.nca_id, now)
        await stored(self._registry.functions.create(function.id, function))
        await stored(self._registry.versions.create(version.id, version))
        return json_response(200, {"function": self._shown(version)})

    async def create_version(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """POST /v2/nvcf/functions/{id}/versions."""
        caller = self._caller(request, Scope.MANAGE)
        function = self._function(caller, path_id(values, "function_id"))
        version = self._version(await json_body(request), caller, function.id, time.time(), function.name)
        await stored(self._registry.versions.create(version.id, version))
        return json_response(200, {"function": self._shown(version)})

    async def list_functions(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """GET /v2/nvcf/functions: every version of the account's functions."""
        caller = self._caller(request, Scope.LIST)
        versions = sorted(self._registry.versions.values(), key=lambda each: (each.created_at, each.id))
        shown = [
            self._shown(version)
            for version in versions
            if version.nca_id == caller.nca_id and caller.key.covers(version.function_id)
        ]
        return json_response(200, {"functions": shown})

    async def list_versions(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """GET /v2/nvcf/functions/{id} and /v2/nvcf/functions/{id}/versions."""
        caller = self._caller(request, Scope.LIST)
        function = self._function(caller, path_id(values, "function_id"))
        shown = [self._shown(version) for version in self._registry.versions_of(function.id)]
        return json_response(200, {"functions": shown})

    async def get_version(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """GET /v2/nvcf/functions/{id}/versions/{vid}."""
        version = self.version(self._caller(request, Scope.LIST), values)
        return json_response(200, {"function": self._shown(version)})

    async def delete_function(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """DELETE /v2/nvcf/functions/{id}: the function and all its versions, none of them deployed."""
        caller = self._caller(request, Scope.MANAGE)
        function = self._function(caller, path_id(values, "function_id"))
        versions = self._registry.versions_of(function.id)
        for version in versions:
            self._refuse_deployed(version)
        for version in versions:
            await self._delete(version)
        await stored(self._registry.functions.delete(function.id))
        return web.Response(status=204)

    async def delete_version(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """DELETE /v2/nvcf/functions/{id}/versions/{vid}; the last one takes the function along."""
        version = self.version(self._caller(request, Scope.MANAGE), values)
        self._refuse_deployed(version)
        await self._delete(version)
        if not self._registry.versions_of(version.function_id):
            await stored(self._registry.functions.delete(version.function_id))
        return web.Response(status=204)

    def version(self, caller: Caller, values: dict[str, str]) -> FunctionVersion:
        """The version a path names. Raises HttpProblem 404 and 403."""
        function_id, version_id = path_id(values, "function_id"), path_id(values, "version_id")
        version = self._registry.versions.get(version_id)
        if version is None or version.function_id != function_id:
            raise HttpProblem(404, f"function {function_id} has no version {version_id}")
        _own(caller, version.nca_id, function_id)
        return version

    def authorised_version(
        self, request: web.BaseRequest, scope: Scope, values: dict[str, str]
    ) -> FunctionVersion:
        """The version a path names, of a caller with `scope`. Raises HttpProblem 401, 403 and 404."""
        return self.version(self._caller(request, scope), values)

    def function(self, request: web.BaseRequest, scope: Scope, values: dict[str, str]) -> Function:
        """The function a path names, of a caller with `scope`. Raises HttpProblem 401, 403 and 404."""
        return self._function(self._caller(request, scope), path_id(values, "function_id"))

    def _caller(self, request: web.BaseRequest, scope: Scope) -> Caller:
        caller = self._authenticator.caller(request.headers)
        caller.require(scope)
        return caller

    def _function(self, caller: Caller, function_id: str) -> Function:
        function = self._registry.functions.get(function_id)
        if function is None:
            raise HttpProblem(404, f"no function {function_id}")
        _own(caller, function.nca_id, function_id)
        return function

    def _version(
        self, fields: Fields, caller: Caller, function_id: str, now: float, name: str | None = None
    ) -> FunctionVersion:
        try:
            version = build_version(
                fields, function_id=function_id, version_id=new_id(), nca_id=caller.nca_id, now=now, name=name
            )
            for each in plan(version.telemetries, self._registry.telemetries.get, caller.nca_id).unknown:
                raise InvalidRecord(f"telemetries.{each.kind.value.lower()}TelemetryId", each.why)
            return version
        except InvalidRecord as error:
            raise invalid_field(error) from None

    def _refuse_deployed(self, version: FunctionVersion) -> None:
        if self._registry.index.is_deployed(version.id):
            raise HttpProblem(409, f"version {version.id} is deployed: undeploy it first")

    async def _delete(self, version: FunctionVersion) -> None:
        try:
            await self._queue.delete(version.id)
        except BrokerError as error:
            raise HttpProblem(503, str(error), headers={"Retry-After": "1"}) from None
        await stored(self._registry.versions.delete(version.id))

    def _shown(self, version: FunctionVersion) -> dict[str, Any]:
        instances = self._registry.instances_of(version.id)
        failed = [instance.reason for instance in instances if instance.reason]
        shown = {
            "id": version.function_id,
            "versionId": version.id,
            "name": version.name,
            "ncaId": version.nca_id,
            "status": self._registry.status_of(version).value,
            "statusReason": failed[-1] if failed else None,
            "inferenceUrl": version.inference_url,
            "functionType": version.function_type.value,
            "description": version.description,
            "tags": list(version.tags),
            "containerImage": version.container_image,
            "process": version.process.to_dict() if version.process else None,
            "rateLimit": version.rate_limit.to_dict() if version.rate_limit else None,
            "telemetries": version.telemetries.to_dict() if version.telemetries else None,
            "createdAt": timestamp(version.created_at),
            "instances": len(instances),
        }
        return {key: value for key, value in shown.items() if value is not None}


def _own(caller: Caller, nca_id: str, function_id: str) -> None:
    if caller.nca_id != nca_id:
        raise HttpProblem(403, "the API key belongs to another account than the function")
    caller.require_function(function_id)


async def stored(write: Awaitable[object]) -> None:
    """Await a write to the registry. Raises HttpProblem 409 and 503."""
    try:
        await write
    except (KeyExistsError, RevisionConflictError) as error:
        raise HttpProblem(409, str(error)) from None
    except BrokerError as error:
        raise HttpProblem(503, str(error), headers={"Retry-After": "1"}) from None
