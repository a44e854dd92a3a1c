"""A gateway with its control plane's broker account; the test plays the autoscaler and the agents."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import nats.errors
from nats.aio.msg import Msg

from nvcf_broker.connection import BrokerClient, connect_broker
from nvcf_broker.kv import KvMirror
from nvcf_proto.compute import CLUSTERS_BUCKET, REGISTERED_CLUSTERS_BUCKET, Cluster, RegisteredCluster
from nvcf_proto.ids import new_id
from nvcf_proto.models import Instance, InstanceState
from nvcf_proto.models.deployments import INSTANCES_BUCKET
from tests.support.peers.icms_agent import AgentPeer
from tests.support.platform.gateways import ACCOUNT, Platform, Version, running_platform
from tests.support.waiting import eventually

ORDER = "nvcf.icms.order"
SPECIFICATION: dict[str, Any] = {"gpu": "H100", "instanceType": "NCP.GPU.H100_1x"}


@dataclass
class ComputePlane:
    """A platform, and what the test needs of it to play its other parts.

    `client` is in the broker account of the control plane, `data` in that of the queues.
    """

    platform: Platform
    client: BrokerClient
    data: BrokerClient
    instances: KvMirror[Instance]
    clusters: KvMirror[Cluster]
    registered: KvMirror[RegisteredCluster]
    peers: list[AgentPeer] = field(default_factory=list)
    calls: list[asyncio.Task[None]] = field(default_factory=list)

    async def cluster(self, name: str | None = None, *, connect: bool = True, **fields: Any) -> AgentPeer:
        """Register a cluster as an administrator, and return an agent for it."""
        body = {"clusterName": name or f"cluster-{new_id()[:8]}", **fields}
        made = await self.platform.call("POST", f"/v1/accounts/{ACCOUNT}/clusters", body)
        peer = self.agent(made["clusterId"], made.get("clusterKey", ""))
        if connect:
            await eventually(lambda: self._takes(peer), "the gateway that the broker asks knows the cluster")
        return peer

    @staticmethod
    async def _takes(peer: AgentPeer) -> bool:
        """Connect, as agents do: again if the gateway that the broker asks does not know the cluster yet."""
        try:
            await peer.connect()
        except nats.errors.Error as error:
            if "Authorization Violation" not in str(error):
                raise
            return False
        return True

    def agent(self, cluster_id: str, credential: str) -> AgentPeer:
        """Return an agent that is not connected yet."""
        platform = self.platform
        peer = AgentPeer(platform.session, platform.gateway.url, platform.broker.url, cluster_id, credential)
        self.peers.append(peer)
        return peer

    async def version(self, **fields: Any) -> Version:
        """Create a version and deploy it with one specification for one H100."""
        version = await self.platform.create_version(**fields)
        await self.platform.deploy(version, **SPECIFICATION)
        return version

    async def order(
        self,
        version: Version,
        cluster_id: str,
        *,
        request_id: str | None = None,
        attempt: int = 0,
        specification: str = "0-H100-NCP.GPU.H100_1x-1x0",
        write: bool = True,
        expect: str | None = None,
    ) -> str:
        """Do as the autoscaler: write the PENDING record, order the instance; return the request's id."""
        request = request_id or new_id()
        if write:
            await self.write(version, cluster_id, request, specification)
        order = {
            "requestId": request,
            "functionVersionId": version.id,
            "clusterId": cluster_id,
            "gpuSpecificationId": specification,
            "expiresAt": time.time() + 60,
            "attempt": attempt,
            "reason": "a test",
            "traceParent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        }
        reply = await self.client.request(ORDER, json.dumps(order).encode(), timeout=20)
        answer = json.loads(reply.data)
        if expect is None:
            assert answer == {}, answer
        else:
            assert expect in answer["error"]
        return request

    async def write(
        self, version: Version, cluster_id: str, request: str, specification: str = "s", **fields: Any
    ) -> Instance:
        """Write the PENDING record of a request."""
        now = time.time()
        record = Instance(
            id=f"0-sr-{request}",
            function_id=version.function_id,
            version_id=version.id,
            cluster_id=cluster_id,
            state=InstanceState.PENDING,
            updated_at=now,
            created_at=now,
            specification_id=specification,
            gpu="H100",
            request_id=request,
        ).replace(**fields)
        await self.instances.create(record.key, record)
        return record

    def record(self, request_id: str) -> Instance | None:
        """Return the record of a request."""
        return next((each for each in self.instances.values() if each.request_id == request_id), None)

    async def state(self, request_id: str, *states: InstanceState) -> Instance:
        """Wait until a request's record is in one of these states, and return it."""

        def found() -> bool:
            record = self.record(request_id)
            return record is not None and record.state in states

        await eventually(found, f"{request_id} is {states}: {self.record(request_id)}")
        record = self.record(request_id)
        assert record is not None
        return record

    async def change(self, request_id: str, **changes: Any) -> None:
        """Change a record as the autoscaler does."""
        record = self.record(request_id)
        assert record is not None
        entry = self.instances.entry(record.key)
        assert entry is not None
        await self.instances.update(record.key, entry.value.changed(time.time(), **changes), entry.revision)

    async def terminate(self, request_id: str) -> None:
        """Do as the autoscaler: note in the record that it ends, and publish the termination message."""
        record = self.record(request_id)
        assert record is not None
        await self.change(request_id, draining_since=time.time(), reason="scaled down")
        body = {
            "requestId": request_id,
            "ncaId": ACCOUNT,
            "action": "TerminateInstances",
            "instanceIds": [record.id],
        }
        subject = f"Terminate.NVCA.{record.cluster_id}"
        await self.client.request(subject, json.dumps(body).encode(), timeout=20)

    def call_in_background(self, version: Version) -> None:
        """Call a version without waiting for the answer."""

        async def call() -> None:
            headers = {**self.platform.authorization(), "NVCF-POLL-SECONDS": "30"}
            url = self.platform.gateway.url + version.pexec
            with contextlib.suppress(aiohttp.ClientError):
                async with self.platform.session.post(url, data=b"{}", headers=headers):
                    pass

        self.calls.append(asyncio.create_task(call()))

    async def pull(
        self,
        version: Version,
        begin: Callable[[], None] = lambda: None,
        *,
        seconds: float = 20.0,
        wanted: bool = True,
    ) -> Msg:
        """Pull one request as a worker would; with `wanted` False it is returned if there is one."""
        stream = f"rq_local_{version.id}"
        inbox = self.data.new_inbox()
        subscription = await self.data.subscribe(inbox)
        body = json.dumps({"batch": 1, "expires": int(seconds * 1e9)}).encode()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}_workers"
        await self.data.publish(subject, body, reply=inbox)
        begin()
        message = await subscription.next_msg(timeout=seconds + 10)
        await subscription.unsubscribe()
        if (message.headers or {}).get("Status") is not None:
            assert not wanted, message.headers
            return None  # type: ignore[return-value]
        return message

    async def running(self, peer: AgentPeer, version: Version) -> str:
        """Take an instance all the way to RUNNING, and return its request's id."""
        request = await self.order(version, peer.cluster_id)
        created = await peer.creation()
        assert created.request_id == request
        assert (await peer.acknowledge(request))[0] == 200
        await peer.confirm(created.message)
        assert (await peer.report(request, created.instance_id, "running"))[0] == 200
        await self.state(request, InstanceState.RUNNING)
        return request


