"""A backend whose instances outlive the agent, as pods do: what the next agent makes of what it finds."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path

from nvcf_agent.agent import Agent
from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.backends.interface import Running
from nvcf_agent.requests import Requests
from nvcf_agent.state import transitions
from nvcf_agent.state.events import Ended, Event
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.machine_inventory import MachineInventory
from nvcf_agent.state.managed_instance import Category, ManagedInstance, Phase
from nvcf_agent.state.persisted_state import FileStore, PersistedState, StoredInstance
from nvcf_agent.telemetry import AgentTelemetry
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.reports import GpuUsage
from nvcf_proto.ids import new_id
from tests.support.waiting import eventually
from tests.unit.agent.orders import CLUSTER, order


class Pods:
    """Instances that live somewhere else; nothing ends but what is deleted, or what a test says."""

    name = "pods"
    restarts = False

    def __init__(self, running: Collection[str]) -> None:
        self.running = list(running)
        self.known: set[str] = set()
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.readiness: dict[str, bool] = {}

    async def prepare(self, known: Collection[str]) -> None:
        self.known = set(known)

    async def create(self, spec: InstanceSpec) -> Running:
        self.running.append(spec.instance_id)
        return Running(spec.instance_id, "/log")

    async def delete(self, instance_id: str, grace: float) -> None:
        if instance_id in self.running:
            self.running.remove(instance_id)

    async def forget(self, instance_id: str) -> None:
        return None

    async def list(self) -> list[Running]:
        return [Running(each, "/log", ready=self.readiness.get(each)) for each in self.running]

    async def watch(self) -> AsyncIterator[Event]:
        while True:
            yield await self.events.get()

    async def held_requests(self, instance_id: str, version_id: str, wall: float) -> tuple[str, ...]:
        return ()

    async def close(self, grace: float) -> None:
        return None


def running() -> ManagedInstance:
    instance = transitions.acknowledged(transitions.accepted(order(), Share(slots=1), 1.0))
    instance = transitions.launched(instance, pid=1, health_port=None, log_path="/log", now=1.0, wall=1.0)
    return transitions.ready(instance, 2.0)


def agent_of(folder: Path, pods: Pods) -> tuple[Agent, FileStore]:
    store = FileStore(folder)
    requests = Requests(MachineInventory(cpu_slots=4), PersistedState(store, CLUSTER))
    agent = Agent(requests=requests, backend=pods, telemetry=AgentTelemetry(CLUSTER), wall=time.time)
    requests.on_change = agent.wake
    return agent, store


@contextlib.asynccontextmanager
async def adopted(folder: Path, pods: Pods, *instances: ManagedInstance) -> AsyncIterator[Agent]:
    """Run an agent that finds these instances in its store."""
    agent, store = agent_of(folder, pods)
    await store.save({each.id: StoredInstance.of(each, CLUSTER) for each in instances})
    await agent.adopt()
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(agent.run(stop))
        yield agent
        stop.set()


async def test_what_still_runs_goes_on_and_unknown_instances_end(tmp_path: Path) -> None:
    kept, lost, foreign, stranger = running(), running(), running(), new_id()
    leaving = transitions.terminating(running(), "x", 5.0, 3.0)
    over = transitions.completed(transitions.interrupted(leaving, "", 4.0), 4.0)
    leaving = transitions.terminating(running(), "x", 5.0, 3.0)
    pods = Pods([kept.id, leaving.id, stranger])
    agent, store = agent_of(tmp_path, pods)
    mine = {each.id: StoredInstance.of(each, CLUSTER) for each in (kept, lost, leaving, over)}
    await store.save(mine | {foreign.id: StoredInstance.of(foreign, "elsewhere")})
    await agent.adopt()
    found = {each.id: each for each in agent.requests.instances.values()}
    assert {key: each.phase for key, each in found.items()} == {
        kept.id: Phase.RUNNING,
        lost.id: Phase.FAILED,
        leaving.id: Phase.TERMINATING,
        over.id: Phase.COMPLETED,
    }
    assert (found[kept.id].has_process, found[kept.id].restarts) == (True, 0)
    assert not found[lost.id].has_process
    assert pods.running == [kept.id, leaving.id]
    assert pods.known == {kept.id, lost.id, leaving.id, over.id}
    assert agent.usage() == {"CPU": GpuUsage(4, 2, 2)}
    assert (found[lost.id].cause, found[lost.id].category) == (Cause.NOT_FOUND, Category.LOST)


async def test_what_was_not_started_yet_is_started_by_the_next_agent(tmp_path: Path) -> None:
    pending = transitions.acknowledged(transitions.accepted(order(), Share(slots=1), 1.0))
    creating = transitions.creating(
        transitions.acknowledged(transitions.accepted(order(), Share(slots=1), 1.0)), wall=2.0
    )
    pods = Pods([])
    async with adopted(tmp_path, pods, pending, creating):
        await eventually(lambda: set(pods.running) == {pending.id, creating.id}, "both instances")


async def test_readiness_is_taken_over(tmp_path: Path) -> None:
    starting, serving = replace(running(), phase=Phase.STARTING, ready_at=None), running()
    pods = Pods([starting.id, serving.id])
    pods.readiness = {starting.id: True, serving.id: False}
    async with adopted(tmp_path, pods, starting, serving) as agent:
        assert agent.requests.instances[starting.id].phase is Phase.RUNNING
        assert agent.requests.instances[serving.id].phase is Phase.STARTING


async def test_an_end_is_final_and_what_is_left_is_deleted(tmp_path: Path) -> None:
    broken, evicted = running(), running()
    pods = Pods([broken.id, evicted.id])
    async with adopted(tmp_path, pods, broken, evicted) as agent:
        reason = "the image cannot be pulled"
        pods.events.put_nowait(Ended(broken.id, reason, Category.IMAGE_PULL, gone=False))
        await eventually(lambda: agent.requests.instances[broken.id].is_over, "the end of the instance")
        pods.running.remove(evicted.id)
        pods.events.put_nowait(Ended(evicted.id, "evicted", Category.EVICTED, cause=Cause.FAILED))
        await eventually(lambda: agent.requests.instances[evicted.id].is_over, "the end of the other one")
        found = agent.requests.instances
        assert [found[each.id].phase for each in (broken, evicted)] == [Phase.FAILED] * 2
        assert (found[broken.id].cause, found[broken.id].reason) == (Cause.IMAGE_PULL, reason)
        assert not pods.running


async def test_instances_outlive_the_agent(tmp_path: Path) -> None:
    serving = running()
    pods = Pods([serving.id])
    async with adopted(tmp_path, pods, serving) as agent:
        pass
    assert pods.running == [serving.id]
    assert agent.requests.instances[serving.id].phase is Phase.RUNNING
    (stored,), _ = await FileStore(tmp_path).load()
    assert stored.phase is Phase.RUNNING
