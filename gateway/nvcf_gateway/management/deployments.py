"""Management API: deployments, instances, and the tokens agents fetch for them."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from nvcf_broker.errors import BrokerError
from nvcf_gateway.access.authorization import Authenticator
from nvcf_gateway.access.worker_tokens import WorkerTokens
from nvcf_gateway.errors import HttpProblem, invalid_field
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.management.functions import Management, json_body, stored, timestamp
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.registry import Registry
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.ids import is_id, parse_id
from nvcf_proto.models import Deployment, FunctionVersion, Instance, Scope
from nvcf_proto.records import Fields

_FIELDS = ("deploymentSpecifications", "keepQueued", "maxQueueDepth", "maxBodyBytes", "scaling")


def deployment_of(version: FunctionVersion, fields: Fields, now: float) -> Deployment:
    """A deployment out of a request's body. Raises InvalidRecord."""
    fields.only(_FIELDS)
    deployment = Deployment.from_fields(
        fields.adding(functionVersionId=version.id, functionId=version.function_id, createdAt=now)
    )
    if not deployment.specifications:
        raise InvalidRecord("deploymentSpecifications", "at least one specification is needed")
    return deployment


class Deployments:
    """Handlers of `/v2/nvcf/deployments…`, `/v2/nvcf/instances` and `/v2/nvcf/agents…`."""

    def __init__(
        self,
        authenticator: Authenticator,
        registry: Registry,
        queue: RequestQueue,
        management: Management,
        tokens: WorkerTokens,
    ) -> None:
        self._authenticator = authenticator
        self._registry = registry
        self._queue = queue
        self._management = management
        self._tokens = tokens

    async def deploy(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """POST: give a version instances."""
        version = self._version(request, Scope.DEPLOY, values)
        fields = await json_body(request)
        try:
            deployment = deployment_of(version, fields, time.time())
        except InvalidRecord as error:
            raise invalid_field(error) from None
        await stored(self._registry.deployments.create(version.id, deployment))
        try:
            # Before the first instance: its start must not depend on making the stream.
            await self._queue.ensure(version.id, again=True)
        except BrokerError as error:
            raise HttpProblem(503, str(error), headers={"Retry-After": "1"}) from None
        return json_response(200, {"deployment": self._shown(version, deployment)})

    async def update(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """PUT: change a deployment in place; requests go on meanwhile."""
        version = self._version(request, Scope.DEPLOY, values)
        entry = self._registry.deployments.entry(version.id)
        if entry is None:
            raise HttpProblem(404, f"version {version.id} is not deployed")
        try:
            deployment = deployment_of(version, await json_body(request), entry.value.created_at)
        except InvalidRecord as error:
            raise invalid_field(error) from None
        await stored(self._registry.deployments.update(version.id, deployment, entry.revision))
        try:
            await self._queue.ensure(version.id, again=True)
        except BrokerError as error:
            raise HttpProblem(503, str(error), headers={"Retry-After": "1"}) from None
        return json_response(200, {"deployment": self._shown(version, deployment)})

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """GET: the deployment of a version."""
        version = self._version(request, Scope.LIST, values)
        return json_response(200, {"deployment": self._shown(version, self._deployment(version))})

    async def undeploy(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """DELETE: take a version's instances away; they finish what they hold."""
        version = self._version(request, Scope.DEPLOY, values)
        deployment = self._deployment(version)
        await stored(self._registry.deployments.delete(version.id))
        return json_response(200, {"deployment": self._shown(version, deployment)})

    async def instances(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """GET /v2/nvcf/instances[?functionVersionId=]: the account's instances."""
        caller = self._authenticator.caller(request.headers)
        caller.require(Scope.LIST)
        wanted = request.query.get("functionVersionId")
        if wanted is not None and not is_id(wanted):
            raise HttpProblem(400, "functionVersionId: not a UUID", field="functionVersionId")
        versions = {
            version.id
            for version in self._registry.versions.values()
            if version.nca_id == caller.nca_id and caller.key.covers(version.function_id)
        }
        found = [
            _shown_instance(instance)
            for instance in self._registry.instances.values()
            if instance.version_id in versions and wanted in (None, instance.version_id)
        ]
        return json_response(200, {"instances": sorted(found, key=lambda each: str(each["createdAt"]))})

    async def worker_token(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """POST /v2/nvcf/agents/worker-tokens: the first token of an instance."""
        self._authenticator.caller(request.headers).require(Scope.AGENT)
        fields = await json_body(request)
        try:
            fields.only(("instanceId", "functionId", "functionVersionId"))
            instance_id = parse_id(fields.text("instanceId"), "instanceId")
            function_id, version_id = fields.id("functionId"), fields.id("functionVersionId")
        except InvalidRecord as error:
            raise invalid_field(error) from None
        except ValueError:
            raise invalid_field(InvalidRecord("instanceId", "not a UUID")) from None
        version = self._registry.versions.get(version_id)
        if version is None or version.function_id != function_id:
            raise HttpProblem(404, f"function {function_id} has no version {version_id}")
        token, expires = self._tokens.issue(
            function_id=function_id,
            version_id=version_id,
            instance_id=instance_id,
            nca_id=version.nca_id,
            now=time.time(),
        )
        return json_response(200, {"token": token, "expiration": timestamp(expires)})

    def _version(self, request: web.BaseRequest, scope: Scope, values: dict[str, str]) -> FunctionVersion:
        caller = self._authenticator.caller(request.headers)
        caller.require(scope)
        return self._management.version(caller, values)

    def _deployment(self, version: FunctionVersion) -> Deployment:
        deployment = self._registry.deployments.get(version.id)
        if deployment is None:
            raise HttpProblem(404, f"version {version.id} is not deployed")
        return deployment

    def _shown(self, version: FunctionVersion, deployment: Deployment) -> dict[str, Any]:
        return {
            "functionId": version.function_id,
            "functionVersionId": version.id,
            "functionName": version.name,
            "ncaId": version.nca_id,
            "functionStatus": self._registry.status_of(version).value,
            "createdAt": timestamp(deployment.created_at),
            "deploymentSpecifications": [each.to_dict() for each in deployment.specifications],
            "keepQueued": deployment.keep_queued,
            **({} if deployment.max_queue_depth is None else {"maxQueueDepth": deployment.max_queue_depth}),
            **({} if deployment.scaling is None else {"scaling": deployment.scaling.to_dict()}),
            **({} if deployment.max_body_bytes is None else {"maxBodyBytes": deployment.max_body_bytes}),
        }


def _shown_instance(instance: Instance) -> dict[str, Any]:
    shown = {**instance.to_dict(), "createdAt": timestamp(instance.created_at)}
    shown["updatedAt"] = timestamp(instance.updated_at)
    shown["readyAt"] = None if instance.ready_at is None else timestamp(instance.ready_at)
    return {key: value for key, value in shown.items() if value is not None}
