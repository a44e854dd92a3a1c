"""Management API: ending instances before their time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.management.resources import authorized, update
from nvcf_gateway.registry import Registry
from nvcf_proto.models import Instance, InstanceState, Scope

AT_ONCE = 16
_OVER = (InstanceState.COMPLETED, InstanceState.FAILED)


class Instances:
    """Handler of `DELETE /v2/nvcf/instances/{id}`.

    An instance is ended by its record: the autoscaler sends it the termination, and starts another one if
    its deployment wants it.
    """

    def __init__(self, authenticator: Authenticator, registry: Registry) -> None:
        self._authenticator = authenticator
        self._registry = registry

    async def delete(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE: end one instance; it finishes what it holds."""
        caller = authorized(self._authenticator, request, Scope.DEPLOY)
        name = values["instance_id"].lower()
        found = next((each for each in self._registry.instances.values() if each.id.lower() == name), None)
        version = None if found is None else self._registry.versions.get(found.version_id)
        # Nobody learns which ids exist in other accounts.
        if found is None or version is None or version.nca_id != caller.nca_id:
            raise HttpProblem(404, f"Instance id '{name[:64]}': Not found in account '{caller.nca_id}'")
        caller.require_function(version.function_id)
        await self.end([found], "it was deleted")
        return web.Response(status=204)

    async def end(self, instances: Iterable[Instance], reason: str) -> None:
        """Let instances take no more requests and end. Raises HttpProblem 409 and 503."""
        gate = asyncio.Semaphore(AT_ONCE)
        now = time.time()

        async def one(instance: Instance) -> HttpProblem | None:
            async with gate:
                try:
                    await update(
                        self._registry.instances, instance.key, lambda record: _ending(record, reason, now)
                    )
                except HttpProblem as problem:
                    return problem
            return None

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(each)) for each in instances]
        for task in tasks:
            if (problem := task.result()) is not None:
                raise problem


def _ending(instance: Instance, reason: str, now: float) -> Instance:
    """Return the record of an instance that is to end; one that ends already stays as it is."""
    over = instance.state in _OVER or instance.state is InstanceState.TERMINATING
    if over or instance.draining_since is not None:
        return instance
    return instance.changed(now, draining_since=now, reason=reason)
