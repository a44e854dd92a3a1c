"""The pod backend when the agent or the API server was away for a while."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import pytest

from nvcf_agent.kubernetes import watcher as watcher_module
from nvcf_agent.kubernetes.backend import PodBackend
from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.kinds import SECRET
from nvcf_agent.kubernetes.pods.names import OURS
from nvcf_agent.kubernetes.pods.observe import Limits
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_agent.kubernetes.watcher import PodWatcher
from nvcf_agent.state.events import Ended
from tests.kubernetes.frozen_relay import FrozenRelay
from tests.support.waiting import eventually
from tests.unit.agent.kubernetes.pods import WORKER, logins, spec


@asynccontextmanager
async def prepared(
    api: Api, namespace: str, known: Collection[str] = (), limits: Limits | None = None
) -> AsyncIterator[PodBackend]:
    settings = PodSettings(worker_image=WORKER, namespace=namespace, cluster_name="here")
    backend = PodBackend(api, settings, watcher=PodWatcher(api, namespace, limits))
    await backend.prepare(known)
    try:
        yield backend
    finally:
        await backend.close(0)


async def secrets(api: Api, namespace: str) -> set[str]:
    return {each["metadata"]["name"] for each in (await api.list(SECRET, namespace, labels=OURS)).items}


async def test_a_restart_leaves_known_instances_all_their_objects(api: Api, namespace: str) -> None:
    made = spec(variables={"CONTAINER_REGISTRIES_CREDENTIALS": logins("registry.example")})
    async with prepared(api, namespace) as backend:
        await backend.create(made)
    before = await secrets(api, namespace)
    assert any("regcred" in each for each in before)
    async with prepared(api, namespace, {made.instance_id}):
        assert await secrets(api, namespace) == before
    async with prepared(api, namespace):
        assert await secrets(api, namespace) == set()


async def test_nothing_is_given_up_while_the_api_server_is_away(
    frozen: FrozenRelay, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that waits for a node is given up after its time, but only by what is known now."""
    monkeypatch.setattr(watcher_module, "_STALE_SECONDS", 2.0)
    monkeypatch.setattr(watcher_module, "_PASS_SECONDS", 0.2)
    made, limits = spec(), Limits(unscheduled=4.0)
    async with await Api.open(str(frozen.kubeconfig)) as through:
        async with prepared(through, namespace, limits=limits) as backend:
            events = backend.watch()
            await backend.create(made)
            frozen.freeze()
            gone: list[Ended] = []

            async def follow() -> None:
                async for event in events:
                    if isinstance(event, Ended):
                        gone.append(event)  # noqa: PERF401 - it is looked at meanwhile

            following = asyncio.create_task(follow())
            # Twice the time after which it would be given up.
            await asyncio.wait([following], timeout=2 * limits.unscheduled)
            assert not gone
            frozen.end()
            frozen.start()
            await eventually(lambda: gone, "it is given up when the API server is back")
            following.cancel()
            await asyncio.wait([following])
