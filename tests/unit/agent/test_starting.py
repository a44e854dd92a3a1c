"""Starting one instance, when what the agent knows is behind what it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvcf_agent.accounts import AccountTelemetry
from nvcf_agent.agent import Agent
from nvcf_agent.backends.environment import Endpoints, InstanceSpec, WorkerTelemetry
from nvcf_agent.backends.interface import Running
from nvcf_agent.state import transitions
from nvcf_agent.state.inventory import Inventory, Share
from nvcf_agent.telemetry import AgentTelemetry
from nvcf_proto.ids import new_id
from nvcf_proto.models import FunctionVersion, Telemetries
from tests.unit.agent.orders import CLUSTER, order

OPERATOR = WorkerTelemetry(variables={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://operator:4317"})


class Late:
    """A mirror that does not have its record yet."""

    def __init__(self, version: FunctionVersion) -> None:
        self._late = version
        self._there: dict[str, FunctionVersion] = {}

    def get(self, key: str) -> FunctionVersion | None:
        """As the real one."""
        return self._there.get(key)

    def __contains__(self, key: object) -> bool:
        return key in self._there

    async def wait_for(self, predicate: Callable[[Any], bool], timeout: float) -> None:
        """As the real one; the record arrives."""
        self._there[self._late.id] = self._late
        assert predicate(self)


class Backend:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[InstanceSpec] = []

    async def create(self, spec: InstanceSpec) -> Running:
        """As a real one."""
        self.asked.append(spec)
        return Running(spec.instance_id, "/log")


class Tokens:
    """Gives any token."""

    async def worker_token(self, *_: str) -> str:
        """As the gateway."""
        return "token"


async def test_a_version_that_arrives_after_its_order_keeps_its_telemetry(tmp_path: Path) -> None:
    """What is the account's must not go to the operator because two streams are not in step."""
    asked = order()
    version = FunctionVersion(
        id=asked.version_id,
        function_id=asked.function_id,
        name="f",
        nca_id="one",
        created_at=0.0,
        telemetries=Telemetries(traces=new_id()),
    )
    versions, backend, tokens, unused = Late(version), Backend(), Tokens(), None
    agent = Agent(
        cluster=CLUSTER,
        backend=backend,  # type: ignore[arg-type]
        persisted=unused,  # type: ignore[arg-type]
        records=unused,  # type: ignore[arg-type]
        versions=versions,  # type: ignore[arg-type]
        tokens=tokens,
        endpoints=Endpoints("", ""),
        inventory=Inventory(cpu_slots=1),
        telemetry=AgentTelemetry(CLUSTER),
        accounts=AccountTelemetry(lambda _: None, tmp_path, OPERATOR, CLUSTER),
    )
    instance = transitions.accepted(asked, Share(slots=1), 1.0)
    agent._instances[instance.id] = transitions.creating(instance, wall=1.0)
    await agent._start(instance.id)
    assert [spec.telemetry.variables for spec in backend.asked] == [{}]
