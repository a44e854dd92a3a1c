"""Pod backends of tests, what happens to their instances, and secrets without a gateway."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

from nvcf_agent.backends.environment import InstanceOf
from nvcf_agent.kubernetes.backend import PodBackend
from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.pods.observe import Limits
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_agent.kubernetes.watcher import PodWatcher
from nvcf_agent.secrets import SecretToken
from nvcf_agent.state.events import Event
from nvcf_proto.secrets import function_secrets_path
from tests.support.waiting import eventually


class Seen:
    """Events of a backend."""

    def __init__(self, backend: PodBackend) -> None:
        self.events: list[Event] = []
        self._task = asyncio.create_task(self._follow(backend))

    async def _follow(self, backend: PodBackend) -> None:
        async for event in backend.watch():
            self.events.append(event)

    def of(self, kind: type[Any], instance_id: str) -> list[Any]:
        return [each for each in self.events if isinstance(each, kind) and each.instance_id == instance_id]

    async def until(self, kind: type[Any], instance_id: str, count: int = 1) -> Any:
        await eventually(
            lambda: len(self.of(kind, instance_id)) >= count, f"{kind.__name__} of {instance_id}"
        )
        return self.of(kind, instance_id)[-1]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


@asynccontextmanager
async def running(
    api: Api, settings: PodSettings, known: Collection[str] = (), limits: Limits | None = None, **more: Any
) -> AsyncIterator[tuple[PodBackend, Seen]]:
    """A backend that has been prepared, and its events."""
    backend = PodBackend(api, settings, watcher=PodWatcher(api, settings.namespace, limits), **more)
    await backend.prepare(known)
    seen = Seen(backend)
    try:
        yield backend, seen
    finally:
        await seen.close()
        await backend.close(0)


class Source:
    """Stands for the gateway's secrets."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {"TOKEN": "one"}

    async def token(self, instance: InstanceOf) -> SecretToken | None:
        path = function_secrets_path(instance.function_id, instance.version_id)
        return SecretToken("x", 1e12, (path,), instance.instance_id)

    async def read(self, token: SecretToken, path: str, tag: str | None) -> tuple[str, dict[str, Any]] | None:
        now = json.dumps(self.values)
        return None if tag == now else (now, dict(self.values))