@contextlib.asynccontextmanager
async def running_compute_plane(
    directory: Path, *flags: str, gateways: int = 1
) -> AsyncIterator[ComputePlane]:
    """Run broker and gateways, with the control plane's records in an account of their own."""
    control = directory / "broker" / "control.credentials"
    flags = ("--nats-control-credentials", str(control), *flags)
    async with running_platform(directory, gateways=gateways, flags=flags) as platform:
        client = await connect_broker(platform.broker.url, control, name="test autoscaler")
        data = await connect_broker(
            platform.broker.url, platform.broker.credentials_file, name="test observer"
        )
        async with (
            KvMirror(client, INSTANCES_BUCKET, Instance.from_json, Instance.to_json) as instances,
            KvMirror(client, CLUSTERS_BUCKET, Cluster.from_json, Cluster.to_json) as clusters,
            KvMirror(
                client, REGISTERED_CLUSTERS_BUCKET, RegisteredCluster.from_json, RegisteredCluster.to_json
            ) as registered,
        ):
            for mirror in (instances, clusters, registered):
                await mirror.ready()
            plane = ComputePlane(platform, client, data, instances, clusters, registered)
            try:
                yield plane
            finally:
                for call in plane.calls:
                    call.cancel()
                for peer in plane.peers:
                    await peer.close()
        await client.close()
        await data.close()
