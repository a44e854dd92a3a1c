"""The processes of a chaos run, each with a supervisor that restarts it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from nvcf_broker.errors import BrokerError
from nvcf_broker.process import RestartPolicy, free_port
from nvcf_broker.server import LocalBroker
from nvcf_proto.ids import new_id
from tests.chaos.patience import ACK_WAIT
from tests.chaos.plan import Event, Harm
from tests.chaos.relay import Relay
from tests.support.platform.broker_cluster import BrokerCluster
from tests.support.platform.gateways import Platform, Version, running_platform
from tests.support.platform.processes import Child
from tests.support.platform.small_disk import SmallDisk, can_make_disks
from tests.support.waiting import eventually

FUNCTION = Path(__file__).parents[1] / "functions" / "executions.py"
CONCURRENCY = 8
# Seconds between two faults of broker nodes. A node that is back still catches up, and two of three
# nodes must always be available.
NODE_REST = 8.0
DISK_BYTES = 4 * 1024**3
"""Disk of one node; at a quota of kept answers, callers would only be refused."""


@dataclass
class Member:
    """One supervised process."""

    name: str
    begin: Callable[[], Awaitable[Child]]
    """Starts the process."""
    child: Child | None = None
    restarts: int = 0

    async def supervise(self) -> None:
        """Start the process, and restart it whenever it ends."""
        policy, failures = RestartPolicy(initial=0.2, maximum=2.0, stable_after=5.0), 0
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                self.child = await self.begin()
                await self.child.process.wait()
            except (AssertionError, OSError, TimeoutError, aiohttp.ClientError):
                # It did not start, because something that it needs is unavailable at the moment.
                pass
            failures = policy.failures_after(failures, loop.time() - began)
            self.restarts += 1
            await asyncio.sleep(policy.delay(failures))

    def send(self, number: signal.Signals) -> bool:
        """Send a signal. Returns False if the process does not run."""
        if self.child is None or not self.child.running:
            return False
        self.child.kill(number)
        return True


@dataclass
class SupervisedPlatform:
    """The processes of a run, and the faults injected so far."""

    platform: Platform
    nodes: list[LocalBroker]
    relays: list[Relay]
    notes: Path
    version: Version
    gateways: list[Member]
    gateway_urls: list[str]
    workers: list[Member]
    done: Counter[Harm] = field(default_factory=Counter)
    history: list[str] = field(default_factory=list)
    """The faults with their Unix times."""
    disk: SmallDisk | None = None
    """The file system of all nodes; None where none can be made."""
    _node_free_at: float = 0.0

    async def harm(self, event: Event) -> None:
        """Inject a fault. Undo it after its pause if it has one."""
        members = {
            Harm.KILL_GATEWAY: self.gateways, Harm.STOP_GATEWAY: self.gateways,
            Harm.KILL_WORKER: self.workers, Harm.STOP_WORKER: self.workers,
        }.get(event.harm)  # fmt: skip
        if members is None:
            await self._harm_node(event)
            return
        member = members[int(event.victim * len(members))]
        if event.pause:
            if member.send(signal.SIGSTOP):
                self._count(event, member.name)
                await asyncio.sleep(event.pause)
                member.send(signal.SIGCONT)
        elif member.send(signal.SIGKILL):
            self._count(event, member.name)

    def _count(self, event: Event, victim: str) -> None:
        self.done[event.harm] += 1
        pause = f" for {event.pause:.1f} s" if event.pause else ""
        self.history.append(f"{time.time():.3f} {event.harm}: {victim}{pause}")

    async def _harm_node(self, event: Event) -> None:
        loop = asyncio.get_running_loop()
        number = int(event.victim * len(self.nodes))
        node = self.nodes[number]
        if event.harm is Harm.CUT_BROKER:
            self._count(event, f"broker {number}")
            self.relays[number].cut()
            return
        if loop.time() < self._node_free_at:
            return
        if event.harm is Harm.FILL_DISK and self.disk is None:
            return
        restarts = len(self.nodes) if event.harm is Harm.FILL_DISK else 1
        self._node_free_at = loop.time() + event.pause + NODE_REST * restarts
        self._count(event, f"broker {number}")
        if event.harm is Harm.FILL_DISK:
            await self._fill_disk(event.pause)
            return
        if event.harm is Harm.STOP_BROKER:
            assert node._process is not None
            node._process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(event.pause)
            node._process.send_signal(signal.SIGCONT)
            return
        if event.harm is Harm.KILL_BOTH:
            for gateway in self.gateways:
                gateway.send(signal.SIGKILL)
        if event.harm is Harm.RESTART_BROKER:
            await node.stop()
        else:
            await node.kill()
        with contextlib.suppress(BrokerError):
            await node.start(timeout=30)

    async def _fill_disk(self, pause: float) -> None:
        """Fill the nodes' disk and free it again. A node keeps its write error until it is restarted."""
        assert self.disk is not None
        await asyncio.to_thread(self.disk.fill)
        await asyncio.sleep(pause)
        await asyncio.to_thread(self.disk.free)
        for number, node in enumerate(self.nodes):
            if number:
                await asyncio.sleep(NODE_REST)
            await node.stop()
            with contextlib.suppress(BrokerError):
                await node.start(timeout=30)

    def resume(self) -> None:
        """Continue all stopped processes."""
        for member in (*self.gateways, *self.workers):
            member.send(signal.SIGCONT)


