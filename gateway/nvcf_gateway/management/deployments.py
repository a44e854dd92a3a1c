"""Management API: deployments and instances."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from nvcf_broker.errors import BrokerError
from nvcf_gateway.access.authorization import Authenticator
from nvcf_gateway.errors import HttpProblem, invalid_field
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import path_id
from nvcf_gateway.management.backends import check_clusters, check_version
from nvcf_gateway.management.bodies import DeploymentCreation
from nvcf_gateway.management.deployment_bodies import AnyObject, SpecificationUpdate
from nvcf_gateway.management.deployment_changes import completed, deployment_of, patched, place_of
from nvcf_gateway.management.functions import Management
from nvcf_gateway.management.instances import Instances
from nvcf_gateway.management.resources import authorized, stored, unavailable, update
from nvcf_gateway.management.shown import (
    deployment_shown,
    health_info,
    instance_shown,
    specification_members,
)
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.registry import Registry
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.ids import is_id
from nvcf_proto.models import Deployment, FunctionVersion, Instance, Scope


class Deployments:
    """Handlers of `/v2/nvcf/deployments…` and `/v2/nvcf/instances`."""

    def __init__(
        self,
        authenticator: Authenticator,
        registry: Registry,
        queue: RequestQueue,
        management: Management,
    ) -> None:
        self._instances = Instances(authenticator, registry)
        self._authenticator = authenticator
        self._registry = registry
        self._queue = queue
        self._management = management

    async def deploy(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST: give a version instances."""
        version = self._management.version(request, Scope.DEPLOY, values)
        deployment = deployment_of(version, await read_record(request, DeploymentCreation), time.time())
        self._check(version, deployment)
        await stored(self._registry.deployments.create(version.id, deployment))
        return await self._with_queue(version, deployment)

    async def update(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT: change a deployment in place; requests go on meanwhile."""
        version = self._management.version(request, Scope.DEPLOY, values)
        entry = self._registry.deployments.entry(version.id)
        if entry is None:
            raise HttpProblem(404, f"version {version.id} is not deployed")
        members = (await read_record(request, AnyObject)).members
        try:
            wanted = DeploymentCreation.from_dict(completed(members, entry.value))
        except InvalidRecord as error:
            raise invalid_field(error) from None
        deployment = deployment_of(version, wanted, time.time(), entry.value)
        self._check(version, deployment)
        await stored(self._registry.deployments.update(version.id, deployment, entry.revision))
        return await self._with_queue(version, deployment)

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET: return the deployment of a version."""
        version = self._management.version(request, Scope.LIST, values)
        return json_response(200, {"deployment": self._shown(version, self._deployment(version))})

    async def get_by_id(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/deployments/{id}: return a deployment."""
        version = self._version_of(request, Scope.LIST, values)
        return json_response(200, {"deployment": self._shown(version, self._deployment(version))})

    async def patch(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PATCH /v2/nvcf/deployments/{id}/gpu-specifications/{id}: change one specification."""
        version = self._version_of(request, Scope.DEPLOY, values)
        wanted = await read_record(request, SpecificationUpdate)
        specification_id = path_id(values, "specification_id")

        def change(deployment: Deployment) -> Deployment:
            place = place_of(deployment, specification_id)
            if place is None:
                raise HttpProblem(404, f"the deployment has no GPU specification '{specification_id}'")
            return patched(deployment, place, wanted, time.time())

        try:
            changed = await update(self._registry.deployments, version.id, change)
        except InvalidRecord as error:
            raise invalid_field(error) from None
        if changed is None:
            raise HttpProblem(404, f"version {version.id} is not deployed")
        place = place_of(changed, specification_id) or 0
        return json_response(200, {"gpuSpecification": specification_members(changed, place)})

    async def undeploy(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE: take a version's instances away; with graceful=false before its queue is empty."""
        version = self._management.version(request, Scope.DEPLOY, values)
        graceful = request.query.get("graceful", "true")
        if graceful not in ("true", "false"):
            raise HttpProblem(400, "graceful: expected true or false", field="graceful")
        deployment = self._deployment(version)
        await stored(self._registry.deployments.delete(version.id))
        if graceful == "false":
            await self._instances.end(self._registry.instances_of(version.id), "the version was undeployed")
        shown = {"deployment": self._shown(version, deployment), "function": self._management.shown(version)}
        return json_response(200, shown)

    async def instances(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v2/nvcf/instances[?functionVersionId=]: list the account's instances."""
        caller = authorized(self._authenticator, request, Scope.LIST)
        wanted = request.query.get("functionVersionId")
        if wanted is not None and not is_id(wanted):
            raise HttpProblem(400, "functionVersionId: not a UUID", field="functionVersionId")
        versions = {
            version.id
            for version in self._registry.versions.values()
            if version.nca_id == caller.nca_id and caller.key.covers(version.function_id)
        }
        found = [
            self._shown_instance(instance)
            for instance in self._registry.instances.values()
            if instance.version_id in versions and wanted in (None, instance.version_id)
        ]
        return json_response(200, {"instances": sorted(found, key=lambda each: str(each["createdAt"]))})

    def _shown_instance(self, instance: Instance) -> dict[str, Any]:
        # A deleted cluster keeps its name for a while, as its instances do.
        cluster = self._registry.registered_clusters.get(instance.cluster_id)
        name = cluster.name if cluster is not None else instance.cluster_id
        members = instance_shown(instance, self._registry.deployments.get(instance.version_id))
        return {**members, "clusterName": name}

    def _check(self, version: FunctionVersion, deployment: Deployment) -> None:
        """Raise HttpProblem 400 if no backend that may run the version honours all its settings."""
        try:
            check_version(version)
            check_clusters(version, deployment.specifications, self._registry.clusters.values())
        except InvalidRecord as error:
            raise invalid_field(error) from None

    def _version_of(self, request: web.BaseRequest, scope: Scope, values: dict[str, str]) -> FunctionVersion:
        """Return the version of a deployment's path, for a caller with `scope`. Raises HttpProblem."""
        caller = authorized(self._authenticator, request, scope)
        wanted = path_id(values, "deployment_id")
        version = self._registry.versions.get(self._registry.index.version_of(wanted) or "")
        # Nobody learns which ids exist in other accounts.
        if version is None or version.nca_id != caller.nca_id:
            raise HttpProblem(404, f"Deployment id '{wanted}': Not found in account '{caller.nca_id}'")
        caller.require_function(version.function_id)
        return version

    def _deployment(self, version: FunctionVersion) -> Deployment:
        deployment = self._registry.deployments.get(version.id)
        if deployment is None:
            raise HttpProblem(404, f"version {version.id} is not deployed")
        return deployment

    async def _with_queue(self, version: FunctionVersion, deployment: Deployment) -> web.StreamResponse:
        """Make sure that the version has its stream, before an instance needs it."""
        try:
            await self._queue.ensure(version.id, again=True)
        except BrokerError as error:
            raise unavailable(error) from None
        return json_response(200, {"deployment": self._shown(version, deployment)})

    def _shown(self, version: FunctionVersion, deployment: Deployment) -> dict[str, Any]:
        status = self._registry.status_of(version).value
        more = {
            "functionName": version.name,
            "ncaId": version.nca_id,
            "functionStatus": status,
            "healthInfo": health_info(
                deployment, self._registry.instances_of(version.id), self._registry.clusters.get
            ),
        }
        return {**deployment_shown(deployment), **more}
