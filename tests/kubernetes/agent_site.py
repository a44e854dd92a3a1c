"""Agents of a Kubernetes cluster as processes, with a real broker and an independent control plane."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvcf_proto.ids import new_id
from tests.kubernetes.cluster.client import Client, Object
from tests.support.peers.icms import running_icms
from tests.support.platform.agent_site import CLUSTER, KEY, Function, Ordered, Site
from tests.support.waiting import eventually

IMAGE = "function:1"
CPU_TYPE = "NCP.CPU_1x"
WORKER_IMAGE = "worker:1"
REQUESTS = "/apis/nvca.nvcf.nvidia.io/v2beta1/namespaces/{}/icmsrequests"


@dataclass
class KubeSite(Site):
    """The services around agents of one cluster. `namespace` has everything of one test."""

    kubeconfig: Path = Path()
    namespace: str = ""
    cpu_slots: int = 0

    @property
    def kube(self) -> Client:
        return Client(self.kubeconfig)

    def command(self, *extra: str, data: Path | None = None, cluster: str = CLUSTER) -> list[str]:
        key = self.folder / f"{cluster}.key"
        if not key.exists():
            key.write_text(f"{KEY}-{cluster}\n")
        self.icms.add_cluster(cluster, f"{KEY}-{cluster}")
        command = [sys.executable, "-m", "nvcf_agent", "--backend", "kubernetes"]
        command += ["--icms", self.icms.url, "--nats", self.icms.broker.address, "--cluster-id", cluster]
        if "--token-file" not in extra:
            command += ["--key-file", str(key)]
        if "--kubeconfig" not in extra:
            command += ["--kubeconfig", str(self.kubeconfig)]
        command += ["--system-namespace", self.namespace, "--requests-namespace", self.namespace]
        command += ["--data", str(data or self.data), "--time-scale", str(self.time_scale)]
        command += ["--heartbeat", "0.5", "--worker-image", WORKER_IMAGE, "--cpu-slots", str(self.cpu_slots)]
        return [*command, *extra]

    def living(self) -> int:
        return len(self.pods())

    def version(self, script: str = "", **_: Any) -> Function:
        """Return a function version for the tests of the contract: what it does is of no account."""
        return self.function()

    def order(self, function: Function, **changes: Any) -> Ordered:
        wanted = {"type_name": CPU_TYPE, "type_value": "NCP.CPU", **changes}
        ordered = super().order(function, **wanted)
        ordered.message["launchSpecification"].pop("process", None)
        return ordered

    def function(self, **extra: Any) -> Function:
        """Return a function version that is a container image."""
        return Function(
            new_id(), new_id(), {}, extra={"containerImage": IMAGE, "workerMode": "sidecar", **extra}
        )

    def gpu_order(self, size: int = 1, function: Function | None = None, **changes: Any) -> Ordered:
        """Return a request for an instance with H100 GPUs."""
        name, value = f"NCP.GPU.H100_{size}x", "NCP.GPU.H100"
        whole = {"gpu": "H100", "type_name": name, "type_value": value, "gpus": size, **changes}
        return self.order(function or self.function(), **whole)

    async def gpu_instance(self, size: int = 1, **changes: Any) -> Ordered:
        ordered = self.gpu_order(size, **changes)
        await self.send(ordered)
        return ordered

    def task_order(self) -> Ordered:
        """Return a request for a task with one GPU."""
        launch = {"terminationGracePeriodDuration": "PT2M", "resultHandlingStrategy": "NONE"}
        ordered = self.gpu_order(launch={**launch, "workerMode": None})
        del ordered.message["functionDetails"]
        ordered.message["taskDetails"] = {"taskId": new_id()}
        ordered.message["action"] = "RequestSpotInstancesForTask"
        return ordered

    def write_containers(self, ordered: Ordered, *statuses: Object, **more: Any) -> None:
        """Write what a node says of an instance's containers."""
        about = {"image": "x", "imageID": "x", "restartCount": 0}
        body = {"status": {"containerStatuses": [{**about, **each} for each in statuses], **more}}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{ordered.id}/status"
        self.kube.patch(path, body)

    def left(self) -> list[str]:
        """Return the names of what instances have in the cluster: pods, Secrets, ConfigMaps."""
        kinds = ("pods", "secrets", "configmaps")
        selector = "app.kubernetes.io/managed-by=nvcf-agent,app.kubernetes.io/component=function-instance"
        listed = (
            self.kube.get(f"/api/v1/namespaces/{self.namespace}/{kind}?labelSelector={selector}")["items"]
            for kind in kinds
        )
        return [each["metadata"]["name"] for items in listed for each in items]

    def pods(self) -> list[Object]:
        found: list[Object] = self.kube.get(f"/api/v1/namespaces/{self.namespace}/pods")["items"]
        return found

    def pod(self, ordered: Ordered) -> Object | None:
        found: Object | None = self.kube.find(f"/api/v1/namespaces/{self.namespace}/pods/{ordered.id}")
        return found

    def request(self, ordered: Ordered) -> Object | None:
        path = f"{REQUESTS.format(self.namespace)}/sr-{ordered.request_id}"
        found: Object | None = self.kube.find(path)
        return found

    async def seen_in_cluster(self, what: str, find: Callable[[], Any]) -> Any:
        """Wait until something is found in the cluster, and return it."""
        await eventually(find, what, story=lambda: self.log()[-3000:])
        return find()


@contextlib.asynccontextmanager
async def kube_site(folder: Path, kubeconfig: Path, namespace: str) -> AsyncIterator[KubeSite]:
    """Run a broker and a control plane. The test starts the agents."""
    async with running_icms(folder) as (icms, callout):
        site = KubeSite(folder, icms, callout, kubeconfig=kubeconfig, namespace=namespace)
        try:
            yield site
        finally:
            for agent in site.agents:
                if agent.returncode is None:
                    agent.kill()
                    await agent.wait()
            for request in site.kube.get(REQUESTS.format(namespace))["items"]:
                # No agent is left to let it go.
                path = f"{REQUESTS.format(namespace)}/{request['metadata']['name']}"
                site.kube.patch(path, {"metadata": {"finalizers": None}})
