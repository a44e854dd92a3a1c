"""One backend of several: orders go to the right one, and the events of both are one stream."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable

import pytest

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.backends.interface import Running
from nvcf_agent.errors import Unsupported
from nvcf_agent.kubernetes.composite import KubernetesBackend
from nvcf_agent.state.events import Event, Ready
from nvcf_agent.state.inventory import NO_LIMITS, Share
from nvcf_proto.icms.reports import PrefetchImage
from tests.unit.agent.orders import order


class StandInBackend:
    """Keeps what it was asked; it runs nothing."""

    name = "stand-in"
    restarts = False

    def __init__(self, *running: str) -> None:
        self.running = list(running)
        self.asked: list[str] = []
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    def prefetch(self, images: Iterable[PrefetchImage]) -> None:
        self.asked.append("prefetch")

    async def prepare(self, known: Collection[str]) -> None:
        self.asked.append("prepare")

    async def create(self, spec: InstanceSpec) -> Running:
        self.running.append(spec.instance_id)
        return Running(spec.instance_id, "")

    async def delete(self, instance_id: str, grace: float) -> None:
        self.asked.append(f"delete {instance_id}")

    async def held_requests(self, instance_id: str, version_id: str, wall: float) -> tuple[str, ...]:
        return (f"held by {instance_id}",)

    async def forget(self, instance_id: str) -> None:
        self.asked.append(f"forget {instance_id}")

    async def list(self) -> list[Running]:
        return [Running(each, "") for each in self.running]

    async def watch(self) -> AsyncIterator[Event]:
        while True:
            yield await self.events.get()

    async def close(self, grace: float) -> None:
        self.asked.append("close")


def spec(**launch: str) -> InstanceSpec:
    return InstanceSpec(order(**launch), Share(), NO_LIMITS)


async def test_the_order_chooses_the_backend() -> None:
    pods, helm = StandInBackend("old-pod"), StandInBackend("old-chart")
    backend = KubernetesBackend(pods, helm)
    await backend.prepare(())
    assert {each.instance_id for each in await backend.list()} == {"old-pod", "old-chart"}
    container, chart = spec(container_image="f:1"), spec(helm_chart="oci://x/y:1")
    await backend.create(container)
    await backend.create(chart)
    assert (pods.running[1:], helm.running[1:]) == ([container.instance_id], [chart.instance_id])
    for each in ("old-chart", chart.instance_id):
        await backend.delete(each, 1.0)
        assert await backend.held_requests(each, "v", 0.0) == (f"held by {each}",)
        await backend.forget(each)
    await backend.delete("unknown", 1.0)
    await backend.close(1.0)
    assert pods.asked == ["prepare", "delete unknown", "close"]
    assert helm.asked[-2:] == ["delete unknown", "close"]


async def test_events_of_both_are_one_stream() -> None:
    pods, helm = StandInBackend(), StandInBackend()
    events = KubernetesBackend(pods, helm).watch()
    for number in range(2):
        pods.events.put_nowait(Ready(f"pod {number}"))
        helm.events.put_nowait(Ready(f"chart {number}"))
    found = {(await anext(events)).instance_id for _ in range(4)}
    assert found == {"pod 0", "pod 1", "chart 0", "chart 1"}


async def test_charts_need_their_backend() -> None:
    with pytest.raises(Unsupported):
        await KubernetesBackend(StandInBackend(), None).create(spec(helm_chart="oci://x/y:1"))
