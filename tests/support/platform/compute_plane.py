"""A whole compute plane: broker, gateway, autoscalers and one agent process per cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from nvcf_broker.connection import BrokerClient, connect_broker
from nvcf_broker.kv import KvMirror
from nvcf_broker.server import LocalBroker
from nvcf_proto.compute import CLUSTERS_BUCKET, EVENTS_SUBJECTS, Cluster, Event
from nvcf_proto.icms.messages import CreationMessage
from nvcf_proto.icms.names import CREATION_SUBJECTS, TERMINATION_SUBJECTS
from nvcf_proto.models import INSTANCES_BUCKET, Instance, InstanceState
from tests.support.platform.gateways import Platform, Version, control_flags, running_platform
from tests.support.platform.processes import Child, python, start
from tests.support.waiting import WAIT, eventually

OVER = (InstanceState.COMPLETED, InstanceState.FAILED)

# Responds after SECONDS with its own process id. It is ready after START seconds.
FUNCTION = """
import asyncio, os, time
from nvcf_worker import Request
time.sleep(float(os.environ.get("START", "0")))
async def handler(request: Request):
    body = await request.json()
    await asyncio.sleep(float(os.environ.get("SECONDS", "0.01")))
    return {"id": body["id"], "pid": os.getpid(), "instance": os.environ["INSTANCE_ID"]}
