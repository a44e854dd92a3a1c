"""A backend whose instances outlive the agent, as pods do: what the next agent makes of what it finds."""

import time
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from nvcf_agent.agent import Agent
from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.backends.interface import Running
from nvcf_agent.requests import Requests
from nvcf_agent.state import transitions
from nvcf_agent.state.inventory import Inventory, Share
from nvcf_agent.state.managed_instance import ManagedInstance, Phase
from nvcf_agent.state.persisted_state import FileStore, PersistedState, StoredInstance
from nvcf_agent.state.transitions import Event
from nvcf_agent.telemetry import AgentTelemetry
from nvcf_proto.icms.reports import GpuUsage
from nvcf_proto.ids import new_id
from tests.unit.agent.orders import CLUSTER, order


class Pods:
    """Instances that live somewhere else; nothing ends but what is deleted."""

    def __init__(self, running: Collection[str]) -> None:
        self.running = list(running)
        self.known: set[str] = set()

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
        return [Running(each, "/log") for each in self.running]

    async def watch(self) -> AsyncIterator[Event]:
        nothing: tuple[Event, ...] = ()
        for event in nothing:
            yield event

    async def capacity(self) -> Inventory:
        return Inventory(cpu_slots=4)

    async def close(self, grace: float) -> None:
        return None


def running() -> ManagedInstance:
    instance = transitions.acknowledged(transitions.accepted(order(), Share(slots=1), 1.0))
    instance = transitions.launched(instance, pid=1, health_port=None, log_path="/log", now=1.0, wall=1.0)
    return transitions.ready(instance, 2.0)


async def test_what_still_runs_goes_on_and_unknown_instances_end(tmp_path: Path) -> None:
    kept, lost, foreign, stranger = running(), running(), running(), new_id()
    leaving = transitions.terminating(running(), "x", 5.0, 3.0)
    over = transitions.completed(transitions.interrupted(leaving, "", 4.0), 4.0)
    leaving = transitions.terminating(running(), "x", 5.0, 3.0)
    store = FileStore(tmp_path)
    mine = {each.id: StoredInstance.of(each, CLUSTER) for each in (kept, lost, leaving, over)}
    await store.save(mine | {foreign.id: StoredInstance.of(foreign, "elsewhere")})
    pods = Pods([kept.id, leaving.id, stranger])
    agent = Agent(
        requests=Requests(await pods.capacity(), PersistedState(store, CLUSTER)),
        backend=pods,
        telemetry=AgentTelemetry(CLUSTER),
        instances_folder=tmp_path,
        wall=time.time,
    )
    await agent.adopt()
    found = {each.id: each for each in agent.requests.instances.values()}
    assert {key: each.phase for key, each in found.items()} == {
        kept.id: Phase.RUNNING,
        lost.id: Phase.CREATING,
        leaving.id: Phase.TERMINATING,
        over.id: Phase.COMPLETED,
    }
    assert (found[kept.id].has_process, found[kept.id].restarts) == (True, 0)
    assert not found[lost.id].has_process
    assert pods.running == [kept.id, leaving.id]
    assert pods.known == {kept.id, lost.id, leaving.id, over.id}
    assert agent.usage() == {"CPU": GpuUsage(4, 3, 1)}
