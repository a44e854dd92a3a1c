"""Several backends as one: pods for container functions, MiniServices for Helm functions."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Protocol

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.backends.interface import Backend, Running
from nvcf_agent.errors import Unsupported
from nvcf_agent.state.events import Event
from nvcf_proto.icms.reports import PrefetchImage


class PrefetchingBackend(Backend, Protocol):
    """A backend whose nodes can pull images beforehand."""

    def prefetch(self, images: Iterable[PrefetchImage]) -> None:
        """Have nodes pull images."""


class KubernetesBackend:
    """Chooses a backend by the order. What is asked of an instance of unknown kind is asked of both."""

    name = "kubernetes"
    restarts = False

    def __init__(self, pods: PrefetchingBackend, helm: Backend | None) -> None:
        self._pods = pods
        self._helm = helm
        self._of: dict[str, Backend] = {}

    @property
    def _all(self) -> list[Backend]:
        return [self._pods] if self._helm is None else [self._pods, self._helm]

    def _backends_of(self, instance_id: str) -> list[Backend]:
        known = self._of.get(instance_id)
        return self._all if known is None else [known]

    async def prepare(self, known: Collection[str]) -> None:
        for backend in self._all:
            await backend.prepare(known)

    async def create(self, spec: InstanceSpec) -> Running:
        backend: Backend = self._pods
        if spec.order.launch_specification.helm_chart:
            if self._helm is None:
                raise Unsupported("this cluster runs container functions; the order is for a Helm chart")
            backend = self._helm
        self._of[spec.instance_id] = backend
        return await backend.create(spec)

    def prefetch(self, images: Iterable[PrefetchImage]) -> None:
        """Have nodes pull images of container functions."""
        self._pods.prefetch(images)

    async def delete(self, instance_id: str, grace: float) -> None:
        for backend in self._backends_of(instance_id):
            await backend.delete(instance_id, grace)

    async def held_requests(self, instance_id: str, version_id: str, wall: float) -> tuple[str, ...]:
        found = [
            await backend.held_requests(instance_id, version_id, wall)
            for backend in self._backends_of(instance_id)
        ]
        return tuple(each for held in found for each in held)

    async def forget(self, instance_id: str) -> None:
        for backend in self._backends_of(instance_id):
            await backend.forget(instance_id)
        self._of.pop(instance_id, None)

    async def list(self) -> list[Running]:
        found = []
        for backend in self._all:
            for running in await backend.list():
                self._of[running.instance_id] = backend
                found.append(running)
        return found

    async def watch(self) -> AsyncIterator[Event]:
        events: asyncio.Queue[Event] = asyncio.Queue(1)

        async def pass_on(backend: Backend) -> None:
            async for event in backend.watch():
                await events.put(event)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(pass_on(backend)) for backend in self._all]
            try:
                while True:
                    yield await events.get()
            finally:
                for task in tasks:
                    task.cancel()

    async def close(self, grace: float) -> None:
        for backend in self._all:
            await backend.close(grace)
