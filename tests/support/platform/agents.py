"""Agents as processes, with a real broker and real child processes. The test acts as the autoscaler."""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats.errors
import psutil

from nvcf_broker.connection import BrokerClient, connect_broker
from nvcf_broker.errors import RevisionConflictError
from nvcf_broker.kv import KvMirror
from nvcf_broker.process import spawn
from nvcf_broker.server import LocalBroker
from nvcf_proto.compute import CLUSTERS_BUCKET, Cluster
from nvcf_proto.icms.messages import CreationMessage, InstanceOrder, TerminationMessage, instance_id_of
from nvcf_proto.icms.names import CREATION_SUBJECTS, ORDER_SUBJECT, termination_subject
from nvcf_proto.ids import new_id
from nvcf_proto.models import (
    INSTANCES_BUCKET,
    VERSIONS_BUCKET,
    Deployment,
    DeploymentSpecification,
    FunctionVersion,
    Instance,
    InstanceState,
    ProcessSource,
)
from nvcf_proto.models.deployments import DEPLOYMENTS_BUCKET, specifications_of
from tests.support.platform.gateways import Platform, control_flags, running_platform
from tests.support.waiting import WAIT, eventually


@dataclass
class Order:
    """One instance that the test has ordered."""

    request_id: str
    cluster_id: str

    @property
    def instance_id(self) -> str:
        """The id that its agent gives it."""
        return instance_id_of(self.request_id)


@dataclass
class Site:
    """A gateway and its broker, with the agents on them. The test acts as the autoscaler."""

    platform: Platform
    client: BrokerClient
    versions: KvMirror[FunctionVersion]
    deployments: KvMirror[Deployment]
    instances: KvMirror[Instance]
    clusters: KvMirror[Cluster]
    agents: list[asyncio.subprocess.Process] = field(default_factory=list)
    orders: dict[str, InstanceOrder] = field(default_factory=dict)
    messages: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.platform.directory

    @property
    def broker(self) -> LocalBroker:
        return self.platform.broker

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def agent(self) -> asyncio.subprocess.Process:
        return self.agents[-1]

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    async def start_agent(
        self, *extra: str, data: Path | None = None, cluster: str = "local", region: str = "local"
    ) -> asyncio.subprocess.Process:
        await self.platform.register_cluster(cluster, region=region)
        command = [*self.platform.agent_command(cluster, data or self.data), *extra]
        environment = {**os.environ, "NVCF_TEST_SECRET": "of the agent alone"}
        with (self.folder / "agent.log").open("ab") as log:
            agent = await spawn(command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=log)
        self.agents.append(agent)
        assert agent.stdout is not None
        line = await asyncio.wait_for(agent.stdout.readline(), WAIT)
        assert line, self.log()
        assert json.loads(line)["event"] == "ready"
        return agent

    async def kill_agent(self) -> None:
        self.agent.kill()
        await self.agent.wait()

    def script_runner(self) -> str:
        """Return an interpreter that runs the function's file itself instead of the worker module."""
        path = self.folder / "bin" / "python"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec {sys.executable} "$3"\n')
        path.chmod(0o755)
        return str(path)

    async def version(self, script: str, *, python: str | None = None, **environment: str) -> FunctionVersion:
        version_id = new_id()
        file = self.folder / f"{version_id}.py"
        file.write_text(script)
        source = ProcessSource(
            python=python or self.script_runner(),
            file=str(file),
            working_directory=str(self.folder),
            environment=environment,
        )
        version = FunctionVersion(
            id=version_id,
            function_id=new_id(),
            name="hello",
            nca_id="account",
            created_at=time.time(),
            process=source,
            tags=("blue",),
        )
        await self.versions.put(version.id, version)
        return version

    async def announce(
        self, version: FunctionVersion, *, cluster: str = "local", **specification: Any
    ) -> tuple[Order, str]:
        """Create a PENDING record, as the autoscaler does before it orders.

        Returns what is to be ordered, and the id of its specification.
        """
        wanted = DeploymentSpecification(**specification)
        specification_id = await self._deploy(version, wanted)
        order, now = Order(new_id(), self.platform.cluster_ids[cluster]), time.time()
        record = Instance(
            id=order.instance_id,
            function_id=version.function_id,
            version_id=version.id,
            cluster_id=order.cluster_id,
            state=InstanceState.PENDING,
            updated_at=now,
            created_at=now,
            specification_id=specification_id,
            gpu=wanted.gpu,
            request_id=order.request_id,
        )
        await self.instances.create(record.key, record)
        return order, specification_id

    async def create(
        self, version: FunctionVersion, count: int = 1, *, expires_in: float = 60.0, **specification: Any
    ) -> list[Order]:
        """Order instances as the autoscaler does, and return when their messages are published."""
        made = []
        for _ in range(count):
            order, specification_id = await self.announce(version, **specification)
            wanted = InstanceOrder(
                request_id=order.request_id,
                function_version_id=version.id,
                cluster_id=order.cluster_id,
                gpu_specification_id=specification_id,
                expires_at=time.time() + expires_in,
            )
            await self.place(wanted)
            made.append(order)
        return made

    async def order_again(self) -> None:
        """Repeat all orders that no agent has acknowledged, as the autoscaler does after some seconds."""
        for each in self.instances.values():
            if each.state is InstanceState.PENDING and each.acknowledged_at is None:
                order = self.orders[each.request_id]
                await self.place(order.replace(attempt=order.attempt + 1))

    async def place(self, order: InstanceOrder) -> None:
        """Send an order to the gateway; it may not know yet what the test has just written."""
        self.orders[order.request_id] = order

        async def placed() -> bool:
            try:
                answer = await self.client.request(ORDER_SUBJECT, order.to_json(), timeout=WAIT)
            except nats.errors.NoRespondersError:
                # The broker has just started; the gateway is not there yet.
                return False
            return bool(json.loads(answer.data) == {})

        await eventually(placed, "the gateway publishes the creation message")

    async def send_again(self, order: Order) -> None:
        """Publish an order's creation message once more."""
        await eventually(lambda: order.request_id in self.messages, "the creation message")
        subject, body = self.messages[order.request_id]
        await self.client.jetstream().publish(subject, body)

    async def _deploy(self, version: FunctionVersion, wanted: DeploymentSpecification) -> str:
        """Make sure that the version's deployment has the specification, and return its id."""
        known = self.deployments.get(version.id)
        found = known.specifications if known is not None else ()
        if wanted not in found:
            known = Deployment(version.id, version.function_id, time.time(), (*found, wanted))
            await self.deployments.put(version.id, known)
        assert known is not None
        return next(key for key, each in specifications_of(known).items() if each == wanted)

    async def end(
        self, version: FunctionVersion, *orders: Order | Instance, reason: str = "fewer are wanted"
    ) -> None:
        """Ask for the end of instances as the autoscaler does."""
        for order in orders:
            key = f"{version.id}.{order.request_id}"
            while (entry := self.instances.entry(key)) is not None:
                changed = entry.value.changed(time.time(), draining_since=time.time(), reason=reason)
                with contextlib.suppress(RevisionConflictError):
                    await self.instances.update(key, changed, entry.revision)
                    break
                await self.instances.wait_change(0.5)
            message = TerminationMessage(
                request_id=order.request_id,
                nca_id=version.nca_id,
                instance_ids=(instance_id_of(order.request_id),),
                reason=reason,
            )
            subject = termination_subject(order.cluster_id)
            await self.client.jetstream().publish(subject, message.to_json())

    def of(self, version: FunctionVersion) -> list[Instance]:
        return [each for each in self.instances.values() if each.version_id == version.id]

    async def until(
        self, version: FunctionVersion, predicate: Callable[[list[Instance]], bool], timeout: float = WAIT
    ) -> list[Instance]:
        try:
            await self.instances.wait_for(lambda _: predicate(self.of(version)), timeout)
        except TimeoutError:
            raise AssertionError(f"instances are {self.of(version)}\n{self.log()[-3000:]}") from None
        return self.of(version)

    async def running(self, version: FunctionVersion, count: int = 1) -> list[Instance]:
        return await self.until(
            version, lambda them: sum(map(is_running, them)) == count and len(live(them)) == count
        )

    async def states(self, version: FunctionVersion, *states: InstanceState) -> list[Instance]:
        """Wait until the version's instances have these states, in any order."""
        return await self.until(version, lambda them: sorted(each.state for each in them) == sorted(states))

    async def free(self, gpu: str, count: int, cluster: str = "local") -> None:
        """Wait until a cluster reports `count` free instances."""
        await self.clusters.wait_for(lambda _: self.pool(gpu, cluster) == count, WAIT)

    def pool(self, gpu: str, cluster: str = "local") -> int | None:
        """Return what is free of a GPU, or None if the cluster has none."""
        found = self.clusters.get(self.platform.cluster_ids[cluster])
        pools = found.pools if found is not None else ()
        return next((each.instances_free for each in pools if each.gpu == gpu), None)


