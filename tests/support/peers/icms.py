"""An independent control plane for agents, written from protocol.md, section 6, alone.

It keeps what agents say, answers as the contract has it, and publishes what a test orders. It shares no code
with the gateway, and knows nothing that is marked [ext].
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
from aiohttp import web
from nats.aio.client import Client

from nvcf_broker.process import free_port
from tests.support.peers.icms_broker import CREATION, STREAMS, TERMINATION, AgentBroker, AgentCallout
from tests.support.peers.nvcf_broker import ignore_error

NANOSECONDS = 1_000_000_000


@dataclass
class Call:
    """One call of an agent, and the answer that it got."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float
    status: int = 0

    @property
    def kind(self) -> str:
        """register, credentials, heartbeat, jwks, acknowledge, report, instances."""
        parts = self.path.strip("/").split("/")
        if parts[1] == "sirs":
            return "acknowledge" if len(parts) == 3 else "report"
        return parts[-1]


@dataclass
class Icms:
    """The control plane. `judge` may give a status other than 200 for a call; None: by the contract."""

    broker: AgentBroker
    identities: dict[str, set[str]] = field(default_factory=dict)
    judge: Callable[[Call], int | None] = lambda _: None
    action: str = "ACCEPTED"
    heartbeat_answer: dict[str, Any] | None = None
    """What heartbeats are answered instead of `action`."""
    calls: list[Call] = field(default_factory=list)
    listed: list[dict[str, str]] | None = None
    """What reconciliation answers; None: by the reports."""
    requests: dict[str, dict[str, Any]] = field(default_factory=dict)
    reports: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    url: str = ""
    port: int = 0
    _runner: web.AppRunner | None = None

    def add_cluster(self, cluster_id: str, identity: str) -> None:
        """Register a cluster as its administrator does."""
        self.identities.setdefault(cluster_id, set()).add(identity)

    def knows(self, cluster_id: str, identity: str) -> bool:
        """Return whether an identity is that of a cluster."""
        return identity in self.identities.get(cluster_id, set())

    # HTTP

    async def start_http(self) -> None:
        """Listen, after the first time on the same port, which no outgoing connection can have taken."""
        self.port = self.port or free_port()
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.url = f"http://127.0.0.1:{self.port}"

    async def stop_http(self) -> None:
        """Go away."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, request: web.Request) -> web.Response:
        text = await request.text()
        call = Call(
            request.method,
            request.path,
            dict(request.headers),
            json.loads(text) if text else {},
            time.time(),
        )
        self.calls.append(call)
        status, answer = self._decide(call)
        call.status = status
        return web.json_response(answer, status=status)

    def _decide(self, call: Call) -> tuple[int, dict[str, Any]]:
        cluster_id = call.headers.get("X-Nv-Cluster-Id", "")
        identity = call.headers.get("Authorization", "").removeprefix("Bearer ")
        if not self.knows(cluster_id, identity):
            return 401, {"title": "Unauthorized"}
        parts = call.path.strip("/").split("/")
        if call.kind not in ("acknowledge", "report") and cluster_id not in parts:
            return 403, {"title": "Forbidden"}
        if (forced := self.judge(call)) is not None:
            return forced, {}
        match call.kind:
            case "register":
                return 200, {"clusterId": cluster_id, "clusterGroupId": str(uuid.uuid4()), "credentials": {}}
            case "heartbeat":
                answer = self.heartbeat_answer
                return 200, {"action": self.action, "somethingNew": 1} if answer is None else answer
            case "acknowledge":
                return self._acknowledge(parts[2], call.body)
            case "report":
                return self._report(parts[2], parts[3], call.body)
            case "jwks":
                return 200, {}
            case "instances":
                return 200, {"instances": self.listed if self.listed is not None else self._known()}
        return 404, {"title": "Not Found"}

    def _acknowledge(self, request_id: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        request = self.requests.get(request_id)
        if request is None:
            return 404, {"title": "no such request"}
        if request.get("closed"):
            return 412, {"title": "closed"}
        request["acknowledged"] = body
        return 200, {}

    def _report(self, request_id: str, instance_id: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if request_id not in self.requests:
            return 404, {"title": "no such request"}
        terminated = body["instanceState"] == "terminated"
        if self.requests[request_id].get("closed") and not terminated:
            return 412, {"title": "closed"}
        self.reports.setdefault(instance_id, []).append({**body, "requestId": request_id})
        if terminated:
            self.requests[request_id]["closed"] = True
        return 200, {}

    def _known(self) -> list[dict[str, str]]:
        return [
            {
                "instanceId": instance_id,
                "requestId": reports[-1]["requestId"],
                "instanceState": reports[-1]["instanceState"],
            }
            for instance_id, reports in self.reports.items()
            if reports[-1]["instanceState"] != "terminated"
        ]

    # what a test asks

    def of_kind(self, kind: str, part: str = "") -> list[Call]:
        """Return the calls of one kind; `part` is in their path."""
        return [call for call in self.calls if call.kind == kind and part in call.path]

    def states(self, instance_id: str) -> list[str]:
        """Return the states of an instance in the order of their reports, without repetitions."""
        found: list[str] = []
        for report in self.reports.get(instance_id, []):
            if not found or found[-1] != report["instanceState"]:
                found.append(report["instanceState"])
        return found

    def last(self, instance_id: str) -> dict[str, Any]:
        """Return the last report of an instance; empty without one."""
        return (self.reports.get(instance_id) or [{}])[-1]

    # queues

    async def connect(self) -> None:
        """Connect to the broker and create the streams."""
        self.client: Client = await nats.connect(
            self.broker.service_url,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.05,
            error_cb=ignore_error,
        )
        await self.create_streams()

    async def create_streams(self, storage: str = "file", first_sequence: int = 1) -> None:
        """Create the two streams of protocol.md, section 6.2."""
        for name, subjects in STREAMS.items():
            config = {
                "name": name,
                "subjects": [subjects],
                "retention": "workqueue",
                "storage": storage,
                "discard": "old",
                "max_msgs": 1_000_000,
                "max_age": 96 * 3600 * NANOSECONDS,
                "first_seq": first_sequence,
            }
            await self.api(f"STREAM.CREATE.{name}", config)

    async def api(self, name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Make a request to JetStream."""
        reply = await self.client.request(f"$JS.API.{name}", json.dumps(body or {}).encode(), timeout=10)
        answer: dict[str, Any] = json.loads(reply.data)
        return answer

    async def create_consumer(self, stream: str, cluster_id: str) -> None:
        """Create an agent's consumer, as the control plane does."""
        creation = stream == CREATION
        wanted = f"Create.NVCA.*.{cluster_id}.*.*" if creation else f"Terminate.NVCA.{cluster_id}"
        name = f"{stream}-{cluster_id}"
        config = {
            "durable_name": name,
            "description": f"Consumer for {wanted} NVCA cluster {cluster_id}",
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": (360 if creation else 30) * NANOSECONDS,
            "max_deliver": -1,
            "filter_subjects": [wanted],
            "replay_policy": "instant",
        }
        await self.api(f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})

    async def publish(self, subject: str, message: dict[str, Any] | bytes) -> None:
        """Put a message into its queue."""
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        answer = json.loads((await self.client.request(subject, data, timeout=10)).data)
        assert "seq" in answer, answer

    async def create(self, cluster_id: str, message: dict[str, Any]) -> None:
        """Publish a creation message."""
        self.requests.setdefault(message["requestId"], {"message": message})
        kind = "Task" if message["action"].endswith("ForTask") else "Function"
        gpu = message["launchSpecification"]["gpuName"].replace(".", "|")
        value = message["instanceTypeValue"].replace(".", "|")
        await self.publish(f"Create.NVCA.{kind}.{cluster_id}.{gpu}.{value}", message)

    async def terminate(self, cluster_id: str, request_id: str, *instance_ids: str) -> None:
        """Publish a termination message."""
        message = {
            "requestId": request_id,
            "ncaId": "account",
            "action": "TerminateInstances",
            "instanceIds": list(instance_ids),
            "availabilityZone": "a-cluster",
        }
        await self.publish(f"Terminate.NVCA.{cluster_id}", message)

    async def waiting(self, stream: str) -> int:
        """Return how many messages of a stream are not acknowledged yet."""
        return int((await self.api(f"STREAM.INFO.{stream}"))["state"]["messages"])

    async def consumer(self, stream: str, cluster_id: str) -> dict[str, Any]:
        """Return the state of an agent's consumer."""
        return await self.api(f"CONSUMER.INFO.{stream}.{stream}-{cluster_id}")


def environment(variables: Iterable[tuple[str, str]]) -> str:
    """Return `launchSpecification.environment`."""
    return base64.b64encode("\n".join(f"{name}={value}" for name, value in variables).encode()).decode()


@contextlib.asynccontextmanager
async def running_icms(folder: Path) -> AsyncIterator[tuple[Icms, AgentCallout]]:
    """Run a broker with its callout, and a control plane."""
    broker = AgentBroker(folder / "broker")
    await asyncio.to_thread(broker.start)
    icms = Icms(broker)
    callout = AgentCallout(broker, icms.knows)
    try:
        await callout.start()
        await icms.connect()
        await icms.start_http()
        yield icms, callout
    finally:
        await icms.stop_http()
        for close in (icms.client.close, callout.stop):
            with contextlib.suppress(Exception):
                await close()
        await asyncio.to_thread(broker.kill)


__all__ = ["CREATION", "TERMINATION", "Call", "Icms", "environment", "running_icms"]
