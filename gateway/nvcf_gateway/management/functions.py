"""Management API: functions and their versions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from nvcf_broker.errors import BrokerError
from nvcf_gateway.access.authorization import Authenticator
from nvcf_gateway.errors import HttpProblem, invalid_field
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import path_id
from nvcf_gateway.management.function_bodies import FunctionCreation, VersionCreation
from nvcf_gateway.management.resources import authorized, stored, unavailable
from nvcf_gateway.management.secret_bodies import values_of
from nvcf_gateway.management.shown import version_shown
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.quotas.limits import Quota
from nvcf_gateway.quotas.usage import Usage
from nvcf_gateway.registry import Registry
from nvcf_gateway.secrets.owners import Owner
from nvcf_gateway.secrets.store import SecretStore
from nvcf_otel.byoo.plan import plan
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.ids import new_id
from nvcf_proto.models import Function, FunctionType, FunctionVersion, Scope
from nvcf_proto.models.containers import VersionSettings


def inherited(wanted: VersionCreation, versions: Sequence[FunctionVersion]) -> VersionCreation:
    """Return the new version with the function's LLM priorities, if it is to have none of its own."""
    if wanted.llm_invocation_config is not None or wanted.function_type is not FunctionType.LLM:
        return wanted
    found = [each.llm_invocation_config for each in versions if each.llm_invocation_config is not None]
    return wanted.replace(llm_invocation_config=found[-1]) if found else wanted


def build_version(
    wanted: VersionCreation, function: Function, version_id: str, now: float
) -> FunctionVersion:
    """Return the record of a new version. Raises InvalidRecord when it has another name than its function."""
    if wanted.name not in (None, function.name):
        reason = f"the function's name is {function.name!r} and cannot be changed by a version"
        raise InvalidRecord("name", reason)
    settings = {name: getattr(wanted, name) for name in VersionSettings.__struct_fields__}
    return FunctionVersion(
        id=version_id,
        function_id=function.id,
        name=function.name,
        nca_id=function.nca_id,
        created_at=now,
        inference_url=wanted.inference_url,
        description=wanted.description,
        tags=wanted.tags,
        function_type=wanted.function_type,
        container_image=wanted.container_image,
        process=wanted.process,
        rate_limit=None if wanted.rate_limit is None else wanted.rate_limit.applied_to(None),
        has_secrets=bool(wanted.secrets),
        **settings,
    )