"""


@dataclass(frozen=True)
class Answer:
    """The response to one call, and the seconds until it came."""

    status: int
    body: dict[str, Any]
    seconds: float
    polls: int


@dataclass(frozen=True)
class Creation:
    """A creation message, when it was published, and for which cluster."""

    at: float
    message: CreationMessage
    cluster_id: str


@dataclass
class Plane:
    """The processes, records and messages of one test."""

    platform: Platform
    client: BrokerClient
    instances: KvMirror[Instance]
    clusters: KvMirror[Cluster]
    autoscalers: list[Child] = field(default_factory=list)
    agents: dict[str, Child] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    creations: list[Creation] = field(default_factory=list)
    terminations: list[bytes] = field(default_factory=list)

    # --- processes

    async def start_autoscaler(self, *flags: str) -> Child:
        """Start one more replica."""
        broker = self.platform.broker
        command = python(
            "-m", "nvcf_autoscaler", "--nats", broker.url,
            "--nats-credentials", str(broker.credentials_file), *control_flags(broker),
            "--log-level", "DEBUG", *flags,
        )  # fmt: skip
        log = self.platform.directory / f"autoscaler-{len(self.autoscalers)}.log"
        child = await start(command, log=log)
        self.autoscalers.append(child)
        self.platform.children.append(child)
        await child.first_line()
        return child

    async def start_agent(self, cluster: str = "local", *flags: str, region: str = "local") -> Child:
        """Register a cluster if that has not been done, and start its agent."""
        directory = self.platform.directory
        await self.platform.register_cluster(cluster, region=region)
        command = [*self.platform.agent_command(cluster, directory / f"agent-{cluster}"), *flags]
        child = await start(command, log=directory / f"agent-{cluster}.log")
        self.agents[cluster] = child
        self.platform.children.append(child)
        await child.first_line()
        return child

    async def publish_again(self, creation: Creation) -> None:
        """Publish a creation message once more, without the id by which the broker would know it."""
        subject = creation.message.subject(creation.cluster_id)
        await self.client.jetstream().publish(subject, creation.message.to_json())

    async def kill_cluster(self, cluster: str) -> None:
        """Kill agent and workers of a cluster at once, with SIGKILL."""
        if not self.agents[cluster].running:
            return
        agent = psutil.Process(self.agents[cluster].pid)
        family = [agent, *agent.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGKILL)
        await self.agents[cluster].wait()

    # --- functions

    async def deploy(
        self,
        *specifications: dict[str, Any],
        source: str = FUNCTION,
        scaling: dict[str, Any] | None = None,
        beside: Version | None = None,
        fields: dict[str, Any] | None = None,
        **environment: str,
    ) -> Version:
        """Deploy a version of a new function, or a further version of the function of `beside`.

        `fields` are further members of the version.
        """
        file = self.platform.directory / f"function-{time.monotonic_ns()}.py"
        file.write_text(source)
        process = {
            "python": sys.executable,
            "file": str(file),
            "handler": "handler",
            "workingDirectory": str(self.platform.directory),
            "environment": {"PATH": os.environ["PATH"], **environment},
        }
        body = {"process": process} if beside else {"name": f"f-{file.stem[-8:]}", "process": process}
        body |= fields or {}
        path = f"/v2/nvcf/functions/{beside.function_id}/versions" if beside else "/v2/nvcf/functions"
        function = (await self.platform.call("POST", path, body))["function"]
        version = Version(function["id"], function["versionId"])
        await self.redeploy(version, *specifications, scaling=scaling, method="POST")
        return version

    async def redeploy(
        self,
        version: Version,
        *specifications: dict[str, Any],
        scaling: dict[str, Any] | None = None,
        method: str = "PUT",
    ) -> None:
        """Deploy, or change the deployment in place."""
        body: dict[str, Any] = {"deploymentSpecifications": list(specifications or ({},))}
        if scaling is not None:
            body["scaling"] = scaling
        await self.platform.call(method, deployment_path(version), body)

    async def undeploy(self, version: Version) -> None:
        """Remove the deployment."""
        await self.platform.call("DELETE", deployment_path(version))

    async def ask(
        self, version: Version, number: int = 0, *, poll_seconds: int = 60, any_version: bool = False
    ) -> Answer:
        """Make a call and poll until its response comes, from that version or any of its function."""
        platform, started = self.platform, time.monotonic()
        headers = {**platform.authorization(), "NVCF-POLL-SECONDS": str(poll_seconds)}
        path = f"/v2/nvcf/pexec/functions/{version.function_id}" if any_version else version.pexec
        url, method, body = platform.gateway.url + path, "POST", json.dumps({"id": number})
        polls = 0
        async with asyncio.timeout(WAIT * 2):
            while True:
                async with platform.session.request(
                    method, url, data=body if method == "POST" else None, headers=headers
                ) as response:
                    text = await response.read()
                    if response.status != 202:
                        document = json.loads(text) if text else {}
                        return Answer(response.status, document, time.monotonic() - started, polls)
                    request_id = response.headers["NVCF-REQID"]
                polls += 1
                url, method = f"{platform.gateway.url}/v2/nvcf/pexec/status/{request_id}", "GET"

    # --- state

    def place(self, instance: Instance) -> str:
        """Return the name of an instance's cluster."""
        return self.name_of(instance.cluster_id)

    def name_of(self, cluster_id: str) -> str:
        """Return the name of a cluster."""
        return next(name for name, each in self.platform.cluster_ids.items() if each == cluster_id)

    def ordered(self) -> dict[str, str]:
        """Return the names of the clusters by the requests ordered there. An order may be published twice."""
        return {each.message.request_id: self.name_of(each.cluster_id) for each in self.creations}

    def places(self, instances: Iterable[Instance]) -> set[str]:
        """Return the names of the clusters of some instances."""
        return {self.place(each) for each in instances}

    def of(self, version: Version) -> list[Instance]:
        return [each for each in self.instances.values() if each.version_id == version.id]

    def live(self, version: Version) -> list[Instance]:
        return [each for each in self.of(version) if each.state not in OVER]

    def running(self, version: Version) -> list[Instance]:
        return [
            each
            for each in self.of(version)
            if each.state is InstanceState.RUNNING and each.draining_since is None
        ]

    def words(self) -> list[str]:
        """Return the texts of all events so far."""
        return [event.text for event in self.events]

    async def until(self, condition: Callable[[], bool], what: str, timeout: float = WAIT) -> None:
        """Wait for a condition of records or events."""
        await eventually(condition, what, timeout, story=self.story)

    def story(self) -> str:
        """Return what happened so far, for the message of a failed test."""
        records = "\n".join(
            f"  {each.id[5:13]} {each.cluster_id[:8]} {each.specification_id} {each.state} {each.reason}"
            for each in self.instances.values()
        )
        events = "\n".join(f"  {event.at:.2f} {event.text}" for event in self.events[-40:])
        logs = "\n".join(child.text()[-2500:] for child in self.autoscalers)
        return f"instances:\n{records}\nevents:\n{events}\n{logs}"


