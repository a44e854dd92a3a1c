"""Fake nodes with GPUs, whose pods "run" as soon as they are bound. kwok plays the kubelets."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.kubernetes.cluster import programs
from tests.kubernetes.cluster.build import STAGES
from tests.kubernetes.cluster.client import ApiProblem, Object
from tests.kubernetes.cluster.clusters import Cluster, run_folder
from tests.kubernetes.cluster.gpus import H100, RESOURCE, Gpu, gpu_labels
from tests.kubernetes.cluster.processes import Processes, wait_until

NODES = "/api/v1/nodes"
FAKE = "kwok.x-k8s.io/node"
"""Annotation of the nodes that kwok plays."""
NODE_ADDRESS = "10.99.0.1"
CALLS_AT_ONCE = 16


@dataclass(frozen=True)
class Shape:
    """What one fake node has. `labels` and `resources` come on top, and win."""

    gpu: Gpu | None = H100
    gpus: int = 8
    cpu: str = "64"
    memory: str = "512Gi"
    disk: str = "1Ti"
    pods: int = 110
    labels: dict[str, str] = field(default_factory=dict)
    resources: dict[str, str] = field(default_factory=dict)
    taints: tuple[Object, ...] = ()


def node(name: str, shape: Shape) -> Object:
    """Return a fake node of a shape."""
    resources = {"cpu": shape.cpu, "memory": shape.memory, "pods": str(shape.pods)}
    resources["ephemeral-storage"] = shape.disk
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    if shape.gpu is not None:
        labels |= gpu_labels(shape.gpu, shape.gpus)
        resources[RESOURCE] = str(shape.gpus)
    resources |= shape.resources
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels | shape.labels, "annotations": {FAKE: "fake"}},
        "spec": {"taints": list(shape.taints)},
        "status": {"capacity": resources, "allocatable": resources},
    }


class FakeNodes:
    """Fake nodes in a cluster, played by one kwok process."""

    def __init__(self, program: Path, cluster: Cluster, folder: Path) -> None:
        self.cluster = cluster
        self._client = cluster.client
        self._processes = Processes(folder / "log")
        self._command = [
            str(program),
            f"--kubeconfig={cluster.kubeconfig}",
            f"--config={program.parent / STAGES}",
        ]
        self._command += [f"--manage-nodes-with-annotation-selector={FAKE}=fake", "--manage-all-nodes=false"]
        self._command += [f"--node-ip={NODE_ADDRESS}", "--server-address="]
        self._names: list[str] = []

    def start(self) -> None:
        """Start kwok."""
        self._processes.start("kwok", self._command)

    def stop(self) -> None:
        """End kwok. The nodes stay, and are lost some time later."""
        self._processes.stop()

    def add(self, count: int, shape: Shape = Shape()) -> list[str]:
        """Add nodes, and wait until they are ready. Returns their names."""
        prefix = f"fake-{secrets.token_hex(3)}"
        names = [f"{prefix}-{index}" for index in range(count)]
        with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
            list(pool.map(lambda name: self._client.create(NODES, node(name, shape)), names))
        self._names += names
        what = f"{count} fake nodes are ready"
        wait_until(lambda: self._ready() >= set(names), what, check=self._processes.check)
        return names

    def remove(self, names: list[str] | None = None) -> None:
        """Remove nodes, by default all that were added, with the pods that are bound to them."""
        gone = list(self._names) if names is None else names
        for name in gone:
            pods = self._client.get(f"/api/v1/pods?fieldSelector=spec.nodeName={name}")["items"]
            for pod in pods:
                with contextlib.suppress(ApiProblem):
                    self._client.delete_now(pod)
            self._client.delete(f"{NODES}/{name}")
            self._names.remove(name)

    def _ready(self) -> set[str]:
        return {each["metadata"]["name"] for each in self._client.get(NODES)["items"] if is_ready(each)}


@contextlib.contextmanager
def fake_nodes(cluster: Cluster, failed: Callable[[], bool] = bool) -> Iterator[FakeNodes]:
    """Run kwok beside a cluster, for fake nodes. They are removed at the end."""
    program = programs.find(programs.KWOK)["kwok"]
    with run_folder("kwok", failed) as folder:
        nodes = FakeNodes(program, cluster, folder)
        nodes.start()
        try:
            yield nodes
            nodes.remove()
        finally:
            nodes.stop()


def is_ready(node: Object) -> bool:
    """Return whether a node has the condition Ready."""
    conditions = node["status"].get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