class Management:
    """Handlers of `/v2/nvcf/functions…`."""

    def __init__(
        self,
        authenticator: Authenticator,
        registry: Registry,
        queue: RequestQueue,
        usage: Usage,
        secrets: SecretStore,
    ) -> None:
        self._usage = usage
        self._secrets = secrets
        self._authenticator = authenticator
        self._registry = registry
        self._queue = queue

    async def create_function(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST /v2/nvcf/functions: create a function with its first version."""
        caller = authorized(self._authenticator, request, Scope.MANAGE)
        caller.require_unlimited("create functions")
        wanted = await read_record(request, FunctionCreation)
        function = Function(new_id(), wanted.name, caller.nca_id, time.time())
        version = self._version(wanted, function, function.created_at)
        self._usage.require(caller.nca_id, Quota.FUNCTIONS)
        self._usage.require(caller.nca_id, Quota.VERSIONS)
        # Before the version, so that no instance of it starts without them.
        await self._secrets.merge(Owner.version(version), values_of(wanted.secrets), caller.subject)
        await stored(self._registry.functions.create(function.id, function))
        await stored(self._registry.versions.create(version.id, version))
        return json_response(200, {"function": self.shown(version)})

    async def create_version(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST /v2/nvcf/functions/{id}/versions: create a version."""
        function = self.function(request, Scope.MANAGE, values)
        wanted = await read_record(request, VersionCreation)
        wanted = inherited(wanted, self._registry.versions_of(function.id))
        version = self._version(wanted, function, time.time())
        self._usage.require(function.nca_id, Quota.VERSIONS)
        by = self._authenticator.caller(request.headers).subject
        await self._secrets.merge(Owner.version(version), values_of(wanted.secrets), by)
        await stored(self._registry.versions.create(version.id, version))
        return json_response(200, {"function": self.shown(version)})

    async def list_functions(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/functions: list every version of the account's functions."""
        caller = authorized(self._authenticator, request, Scope.LIST)
        versions = sorted(self._registry.versions.values(), key=lambda each: (each.created_at, each.id))
        shown = [
            self.shown(version)
            for version in versions
            if version.nca_id == caller.nca_id and caller.key.covers(version.function_id)
        ]
        return json_response(200, {"functions": shown})

    async def list_ids(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/functions/ids: list the ids of the account's functions."""
        caller = authorized(self._authenticator, request, Scope.LIST)
        found = [
            each
            for each in self._registry.functions.values()
            if each.nca_id == caller.nca_id and caller.key.covers(each.id)
        ]
        ids = [each.id for each in sorted(found, key=lambda each: (each.created_at, each.id))]
        return json_response(200, {"functionIds": ids})

    async def list_versions(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/functions/{id} and …/versions: list the versions of a function."""
        function = self.function(request, Scope.LIST, values)
        shown = [self.shown(version) for version in self._registry.versions_of(function.id)]
        return json_response(200, {"functions": shown})

    async def get_version(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/functions/{id}/versions/{vid}: return one version."""
        version = self.version(request, Scope.LIST, values)
        return json_response(200, {"function": self.shown(version, details=True)})

    async def delete_function(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE /v2/nvcf/functions/{id}: delete a function none of whose versions is deployed."""
        function = self.function(request, Scope.MANAGE, values)
        versions = self._registry.versions_of(function.id)
        for version in versions:
            self._refuse_deployed(version)
        by = self._authenticator.caller(request.headers).subject
        for version in versions:
            await self._delete(version, by)
        await stored(self._registry.functions.delete(function.id))
        return web.Response(status=204)

    async def delete_version(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE /v2/nvcf/functions/{id}/versions/{vid}; the last one takes the function along."""
        version = self.version(request, Scope.MANAGE, values)
        self._refuse_deployed(version)
        await self._delete(version, self._authenticator.caller(request.headers).subject)
        if not self._registry.versions_of(version.function_id):
            await stored(self._registry.functions.delete(version.function_id))
        return web.Response(status=204)

    def version(self, request: web.BaseRequest, scope: Scope, values: dict[str, str]) -> FunctionVersion:
        """Return the version of a path, for a caller with `scope`. Raises HttpProblem 401, 403, 404."""
        caller = authorized(self._authenticator, request, scope)
        function_id, version_id = path_id(values, "function_id"), path_id(values, "version_id")
        version = self._registry.versions.get(version_id)
        # Nobody learns which ids exist in other accounts.
        if version is None or version.function_id != function_id or version.nca_id != caller.nca_id:
            detail = (
                f"Function id '{function_id}', version '{version_id}': Not found in account '{caller.nca_id}'"
            )
            raise HttpProblem(404, detail)
        caller.require_function(function_id)
        return version

    def function(self, request: web.BaseRequest, scope: Scope, values: dict[str, str]) -> Function:
        """Return the function of a path, for a caller with `scope`. Raises HttpProblem 401, 403, 404."""
        caller = authorized(self._authenticator, request, scope)
        function_id = path_id(values, "function_id")
        function = self._registry.functions.get(function_id)
        if function is None or function.nca_id != caller.nca_id:
            raise HttpProblem(404, f"Function id '{function_id}': Not found in account '{caller.nca_id}'")
        caller.require_function(function_id)
        return function

    def _version(self, wanted: VersionCreation, function: Function, now: float) -> FunctionVersion:
        try:
            version = build_version(wanted, function, new_id(), now)
            for each in plan(version.telemetries, self._registry.telemetries.get, function.nca_id).unknown:
                raise InvalidRecord(f"telemetries.{each.kind.value.lower()}TelemetryId", each.why)
            return version
        except InvalidRecord as error:
            raise invalid_field(error) from None

    def _refuse_deployed(self, version: FunctionVersion) -> None:
        if self._registry.index.is_deployed(version.id):
            raise HttpProblem(409, f"version {version.id} is deployed: undeploy it first")

    async def _delete(self, version: FunctionVersion, by: str) -> None:
        try:
            await self._queue.delete(version.id)
        except BrokerError as error:
            raise unavailable(error) from None
        await stored(self._registry.versions.delete(version.id))
        await self._secrets.remove(Owner.version(version), by)

    def shown(self, version: FunctionVersion, *, details: bool = False) -> dict[str, Any]:
        """Return the members of a version; with `details` its instances, too."""
        instances = self._registry.instances_of(version.id)
        status = self._registry.status_of(version)
        names = self._secrets.names(Owner.version(version).key)
        return {
            **version_shown(version, status, instances, details=details),
            **({"secrets": names} if names else {}),
        }