def is_running(instance: Instance) -> bool:
    return instance.state is InstanceState.RUNNING


def live(them: list[Instance]) -> list[Instance]:
    over = (InstanceState.COMPLETED, InstanceState.FAILED)
    return [each for each in them if each.state not in over]


def alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.asynccontextmanager
async def running_site(folder: Path) -> AsyncIterator[Site]:
    """Run a broker and a gateway, with mirrors of the buckets. The test starts the agents."""
    async with contextlib.AsyncExitStack() as stack:
        broker = LocalBroker(folder / "broker")
        platform = await stack.enter_async_context(
            running_platform(folder, flags=control_flags(broker), broker=broker)
        )
        client = await connect_broker(broker.url, broker.control_credentials_file, name="test")
        stack.push_async_callback(client.close)
        versions = KvMirror(client, VERSIONS_BUCKET, FunctionVersion.from_json, FunctionVersion.to_json)
        deployments = KvMirror(client, DEPLOYMENTS_BUCKET, Deployment.from_json, Deployment.to_json)
        instances = KvMirror(client, INSTANCES_BUCKET, Instance.from_json, Instance.to_json)
        clusters = KvMirror(client, CLUSTERS_BUCKET, Cluster.from_json, Cluster.to_json)
        ready: list[Awaitable[None]] = []
        for mirror in (versions, deployments, instances, clusters):
            await stack.enter_async_context(mirror)
            ready.append(mirror.ready())
        await asyncio.gather(*ready)
        site = Site(platform, client, versions, deployments, instances, clusters)

        async def created(message: Any) -> None:
            request_id = CreationMessage.from_json(message.data).request_id
            site.messages[request_id] = message.subject, message.data

        await client.subscribe(CREATION_SUBJECTS, cb=created)
        try:
            yield site
        finally:
            for agent in site.agents:
                if agent.returncode is None:
                    agent.kill()
                    await agent.wait()
