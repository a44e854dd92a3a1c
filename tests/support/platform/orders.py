"""An autoscaler's peers: a stand-in gateway that takes its orders, and records as agents' reports make them.

The broker and the autoscalers are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nats.aio.msg import Msg

from nvcf_broker.connection import BrokerClient, connect_broker
from nvcf_broker.jetstream import JetStream
from nvcf_broker.kv import KvMirror
from nvcf_broker.requests import ReplyInbox
from nvcf_broker.server import LocalBroker
from nvcf_proto.compute import CLUSTERS_BUCKET, Cluster, GpuPool
from nvcf_proto.icms.messages import InstanceOrder, TerminationMessage
from nvcf_proto.icms.names import ORDER_SUBJECT, STREAM_SUBJECTS, TERMINATION_SUBJECTS, stream_config
from nvcf_proto.ids import new_id
from nvcf_proto.models import (
    DEPLOYMENTS_BUCKET,
    INSTANCES_BUCKET,
    VERSIONS_BUCKET,
    Deployment,
    DeploymentSpecification,
    FunctionVersion,
    Instance,
    InstanceState,
    ProcessSource,
)
from nvcf_proto.streams import request_consumer_config, request_stream_config
from nvcf_proto.subjects import request_stream, request_subject
from tests.support.platform.processes import Child, end, python, start
from tests.support.waiting import eventually

ACCOUNT = "account-one"


@dataclass
class OrderSite:
    """The records, processes and messages of one test. `answer` is what the gateway says to an order."""

    directory: Path
    broker: LocalBroker
    client: BrokerClient
    jetstream: JetStream
    versions: KvMirror[FunctionVersion]
    deployments: KvMirror[Deployment]
    instances: KvMirror[Instance]
    clusters: KvMirror[Cluster]
    answer: Callable[[InstanceOrder], bytes | None] = lambda _: b"{}"
    orders: list[tuple[float, InstanceOrder]] = field(default_factory=list)
    terminations: list[tuple[str, TerminationMessage]] = field(default_factory=list)
    autoscalers: list[Child] = field(default_factory=list)
    beating: set[str] = field(default_factory=set)

    async def start_autoscaler(self, *flags: str) -> Child:
        """Start one more replica."""
        command = python(
            "-m", "nvcf_autoscaler", "--nats", self.broker.url,
            "--nats-credentials", str(self.broker.credentials_file), "--log-level", "DEBUG", *flags,
        )  # fmt: skip
        child = await start(command, log=self.directory / f"autoscaler-{len(self.autoscalers)}.log")
        self.autoscalers.append(child)
        await child.first_line()
        return child

    async def add_cluster(self, name: str, gpus: int = 4, **changes: Any) -> Cluster:
        """Register a cluster; its heartbeats come until `beating` does not have its id any more."""
        pool = GpuPool("SIM", "process", gpus, gpus)
        cluster = Cluster(new_id(), "local", time.time(), (pool,), name=name, **changes)
        await self.clusters.put(cluster.id, cluster)
        self.beating.add(cluster.id)
        return cluster

    async def beat(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            for cluster_id in self.beating:
                known = self.clusters.get(cluster_id)
                if known is not None:
                    await self.clusters.put(cluster_id, known.replace(heartbeat_at=time.time()))
            await asyncio.sleep(1.0)

    async def deploy(self, **specification: Any) -> FunctionVersion:
        """Deploy a version with one specification."""
        process = ProcessSource(python="/usr/bin/python3", file="/f.py", working_directory="/")
        version = FunctionVersion(new_id(), new_id(), "f", ACCOUNT, time.time(), process=process)
        await self.versions.put(version.id, version)
        await self.redeploy(version, **specification)
        return version

    async def redeploy(self, version: FunctionVersion, **specification: Any) -> None:
        """Deploy a version in another way."""
        spec = DeploymentSpecification(**{"gpu": "SIM", **specification})
        deployment = Deployment(version.id, version.function_id, time.time(), (spec,))
        await self.deployments.put(version.id, deployment)

    async def queue_request(self, version: FunctionVersion) -> None:
        """Queue the first request of a version."""
        await self.jetstream.create_stream(request_stream_config("local", version.id))
        stream = request_stream("local", version.id)
        await self.jetstream.create_consumer(stream, request_consumer_config("local", version.id))
        await self.jetstream.publish(request_subject("local", version.id, new_id()), b"")

    async def change(self, instance: Instance, **changes: Any) -> None:
        """Change an instance's record, as a report of its agent does."""
        entry = self.instances.entry(instance.key)
        assert entry is not None
        changed = entry.value.changed(time.time(), **changes)
        await self.instances.update(instance.key, changed, entry.revision)

    async def run(self, instance: Instance) -> None:
        """Report that an instance runs."""
        now = time.time()
        state = InstanceState.RUNNING
        await self.change(instance, state=state, acknowledged_at=now, reported_at=now, ready_at=now)

    def of(self, version: FunctionVersion) -> list[Instance]:
        """Return a version's records, oldest first."""
        found = [each for each in self.instances.values() if each.version_id == version.id]
        return sorted(found, key=lambda each: each.created_at)

    def ordered(self, request_id: str) -> list[int]:
        """Return the attempts of a request's orders so far."""
        return [order.attempt for _, order in self.orders if order.request_id == request_id]

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition of records or messages."""
        await eventually(condition, what, story=self.story)

    def story(self) -> str:
        """Return what happened so far, for the message of a failed test."""
        records = "\n".join(f"  {each}" for each in self.instances.values())
        logs = "\n".join(child.text()[-2500:] for child in self.autoscalers)
        return f"instances:\n{records}\norders:\n{self.orders}\n{logs}"


@contextlib.asynccontextmanager
async def running_order_site(directory: Path) -> AsyncIterator[OrderSite]:
    """Run a broker, a stand-in gateway and heartbeats. The test starts autoscalers."""
    async with LocalBroker(directory / "broker") as broker, contextlib.AsyncExitStack() as stack:
        client = await connect_broker(broker.url, broker.credentials_file, name="test")
        stack.push_async_callback(client.close)
        versions = KvMirror(client, VERSIONS_BUCKET, FunctionVersion.from_json, FunctionVersion.to_json)
        deployments = KvMirror(client, DEPLOYMENTS_BUCKET, Deployment.from_json, Deployment.to_json)
        instances = KvMirror(client, INSTANCES_BUCKET, Instance.from_json, Instance.to_json)
        clusters = KvMirror(client, CLUSTERS_BUCKET, Cluster.from_json, Cluster.to_json)
        for mirror in (versions, deployments, instances, clusters):
            await stack.enter_async_context(mirror)
            await mirror.ready()
        requests = ReplyInbox(client)
        await requests.start()
        jetstream = JetStream(requests)
        for name in STREAM_SUBJECTS:
            await jetstream.ensure_stream(stream_config(name))
        site = OrderSite(directory, broker, client, jetstream, versions, deployments, instances, clusters)
        await _listen(site)
        async with asyncio.TaskGroup() as tasks:
            beating = tasks.create_task(site.beat())
            try:
                yield site
            finally:
                beating.cancel()
                for child in site.autoscalers:
                    await end(child)


async def _listen(site: OrderSite) -> None:
    async def ordered(message: Msg) -> None:
        order = InstanceOrder.from_json(message.data)
        site.orders.append((time.time(), order))
        answer = site.answer(order)
        if answer is not None:
            await message.respond(answer)

    async def ended(message: Msg) -> None:
        site.terminations.append((message.subject, TerminationMessage.from_json(message.data)))

    await site.client.subscribe(ORDER_SUBJECT, queue="gateways", cb=ordered)
    await site.client.subscribe(TERMINATION_SUBJECTS, cb=ended)
    await site.client.flush(timeout=5)