@dataclass
class Load:
    """Calls that are repeated until `stopping`. Every call must get its response."""

    answers: list[Answer] = field(default_factory=list)
    stopping: bool = False

    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers)


@contextlib.asynccontextmanager
async def load(
    plane: Plane, version: Version, callers: int = 4, pause: float = 0.02, *, any_version: bool = False
) -> AsyncIterator[Load]:
    """Make calls for the length of the context. At its end the calls in flight are completed."""
    running = Load()

    async def caller(first: int) -> None:
        number = first
        while not running.stopping:
            answer = await plane.ask(version, number, any_version=any_version)
            running.answers.append(answer)
            assert answer.status != 200 or answer.body["id"] == number
            number += callers
            await asyncio.sleep(pause)

    async with asyncio.TaskGroup() as tasks:
        for first in range(callers):
            tasks.create_task(caller(first))
        try:
            yield running
        finally:
            running.stopping = True


def deployment_path(version: Version) -> str:
    return f"/v2/nvcf/deployments/functions/{version.function_id}/versions/{version.id}"


@contextlib.asynccontextmanager
async def running_plane(
    directory: Path, *, autoscalers: int = 1, flags: tuple[str, ...] = (), gateway: tuple[str, ...] = ()
) -> AsyncIterator[Plane]:
    """Run broker, gateway and autoscalers. The test starts the agents."""
    broker = LocalBroker(directory / "broker")
    async with (
        running_platform(directory, flags=(*control_flags(broker), *gateway), broker=broker) as platform,
        running_plane_on(platform, autoscalers=autoscalers, flags=flags) as plane,
    ):
        yield plane


@contextlib.asynccontextmanager
async def running_plane_on(
    platform: Platform, *, autoscalers: int = 1, flags: tuple[str, ...] = ()
) -> AsyncIterator[Plane]:
    """Run autoscalers on a running platform, whose gateways have `control_flags`.

    The test starts the agents.
    """
    async with contextlib.AsyncExitStack() as stack:
        broker = platform.broker
        client = await connect_broker(broker.url, broker.control_credentials_file, name="test")
        stack.push_async_callback(client.close)
        instances = KvMirror(client, INSTANCES_BUCKET, Instance.from_json, Instance.to_json)
        clusters = KvMirror(client, CLUSTERS_BUCKET, Cluster.from_json, Cluster.to_json)
        ready: list[Awaitable[None]] = []
        for mirror in (instances, clusters):
            await stack.enter_async_context(mirror)
            ready.append(mirror.ready())
        await asyncio.gather(*ready)
        plane = Plane(platform, client, instances, clusters)
        await _listen(plane)
        for _ in range(autoscalers):
            await plane.start_autoscaler(*flags)
        try:
            yield plane
        finally:
            for cluster in plane.agents:
                await plane.kill_cluster(cluster)


async def _listen(plane: Plane) -> None:
    async def record_event(message: Any) -> None:
        plane.events.append(Event.from_json(message.data))

    async def created(message: Any) -> None:
        # Create.NVCA.KIND.CLUSTER.GPU.TYPE
        cluster_id = message.subject.split(".")[3]
        plane.creations.append(
            Creation(time.monotonic(), CreationMessage.from_json(message.data), cluster_id)
        )

    async def ended(message: Any) -> None:
        plane.terminations.append(message.data)

    await plane.client.subscribe(EVENTS_SUBJECTS, cb=record_event)
    await plane.client.subscribe(CREATION_SUBJECTS, cb=created)
    await plane.client.subscribe(TERMINATION_SUBJECTS, cb=ended)
    await plane.client.flush(timeout=5)


__all__ = ["FUNCTION", "WAIT", "Answer", "Load", "Plane", "load", "running_plane", "running_plane_on"]
