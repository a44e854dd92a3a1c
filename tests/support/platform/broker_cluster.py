"""A broker cluster on loopback: real nats-servers with routes, each with region tags of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import nats.errors

from nvcf_broker.configuration import ensure_credentials
from nvcf_broker.connection import connect_broker
from nvcf_broker.files import write_private
from nvcf_broker.process import free_port
from nvcf_broker.server import LocalBroker
from tests.support.platform.gateways import Platform, control_flags, running_platform
from tests.support.waiting import eventually


class ClusterNode(LocalBroker):
    """One node, configured like a single broker, with routes to its peers."""

    def __init__(
        self, directory: Path, tags: Sequence[str], route_port: int, *, advertise: bool, sync_always: bool
    ) -> None:
        super().__init__(directory, port=free_port(), tags=tags, sync_always=sync_always)
        self.route_port = route_port
        self._advertise = advertise
        self.peers: list[ClusterNode] = []

    @property
    def own_url(self) -> str:
        """Address of this node alone."""
        return super().url

    @property
    def url(self) -> str:
        """Addresses of all nodes, this one first."""
        return ",".join([self.own_url, *(peer.own_url for peer in self.peers)])

    @property
    def name(self) -> str:
        """The server's name, by which streams name their leader."""
        assert self._identity is not None
        return self._identity.server_name

    def prepare(self) -> None:
        """Write the configuration of a single broker and add the routes."""
        super().prepare()
        if not self.peers:
            return
        routes = [f"nats://127.0.0.1:{peer.route_port}" for peer in self.peers]
        cluster = {
            "name": "test",
            "listen": f"127.0.0.1:{self.route_port}",
            "routes": routes,
            "no_advertise": not self._advertise,
        }
        configuration = self.files.configuration.read_text()
        write_private(self.files.configuration, f"{configuration}cluster: {json.dumps(cluster)}\n")


class BrokerCluster:
    """Nodes that share accounts and credentials; `regions[i]` are the regions node i is tagged with.

    Without `advertise` clients know only the addresses that they were given.
    """

    def __init__(
        self,
        directory: Path,
        regions: Sequence[Sequence[str]],
        *,
        advertise: bool = True,
        sync_always: bool = False,
    ) -> None:
        self.nodes = [
            ClusterNode(
                directory / f"node-{number}",
                [f"aws-region:{region}" for region in tagged],
                free_port(),
                advertise=advertise,
                sync_always=sync_always,
            )
            for number, tagged in enumerate(regions)
        ]
        first = self.nodes[0]
        ensure_credentials(first.files)
        for node in self.nodes:
            node.peers = [peer for peer in self.nodes if peer is not node]
            node.files.directory.mkdir(parents=True, exist_ok=True)
            files = first.files
            for source in (files.credentials, files.control, files.system, files.callout_seed):
                if node is not first:
                    shutil.copy2(source, node.files.directory / source.name)
            # This chooses the client port, which the addresses for the other nodes contain.
            node.prepare()

    async def start(self) -> None:
        """Start all nodes. Wait until a stream with a copy on each node can be created."""
        async with asyncio.TaskGroup() as tasks:
            for node in self.nodes:
                tasks.create_task(node.start())
        first = self.nodes[0]
        client = await connect_broker(first.url, first.credentials_file, name="cluster-test")
        config = {
            "name": "probe",
            "subjects": ["probe"],
            "storage": "memory",
            "num_replicas": len(self.nodes),
        }

        async def creates_stream() -> bool:
            with contextlib.suppress(nats.errors.Error):
                subject, body = "$JS.API.STREAM.CREATE.probe", json.dumps(config).encode()
                return "error" not in json.loads((await client.request(subject, body, timeout=5)).data)
            return False

        try:
            await eventually(creates_stream, "the cluster creates a stream")
            await client.request("$JS.API.STREAM.DELETE.probe", b"", timeout=30)
        finally:
            await client.close()

    def named(self, name: str) -> ClusterNode:
        """Return the node with that server name."""
        return next(node for node in self.nodes if node.name == name)

    async def stop(self) -> None:
        """End all nodes at once."""
        for node in self.nodes:
            await node.stop(grace=0)


@contextlib.asynccontextmanager
async def running_cluster(
    directory: Path, regions: Sequence[Sequence[str]], *flags: str, control: bool = False
) -> AsyncIterator[tuple[BrokerCluster, Platform]]:
    """Run a cluster, and a platform with one gateway in each region. `flags` go to all gateways.

    With `control` they use the control plane's own broker account, as agents need it.
    """
    cluster = BrokerCluster(directory, regions)
    if control:
        flags += control_flags(cluster.nodes[0])
    names = sorted({region for tagged in regions for region in tagged})
    try:
        await cluster.start()
        async with running_platform(directory, gateways=0, broker=cluster.nodes[0]) as platform:
            for name in names:
                await platform.start_gateway("--region", name, "--regions", ",".join(names), *flags)
            yield cluster, platform
    finally:
        await cluster.stop()
