"""An agent as NVIDIA's behaves: HTTP to ICMS and two queues in NATS. Written from the contract alone.

Source: docs/reference/protocol.md, section 6. It shares no code with this project's agent; names are written
out, so that a change of one on our side is seen.
"""

from __future__ import annotations

import base64
import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

CREATION = "CreateNvcaFunctionTaskStream"
TERMINATION = "TerminateNvcaStream"
_FILTERS = {CREATION: "Create.NVCA.*.{}.*.*", TERMINATION: "Terminate.NVCA.{}"}
_ACK_WAITS = {CREATION: 360_000_000_000, TERMINATION: 30_000_000_000}

ONE_NODE: dict[str, Any] = {
    "name": "NCP.GPU.H100_1x",
    "value": "NCP.GPU.H100",
    "description": "NVIDIA-H100-80GB-HBM3 (hopper family) on a dgx-h100 machine",
    "default": True,
    "cpu": "8",
    "cpuCores": 8,
    "systemMemory": "64Gi",
    "gpuMemory": "79Gi",
    "gpuCount": 1,
    "cpuArch": "amd64",
    "storage": "125Gi",
    "os": "linux",
    "driverVersion": "550.90.07",
    "nodeType": "SINGLE",
    "maxInstances": 16,
    "unschedulableCapacity": 0,
}
GPUS: list[dict[str, Any]] = [
    {
        "name": "H100",
        "instanceTypes": [
            ONE_NODE,
            *(
                {**ONE_NODE, "name": f"NCP.GPU.H100_{n}x", "gpuCount": n, "maxInstances": 16 // n}
                | {"default": False}
                for n in (2, 4, 8)
            ),
            ONE_NODE | {"name": "NCP.GPU.H100_8x.x2", "gpuCount": 16, "maxInstances": 1, "nodeType": "MULTI"},
        ],
    }
]
"""Two nodes of eight GPUs, in the words of NVIDIA's agent: no capacity beside the name."""


def broker_token(credential: str, **more: str) -> str:
    """Return the CONNECT token with a credential."""
    members = {"account": "APP", "pluginName": "oidc", "payload": credential, **more}
    return base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=").decode()


@dataclass
class Creation:
    """A creation message as the agent reads it."""

    message: Msg
    body: dict[str, Any]

    @property
    def request_id(self) -> str:
        """Id of the request."""
        return str(self.body["requestId"])

    @property
    def instance_id(self) -> str:
        """The id that the agent gives to the request's instance."""
        name = self.request_id if self.request_id.startswith("sr-") else f"sr-{self.request_id}"
        return f"0-{name}"

    @property
    def launch(self) -> dict[str, Any]:
        """The launch specification."""
        return dict(self.body["launchSpecification"])

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the instance."""
        lines = base64.b64decode(self.launch["environment"]).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)


@dataclass
class AgentPeer:
    """One cluster's agent. `credential` is a cluster key or a projected token."""

    session: aiohttp.ClientSession
    url: str
    broker: str
    cluster_id: str
    credential: str
    client: Client | None = None
    errors: list[str] = field(default_factory=list)

    # --- NATS

    async def connect(self, *, name: str | None = None, reconnect: bool = False) -> Client:
        """Connect to the broker as the cluster's queue client."""
        self.client = await nats.connect(
            self.broker,
            token=broker_token(self.credential),
            name=name or f"nvca-queue-client/{self.cluster_id}",
            allow_reconnect=reconnect,
            max_reconnect_attempts=60 if reconnect else 1,
            error_cb=self.on_error,
            connect_timeout=10,
        )
        return self.client

    async def on_error(self, error: Exception) -> None:
        """Note what the broker has refused."""
        self.errors.append(str(error))

    async def close(self) -> None:
        """Close the connection."""
        if self.client is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self.client.close()

    @property
    def nats(self) -> Client:
        """The connection."""
        assert self.client is not None, "not connected"
        return self.client

    async def create_consumer(self, stream: str, **changes: Any) -> dict[str, Any]:
        """Create the durable consumer of one stream, and return the broker's answer."""
        wanted = _FILTERS[stream].format(self.cluster_id)
        durable = f"{stream}-{self.cluster_id}"
        config = {
            "durable_name": durable,
            "description": f"Consumer for {wanted} NVCA cluster {self.cluster_id}",
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": _ACK_WAITS[stream],
            "filter_subjects": [wanted],
            "replay_policy": "instant",
            **changes,
        }
        body = {"stream_name": stream, "config": config, "action": ""}
        subject = f"$JS.API.CONSUMER.CREATE.{stream}.{durable}"
        answer = await self.nats.request(subject, json.dumps(body).encode(), timeout=10)
        return dict(json.loads(answer.data))

    async def fetch(self, stream: str, *, batch: int = 10, seconds: float = 3.0) -> list[Msg]:
        """Pull messages as nats.go does: a new inbox for each pull, until 408 or the batch is full."""
        inbox = self.nats.new_inbox()
        subscription = await self.nats.subscribe(inbox)
        try:
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{stream}-{self.cluster_id}"
            pull = {"expires": int(seconds * 1e9), "batch": batch}
            await self.nats.publish(subject, json.dumps(pull).encode(), reply=inbox)
            found: list[Msg] = []
            while len(found) < batch:
                message = await subscription.next_msg(timeout=seconds + 10)
                if (message.headers or {}).get("Status") is not None:
                    break
                found.append(message)
            return found
        finally:
            await subscription.unsubscribe()

    async def creation(self, *, seconds: float = 10.0) -> Creation:
        """Pull one creation message."""
        (message,) = await self.fetch(CREATION, batch=1, seconds=seconds)
        return Creation(message, json.loads(message.data))

    async def termination(self, *, seconds: float = 10.0) -> dict[str, Any]:
        """Pull one termination message, and acknowledge it as the agent does: before anything is ended."""
        (message,) = await self.fetch(TERMINATION, batch=1, seconds=seconds)
        await self.confirm(message)
        return dict(json.loads(message.data))

    async def confirm(self, message: Msg, kind: bytes = b"+ACK") -> None:
        """Acknowledge a message, and wait until the broker has it."""
        await self.nats.request(message.reply, kind, timeout=10)

    # --- HTTP

    def headers(self, **changes: str) -> dict[str, str]:
        """Return the headers of each call."""
        return {
            "Authorization": f"Bearer {self.credential}",
            "X-Nv-Cluster-Id": self.cluster_id,
            "User-Agent": "nvca/2.50.0",
            "Accept": "application/json",
            **changes,
        }

    async def call(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Make one call; return status and JSON answer. `body` may be bytes."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {**(self.headers() if headers is None else headers), "Content-Type": "application/json"}
        async with self.session.request(method, self.url + path, data=data, headers=sent) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None

    async def register(self, **changes: Any) -> tuple[int, Any]:
        """Register as NVIDIA's agent does."""
        body = {
            "status": "READY",
            "k8sVersion": "v1.34.1",
            "gpus": GPUS,
            "allowClusterTargeting": True,
            "allowTaskClusterCreationQueues": True,
            **changes,
        }
        return await self.call("PUT", f"/v1/nvca/clusters/{self.cluster_id}/register", body)

    async def heartbeat(self, allocated: int = 0, **changes: Any) -> tuple[int, Any]:
        """Send a heartbeat with 16 GPUs."""
        usage = {"capacity": 16, "allocated": allocated, "available": 16 - allocated}
        body = {
            "status": "healthy",
            "gpuUsage": {"H100": usage},
            "clusterOwnerNcaID": "account-one",
            "nvcaOperatorVersion": "1.10.0",
            "clusterName": "h100-cluster",
            "maintenanceMode": "None",
            **changes,
        }
        return await self.call("POST", f"/v1/nvca/clusters/{self.cluster_id}/heartbeat", body)

    async def acknowledge(self, request_id: str, **changes: Any) -> tuple[int, Any]:
        """Acknowledge a request."""
        body = {"instanceCount": 1, "status": "pending-fulfillment", **changes}
        return await self.call("PUT", f"/v1/sirs/{request_id}", body)

    async def report(self, request_id: str, instance_id: str, state: str, **changes: Any) -> tuple[int, Any]:
        """Report an instance that starts or runs."""
        body = {
            "status": "fulfilled",
            "instanceState": state,
            "requestState": "active",
            "action": "RequestSpotInstances",
            "healthInfo": {},
            "instanceIps": ["", ""] if state == "starting" else ["10.0.0.1", "10.1.0.1"],
            **changes,
        }
        return await self.call("POST", f"/v1/sirs/{request_id}/{instance_id}", body)

    async def ended_by_user(self, request_id: str, instance_id: str) -> tuple[int, Any]:
        """Report a termination that was asked for; it comes while the pod may still run."""
        return await self.report(
            request_id,
            instance_id,
            "terminated",
            status="instance-terminated-by-user",
            requestState="closed",
            action="TerminateInstances",
        )

    async def ended(self, request_id: str, instance_id: str, cause: str, **changes: Any) -> tuple[int, Any]:
        """Report an instance that ended by itself, or the second report of every end."""
        said = {
            "status": "instance-terminated-by-service",
            "requestState": "closed",
            "terminationCause": cause,
            "systemFailure": cause,
            **changes,
        }
        return await self.report(request_id, instance_id, "terminated", **said)