@contextlib.asynccontextmanager
async def running_supervised(
    directory: Path, *, nodes: int = 3, gateways: int = 2, workers: int = 3
) -> AsyncIterator[SupervisedPlatform]:
    """Run broker nodes behind relays, gateways and workers."""
    with contextlib.ExitStack() as stack:
        disk = None
        if can_make_disks():
            disk = stack.enter_context(SmallDisk(directory, nodes * DISK_BYTES))
        place = directory if disk is None else disk.path
        async with _running(directory, place, nodes, gateways, workers) as supervised:
            supervised.disk = disk
            yield supervised


@contextlib.asynccontextmanager
async def _running(
    directory: Path, place: Path, nodes: int, gateways: int, workers: int
) -> AsyncIterator[SupervisedPlatform]:
    cluster = BrokerCluster(place, [("local",)] * nodes, advertise=False)
    brokers: list[LocalBroker] = list(cluster.nodes)
    relays = [Relay(urlsplit(node.own_url).port or 0) for node in cluster.nodes]
    supervisors: list[asyncio.Task[None]] = []
    try:
        await cluster.start()
        for relay in relays:
            await relay.start()
        async with running_platform(directory, gateways=0, broker=cluster.nodes[0]) as platform:
            through = ",".join(f"nats://127.0.0.1:{relay.port}" for relay in relays)
            gateway_members, urls = _gateways(platform, gateways, through, replicas=nodes)
            supervisors += [asyncio.create_task(member.supervise()) for member in gateway_members]
            await _all_run(gateway_members)
            version = await platform.deployed_version()
            notes = directory / "notes"
            notes.touch()
            worker_members = _workers(platform, version, workers, through, notes)
            supervisors += [asyncio.create_task(member.supervise()) for member in worker_members]
            await _all_run(worker_members)
            yield SupervisedPlatform(
                platform, brokers, relays, notes, version, gateway_members, urls, worker_members
            )
            await _cancel(supervisors)
    finally:
        await _cancel(supervisors)
        for relay in relays:
            await relay.stop()
        await cluster.stop()


def _gateways(platform: Platform, count: int, nats: str, *, replicas: int) -> tuple[list[Member], list[str]]:
    members, urls = [], []
    for number in range(count):
        http, grpc = free_port(), free_port()
        flags = (
            "--http", f"127.0.0.1:{http}", "--grpc", f"127.0.0.1:{grpc}", "--nats", nats,
            "--replicas", str(replicas), "--ack-wait", str(ACK_WAIT), "--quota", f"kept-bytes={DISK_BYTES}",
        )  # fmt: skip

        async def begin(flags: tuple[str, ...] = flags) -> Child:
            gateway = await platform.start_gateway(*flags)
            # Its address stays the same after a restart, so a second entry adds nothing.
            if any(known.url == gateway.url for known in platform.gateways[:-1]):
                platform.gateways.pop()
            return gateway.child

        members.append(Member(f"gateway {number}", begin))
        urls.append(f"http://127.0.0.1:{http}")
    return members, urls


def _workers(platform: Platform, version: Version, count: int, nats: str, notes: Path) -> list[Member]:
    members = []
    for number in range(count):
        instance = new_id()

        async def begin(number: int = number, instance: str = instance) -> Child:
            return await platform.start_worker(
                version,
                FUNCTION,
                "once",
                concurrency=CONCURRENCY,
                instance_id=instance,
                gateway=platform.gateways[number % len(platform.gateways)],
                environment={"NOTES": str(notes), "NVCF_FQDN_NATS": nats},
            )

        members.append(Member(f"worker {number}", begin))
    return members


async def _all_run(members: list[Member]) -> None:
    await eventually(lambda: all(member.child is not None for member in members), "all processes run")


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    tasks.clear()
