"""Management API: changing what may change of a version."""

from __future__ import annotations

from aiohttp import web

from nvcf_gateway.errors import HttpProblem, invalid_field
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import Route
from nvcf_gateway.management.function_bodies import (
    MetadataUpdate,
    ModelUpdate,
    RateLimitSetting,
    RateLimitUpdate,
    VersionUpdate,
)
from nvcf_gateway.management.functions import Management
from nvcf_gateway.management.resources import update
from nvcf_gateway.registry import Registry
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import FunctionType, FunctionVersion, Scope
from nvcf_proto.models.containers import Model


def changed_version(version: FunctionVersion, wanted: VersionUpdate) -> FunctionVersion:
    """Return the version with what is wanted. Raises InvalidRecord."""
    if wanted.description is not None:
        version = version.replace(description=wanted.description)
    if wanted.tags is not None:
        version = version.replace(tags=wanted.tags)
    if wanted.rate_limit is not None:
        version = version.replace(rate_limit=wanted.rate_limit.applied_to(version.rate_limit))
    if wanted.llm_invocation_config is not None:
        if version.function_type is not FunctionType.LLM:
            raise InvalidRecord("llmInvocationConfig", "only for functions whose functionType is LLM")
        version = version.replace(llm_invocation_config=wanted.llm_invocation_config)
    for index, change in enumerate(wanted.model_updates):
        version = version.replace(models=_changed_models(version.models, change, index))
    return version


def _changed_models(models: tuple[Model, ...], change: ModelUpdate, index: int) -> tuple[Model, ...]:
    found = next((each for each in models if each.name == change.model_name), None)
    if found is None:
        raise InvalidRecord(f"modelUpdates[{index}].modelName", "the version has no such model")
    if found.llm_config is None:
        raise InvalidRecord(f"modelUpdates[{index}].llmConfig", "the model has no llmConfig to change")
    names = change.llm_config.__struct_fields__
    given = {name: value for name in names if (value := getattr(change.llm_config, name)) is not None}
    changed = found.replace(llm_config=found.llm_config.replace(**given))
    return tuple(changed if each is found else each for each in models)


class VersionChanges:
    """Handlers that change versions: tags, rate limits, models and priorities."""

    def __init__(self, registry: Registry, management: Management) -> None:
        self._registry = registry
        self._management = management

    def routes(self) -> list[Route]:
        """Return the routes."""
        version = "functions/{function_id}/versions/{version_id}"
        return [
            ("PUT", f"/v2/nvcf/{version}", self.put),
            ("PUT", f"/v2/nvcf/metadata/{version}", self.put_metadata),
            ("PUT", f"/v2/nvcf/ratelimit/{version}", self.put_rate_limit),
            ("DELETE", f"/v2/nvcf/ratelimit/{version}", self.delete_rate_limit),
        ]

    async def put(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT: change a version; its priorities are those of all the function's versions."""
        version = self._management.version(request, Scope.MANAGE, values)
        wanted = await read_record(request, VersionUpdate)
        changed = await self._write(version, wanted)
        if wanted.llm_invocation_config is not None:
            shared = VersionUpdate(llm_invocation_config=wanted.llm_invocation_config)
            for each in self._registry.versions_of(version.function_id):
                if each.id != version.id and each.function_type is FunctionType.LLM:
                    await self._write(each, shared)
        return self._answer(changed)

    async def put_metadata(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT /v2/nvcf/metadata/…: replace the tags."""
        version = self._management.version(request, Scope.MANAGE, values)
        wanted = await read_record(request, MetadataUpdate)
        return self._answer(await self._write(version, VersionUpdate(tags=wanted.tags)))

    async def put_rate_limit(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT /v2/nvcf/ratelimit/…: set the rate limit of all accounts."""
        version = self._management.version(request, Scope.MANAGE, values)
        setting: RateLimitSetting = (await read_record(request, RateLimitUpdate)).rate_limit
        return self._answer(await self._write(version, VersionUpdate(rate_limit=setting)))

    async def delete_rate_limit(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE /v2/nvcf/ratelimit/…: remove all rate limits of the version."""
        version = self._management.version(request, Scope.MANAGE, values)
        changed = await update(
            self._registry.versions, version.id, lambda record: record.replace(rate_limit=None)
        )
        return self._answer(changed or version)

    async def _write(self, version: FunctionVersion, wanted: VersionUpdate) -> FunctionVersion:
        try:
            changed = await update(
                self._registry.versions, version.id, lambda record: changed_version(record, wanted)
            )
        except InvalidRecord as error:
            raise invalid_field(error) from None
        if changed is None:
            raise HttpProblem(404, f"Function id '{version.function_id}', version '{version.id}': Not found")
        return changed

    def _answer(self, version: FunctionVersion) -> web.Response:
        return json_response(200, {"function": self._management.shown(version)})
