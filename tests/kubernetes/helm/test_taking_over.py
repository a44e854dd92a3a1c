"""An agent goes on where another one died."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.kinds import (
    POD,
    Kind,
)
from nvcf_agent.kubernetes.helm import names
from nvcf_agent.kubernetes.helm.kinds import DEPLOYMENT
from nvcf_agent.state.events import Ended, Ready
from tests.kubernetes.helm.support import (
    SHORT,
    Agent,
    Setting,
    mini_service,
)
from tests.support.waiting import eventually


class MortalApi(Api):
    """The real API of an agent that is killed after its first write that changed something."""

    killed: asyncio.Event

    async def apply(self, kind: Kind, body: Object, **more: Any) -> Object:
        """Apply, and die if that changed the object."""
        metadata = body["metadata"]
        before = await self.get(kind, metadata["name"], metadata.get("namespace"))
        return await self._last(super().apply(kind, body, **more), before)

    async def create(self, kind: Kind, body: Object) -> Object:
        """Create, and die."""
        return await self._last(super().create(kind, body))

    async def patch(self, kind: Kind, name: str, namespace: str | None, patch: Object, **more: Any) -> Object:
        """Patch, and die if that changed the object."""
        before = await self.get(kind, name, namespace)
        return await self._last(super().patch(kind, name, namespace, patch, **more), before)

    async def delete(self, kind: Kind, name: str, namespace: str | None = None, **more: Any) -> bool:
        """Delete, and die if there was something that was not being deleted yet."""
        before = await self.get(kind, name, namespace)
        going = before is None or "deletionTimestamp" in before["metadata"]
        result = await super().delete(kind, name, namespace, **more)
        if not going:
            await self._die()
        return result

    async def _last(self, call: Any, before: Object | None = None) -> Object:
        result: Object = await call
        if (
            before is not None
            and before["metadata"]["resourceVersion"] == result["metadata"]["resourceVersion"]
        ):
            return result
        await self._die()
        return result

    async def _die(self) -> None:
        self.killed.set()
        # Nothing more is done by an agent that is dead.
        await asyncio.Event().wait()


async def live(setting: Setting, spec: InstanceSpec, act: Callable[[Agent], Awaitable[object]]) -> bool:
    """Run one life of an agent. Return whether `act` came to its end before a write did."""
    async with await MortalApi.open(str(setting.cluster.kubeconfig)) as api:
        api.killed = asyncio.Event()
        agent = Agent(api, setting.backend(api))

        async def whole() -> None:
            await agent.backend.prepare([spec.instance_id])
            await act(agent)

        tasks = [asyncio.create_task(each) for each in (whole(), api.killed.wait(), agent.follow())]
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
            if not api.killed.is_set():
                await tasks[0]
            return not api.killed.is_set()
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.wait(tasks)
            await agent.backend.close(0)


async def test_an_agent_that_dies_after_every_write_still_installs_and_removes(setting: Setting) -> None:
    spec, lives = setting.spec(replicas=2), 0

    async def wait(agent: Agent) -> None:
        await agent.until(Ready)

    async def stop(agent: Agent) -> None:
        await agent.backend.delete(spec.instance_id, 1)
        await eventually(lambda: not agent.backend._services.objects, "it is gone", SHORT)

    async def create(agent: Agent) -> None:
        await agent.backend.create(spec)

    for act in (create, wait, stop):
        while not await live(setting, spec, act):
            lives += 1
            assert lives < 100
        if act is wait:
            async with setting.agent(spec) as agent:
                found = await mini_service(agent, spec)
                assert found["status"]["revision"] == 0
                namespace = names.namespace_of(spec.instance_id)
                assert len((await agent.api.list(DEPLOYMENT, namespace)).items) == 1
                assert await agent.api.list(POD, namespace, labels=names.MINI_SERVICE_LABEL)
    # Each object of the namespace, each phase, and each step of the removal.
    assert lives > 15


async def test_instances_that_nobody_knows_are_removed(setting: Setting) -> None:
    known, unknown = setting.spec(), setting.spec()
    async with setting.agent() as agent:
        for each in (known, unknown):
            await agent.backend.create(each)
        await eventually(
            lambda: sum(isinstance(each, Ready) for each in agent.events) == 2, "both serve", SHORT
        )
    async with setting.agent(known) as agent:
        assert {each.instance_id for each in await agent.backend.list()} >= {known.instance_id}
        assert (await agent.until(Ended)).instance_id == unknown.instance_id
        await agent.until(Ready)
        running = await agent.backend.list()
        assert [each.instance_id for each in running] == [known.instance_id]
