"""The platform installed by its charts on a real node, and calls from outside the cluster."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from nvcf_proto.ids import new_id
from tests.kubernetes.cluster.node import Node
from tests.kubernetes.real.images import REGISTRY, TAG, name
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[3]
RELEASE, NAMESPACE = "nvcf", "nvcf"
AGENT_NAMESPACE = "nvca-system"
FUNCTIONS = "nvcf-backend"
GPU, INSTANCE_TYPE = "H100", "ON-PREM.GPU.H100_1x"
HELM_WAIT = "300s"
CALL_SECONDS = 120.0
UNFINISHED = (202, 503)
"""A call with these is made again: it is at work, or a gateway has just lost its broker."""
_IMAGE = {"registry": REGISTRY, "tag": TAG}
_SMALL = {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}}
CONTROL_PLANE: dict[str, Any] = {
    "image": _IMAGE,
    "workers": {"sidecarImages": {"utils": name("nvcf-worker")}},
    "gateway": {
        "autoscaling": {"enabled": False},
        "resources": _SMALL,
        "drainSeconds": 2,
        "graceSeconds": 20,
    },
    "autoscaler": {"resources": _SMALL},
    "nats": {"image": {"repository": "nats", "tag": TAG}, "resources": _SMALL},
}
"""Values of the chart nvcf: two of everything, on one node of two cores."""
AGENT: dict[str, Any] = {
    "image": _IMAGE,
    "controlPlane": {
        "url": f"http://nvcf-gateway.{NAMESPACE}.svc.cluster.local:8080",
        "natsUrl": f"nats://nvcf-nats.{NAMESPACE}.svc.cluster.local:4222",
    },
    "cluster": {"name": "test"},
    "registration": {"adminKeySecret": "nvcf-admin-key"},
    "agent": {"resources": _SMALL},
}


@dataclass(frozen=True)
class Version:
    """A function version, and where it is called."""

    function_id: str
    id: str

    @property
    def path(self) -> str:
        """Path of its management routes after their prefix."""
        return f"functions/{self.function_id}/versions/{self.id}"


@dataclass(frozen=True)
class Answer:
    """What came back for one call of a function."""

    status: int
    body: Any
    headers: Mapping[str, str]


class Platform:
    """Both charts, installed on a node."""

    def __init__(self, node: Node, folder: Path) -> None:
        self.node = node
        self.cluster = node.cluster
        self.key = ""
        self.url = ""
        self._folder = folder

    def install_control_plane(self, values: Mapping[str, Any] = CONTROL_PLANE) -> float:
        """Install or upgrade the chart nvcf, and wait until it is ready. Returns the seconds that it took."""
        began = time.monotonic()
        self._helm(RELEASE, "nvcf", NAMESPACE, values)
        took = time.monotonic() - began
        secret = self.cluster.client.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/{RELEASE}-admin")
        self.key = base64.b64decode(secret["data"]["admin.key"]).decode()
        service = self.cluster.client.get(f"/api/v1/namespaces/{NAMESPACE}/services/{RELEASE}-gateway")
        port = self.node.forward(service["spec"]["clusterIP"], 8080)
        self.url = f"http://127.0.0.1:{port}"
        return took

    def install_agent(self, values: Mapping[str, Any] = AGENT) -> float:
        """Install or upgrade the chart nvcf-agent, and wait until it is ready. Returns the seconds."""
        client = self.cluster.client
        if client.find(f"/api/v1/namespaces/{AGENT_NAMESPACE}") is None:
            client.create("/api/v1/namespaces", {"metadata": {"name": AGENT_NAMESPACE}})
            secret = {"metadata": {"name": "nvcf-admin-key"}, "stringData": {"key": self.key}}
            client.create(f"/api/v1/namespaces/{AGENT_NAMESPACE}/secrets", secret)
        began = time.monotonic()
        self._helm("nvcf-agent", "nvcf-agent", AGENT_NAMESPACE, values)
        return time.monotonic() - began

    def _helm(self, release: str, chart: str, namespace: str, values: Mapping[str, Any]) -> None:
        file = self._folder / f"{release}.json"
        file.write_text(json.dumps(values))
        command = ["upgrade", "--install", release, str(ROOT / "charts" / chart), "--namespace", namespace]
        self.cluster.helm(
            *command, "--create-namespace", "--wait", "--timeout", HELM_WAIT, "--values", str(file)
        )

    async def call(self, method: str, path: str, body: Any = None, *, expect: int = 200) -> Any:
        """Make a management call. Fails unless it is answered with `expect`."""
        answer = await self.send(method, path, body)
        assert answer.status == expect, f"{method} {path}: {answer.status} {answer.body}"
        return answer.body

    async def create(self, function: str, **fields: Any) -> Version:
        """Create a function with one version."""
        made = (await self.call("POST", "/v2/nvcf/functions", {"name": function, **fields}))["function"]
        return Version(made["id"], made["versionId"])

    async def create_version(self, version: Version, **fields: Any) -> Version:
        """Create one more version of a function."""
        path = f"/v2/nvcf/functions/{version.function_id}/versions"
        made = (await self.call("POST", path, fields))["function"]
        return Version(made["id"], made["versionId"])

    async def deploy(self, version: Version, **specification: Any) -> None:
        """Deploy a version, from no instances by default."""
        one = {"gpu": GPU, "instanceType": INSTANCE_TYPE, "minInstances": 0, "maxInstances": 4}
        one |= specification
        path = f"/v2/nvcf/deployments/{version.path}"
        await self.call("POST", path, {"deploymentSpecifications": [one]})

    async def undeploy(self, version: Version) -> None:
        """End a version's deployment."""
        await self.call("DELETE", f"/v2/nvcf/deployments/{version.path}")

    async def delete(self, version: Version) -> None:
        """Delete a version."""
        await self.call("DELETE", f"/v2/nvcf/{version.path}", expect=204)

    async def invoke(
        self, version: Version, body: Any, *, any_version: bool = False, seconds: float = CALL_SECONDS
    ) -> Answer:
        """Call a function as its users do: repeat a call that breaks off, under one key, and poll."""
        target = f"functions/{version.function_id}" if any_version else version.path
        key, deadline = new_id(), time.monotonic() + seconds
        while True:
            try:
                answer = await self.send("POST", f"/v2/nvcf/pexec/{target}", body, {"Idempotency-Key": key})
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
                answer = None
            if answer is not None and answer.status not in UNFINISHED:
                return answer
            assert time.monotonic() < deadline, f"no answer within {seconds:g} s: {answer}"
            await asyncio.sleep(0.1)

    async def send(
        self, method: str, path: str, body: Any = None, more: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request, on a connection of its own."""
        headers = {"Authorization": f"Bearer {self.key}", **(more or {})}
        timeout = aiohttp.ClientTimeout(total=CALL_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            async with session.request(method, self.url + path, json=body, headers=headers) as response:
                text = await response.text()
                is_json = response.content_type == "application/json" and text
                return Answer(response.status, json.loads(text) if is_json else text, response.headers)

    def pods(self, namespace: str = FUNCTIONS) -> list[dict[str, Any]]:
        """Return the pods of a namespace."""
        found: list[dict[str, Any]] = self.cluster.client.get(f"/api/v1/namespaces/{namespace}/pods")["items"]
        return found

    async def ready_function_pod(self) -> str:
        """Wait for a function pod all of whose containers are ready, and return its name."""
        found: list[str] = []

        async def is_there() -> bool:
            for pod in await asyncio.to_thread(self.pods):
                statuses = pod["status"].get("containerStatuses", ())
                if statuses and all(each["ready"] for each in statuses):
                    found.append(pod["metadata"]["name"])
            return bool(found)

        await eventually(is_there, "a function pod is ready", story=self.story, interval=0.2)
        return found[0]

    async def until_ready(self) -> None:
        """Wait until all pods of the platform are ready again: nodes restart killed ones later and later."""

        async def ready() -> bool:
            for namespace in (NAMESPACE, AGENT_NAMESPACE):
                for pod in await asyncio.to_thread(self.pods, namespace):
                    states = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
                    if states.get("Ready") != "True" and pod["status"]["phase"] != "Succeeded":
                        return False
            return True

        await eventually(ready, "the platform is ready", CALL_SECONDS, story=self.story, interval=0.2)

    async def task(self, script: str, **fields: Any) -> str:
        """Submit a task that runs a script of Python, and return its id."""
        body = {
            "name": "task",
            "containerImage": name("plain-task"),
            "containerArgs": """-c 'import os; exec(os.environ["SCRIPT"])'""",
            "containerEnvironment": [{"key": "SCRIPT", "value": script}],
            "gpuSpecification": {"gpu": GPU, "instanceType": INSTANCE_TYPE},
            **fields,
        }
        return str((await self.call("POST", "/v1/nvct/tasks", body))["task"]["id"])

    async def task_is(self, task_id: str, *statuses: str) -> dict[str, Any]:
        """Wait until a task has one of these statuses, and return it."""
        found: dict[str, Any] = {}

        async def has() -> bool:
            found.update((await self.call("GET", f"/v1/nvct/tasks/{task_id}"))["task"])
            return found["status"] in statuses

        def story() -> str:
            return f"{found}\n{self.story()}"

        await eventually(has, f"the task is {statuses}", 240.0, story=story, interval=0.3)
        return found

    async def until_pods(self, count: int, timeout: float = 120.0) -> None:
        """Wait until so many function pods are there."""

        async def counted() -> bool:
            return len(await asyncio.to_thread(self.pods)) == count

        await eventually(counted, f"{count} function pods", timeout, story=self.story, interval=0.2)

    async def until_gone(self, version: Version) -> None:
        """Wait until no pod of a version is left."""

        async def gone() -> bool:
            pods = await asyncio.to_thread(self.pods)
            return not any(pod["metadata"]["labels"]["function-version-id"] == version.id for pod in pods)

        await eventually(gone, "the version's pods are gone", 120.0, story=self.story, interval=0.2)

    def nvcf(self, *arguments: str) -> str:
        """Run the `nvcf` command against the platform, and return its output."""
        environment = {**os.environ, "NVCF_URL": self.url, "NVCF_API_KEY": self.key, "COLUMNS": "300"}
        command = [sys.executable, "-m", "nvcf_cli", *arguments]
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True, timeout=CALL_SECONDS
        ).stdout

    def kill(self, namespace: str, pod: str, container: str, number: str = "SIGKILL") -> None:
        """Kill a container's first process, as the kernel or a bug would."""
        status = self.cluster.client.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")["status"]
        (found,) = (each for each in status["containerStatuses"] if each["name"] == container)
        identifier = found["containerID"].removeprefix("containerd://")
        self.node.ctr("tasks", "kill", "--signal", number, identifier)

    def pod_of(self, namespace: str, **labels: str) -> str:
        """Return the name of a running pod that has these labels."""
        selector = ",".join(f"app.kubernetes.io/{name}={value}" for name, value in labels.items())
        found = self.cluster.client.get(f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector}")
        running = (each for each in found["items"] if each["status"]["phase"] == "Running")
        return str(next(running)["metadata"]["name"])

    def story(self) -> str:
        """Return what the function pods and the agent say, for a failed test."""
        parts = [self.cluster.kubectl("get", "pods", "--all-namespaces", "--output", "wide")]
        parts.append(
            self.cluster.kubectl("get", "events", "--namespace", FUNCTIONS, "--sort-by", ".lastTimestamp")
        )
        selector = ["--selector", "app.kubernetes.io/name=nvcf-agent", "--tail", "60"]
        parts.append(self.cluster.kubectl("logs", "--namespace", AGENT_NAMESPACE, *selector))
        return "\n".join(parts)
