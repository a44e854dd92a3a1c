"""An agent with the Helm backend in a test cluster, and what its tests look at."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.backends.interface import NO_SECRETS, Secrets
from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.kinds import (
    MINI_SERVICE,
    Kind,
)
from nvcf_agent.kubernetes.helm import names
from nvcf_agent.kubernetes.helm.backend import HelmBackend
from nvcf_agent.kubernetes.helm.command import Helm
from nvcf_agent.kubernetes.helm.fetch import FetchSettings
from nvcf_agent.kubernetes.helm.settings import HelmSettings
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_agent.kubernetes.secret_objects import SecretObjects, of_chart
from nvcf_agent.secrets import InstanceSecrets, SecretSource
from nvcf_agent.state.events import Event
from nvcf_agent.state.inventory import Limits as ResourceLimits
from nvcf_agent.state.inventory import Share
from tests.kubernetes.cluster.clusters import Cluster
from tests.kubernetes.cluster.kwok import Shape
from tests.support.charts import ChartRegistry
from tests.support.waiting import eventually
from tests.unit.agent.orders import order

TYPE = "NCP.GPU.H100"
NODE = Shape(gpus=8, labels={"nvca.nvcf.nvidia.io/instance-type": TYPE})
SHORT = 180.0
"""Seconds for what takes a few on a quiet machine."""


@dataclass
class Agent:
    """A backend as the agent has it, and the events that it has told."""

    api: Api
    backend: HelmBackend
    events: list[Event] = field(default_factory=list)

    async def follow(self) -> None:
        """Collect the events."""
        async for each in self.backend.watch():
            self.events.append(each)

    def last(self, *kinds: type) -> Event | None:
        """The newest event of these kinds."""
        return next((each for each in reversed(self.events) if isinstance(each, kinds)), None)

    async def until(self, kind: type, what: str = "") -> Any:
        """Wait for an event of a kind whose text has `what`; return it."""

        def found() -> Event | None:
            each = self.last(kind)
            return each if each is not None and what in getattr(each, "reason", "") else None

        await eventually(
            found, f"{kind.__name__} {what}", SHORT, story=lambda: "\n".join(map(str, self.events))
        )
        return found()


@dataclass
class Setting:
    """A cluster with a node, a registry with the example, and the agent's namespace."""

    cluster: Cluster
    namespace: str
    helm: Helm
    registry: ChartRegistry

    def spec(self, chart: str = "words:0.1.0", *, gpus: int = 1, **values: Any) -> InstanceSpec:
        """An instance of a chart, with these values."""
        configuration = base64.b64encode(json.dumps({"image": "example.com/words:1", **values}).encode())
        message = order(
            gpu="H100",
            variables={
                "HELM_CHART_INFERENCE_SERVICE_NAME": "words",
                "INFERENCE_PORT": "8000",
                "CONTAINER_REGISTRIES_CREDENTIALS": _logins("example.com"),
            },
            process=None,
            helm_chart=self.registry.url(chart),
            configuration=configuration.decode(),
            instance_type_name=f"{TYPE}_1x",
            instance_type_value=TYPE,
            requested_gpu_count=gpus,
        )
        return InstanceSpec(message, Share(gpu="H100", gpus=gpus), ResourceLimits(), zone="here")

    def backend(self, api: Api, secrets: Secrets = NO_SECRETS, **changes: Any) -> HelmBackend:
        """A backend with these settings."""
        hosts = frozenset((self.registry.host,))
        settings = HelmSettings(fetch=FetchSettings(private=hosts, plain=hosts))
        pods = PodSettings("example.com/worker:1", self.namespace, collector_image="example.com/otelcol:1")
        return HelmBackend(api, replace(settings, **changes), pods, self.helm, secrets)

    @asynccontextmanager
    async def agent(
        self,
        *known: InstanceSpec,
        kubeconfig: Path | None = None,
        source: SecretSource | None = None,
        **changes: Any,
    ) -> AsyncIterator[Agent]:
        """Run a backend. What it does not know of, it removes, so other tests use other clusters."""
        async with AsyncExitStack() as stack:
            api = await stack.enter_async_context(await Api.open(str(kubeconfig or self.cluster.kubeconfig)))
            secrets: Secrets = NO_SECRETS
            if source is not None:
                secrets = await stack.enter_async_context(
                    InstanceSecrets(source, SecretObjects(api, of_chart))
                )
            agent = Agent(api, self.backend(api, secrets, **changes))
            await agent.backend.prepare([each.instance_id for each in known])
            following = asyncio.create_task(agent.follow())
            try:
                yield agent
            finally:
                await agent.backend.close(0)
                following.cancel()
                await asyncio.wait({following})


def _logins(host: str) -> str:
    secrets = {"k8sSecrets": [{"auths": {host: {"auth": base64.b64encode(b"user:word").decode()}}}]}
    return base64.b64encode(json.dumps(secrets).encode()).decode()


async def mini_service(agent: Agent, spec: InstanceSpec) -> Object:
    """Return the instance's MiniService."""
    found = await agent.api.get(MINI_SERVICE, names.mini_service_name(spec.instance_id))
    assert found is not None
    return found


async def get(agent: Agent, spec: InstanceSpec, kind: Kind, name: str) -> Object:
    """Return an object of the instance's namespace."""
    found = await agent.api.get(kind, name, names.namespace_of(spec.instance_id))
    assert found is not None, f"{kind.kind} {name}"
    return found


def conditions(obj: Object) -> dict[str, tuple[str, str]]:
    """Return status and reason of a MiniService's conditions."""
    return {each["type"]: (each["status"], each["reason"]) for each in obj["status"]["conditions"]}


def name(obj: Object) -> str:
    """Return an object's name."""
    return str(obj["metadata"]["name"])
