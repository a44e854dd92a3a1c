"""The test cluster's real node: pods run as they do elsewhere."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.cluster import image_contents
from tests.kubernetes.cluster.client import Object
from tests.kubernetes.cluster.images import Image, write_archive, write_layer
from tests.kubernetes.cluster.node import Node
from tests.kubernetes.cluster.processes import wait_until

BUSYBOX = "registry.local/busybox:1"
POD_SECONDS = 90.0
RESTRICTED = {
    "runAsNonRoot": True,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
Start = Callable[..., str]


def pod(name: str, script: str, **container: Any) -> Object:
    """Return a pod that runs a shell script."""
    command = ["/bin/busybox", "sh", "-c", script]
    containers = [{"name": "main", "image": BUSYBOX, "command": command, **container}]
    spec = {"containers": containers, "restartPolicy": "Never", "terminationGracePeriodSeconds": 20}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": spec,
    }


@pytest.fixture
def start(node: Node, namespace: str) -> Start:
    """Create a pod, and wait for one of its phases. Returns its path."""
    client, pods = node.cluster.client, f"/api/v1/namespaces/{namespace}/pods"
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    wait_until(lambda: client.find(account), "the controllers make the namespace's account")

    def run(body: Object, phase: str) -> str:
        client.create(pods, body)
        path = f"{pods}/{body['metadata']['name']}"
        wait_until(
            lambda: client.get(path)["status"].get("phase") == phase, f"the pod is {phase}", POD_SECONDS
        )
        return path

    return run


def terminated(node: Node, path: str) -> Object:
    """Return how the pod's container ended."""
    (status,) = node.cluster.client.get(path)["status"]["containerStatuses"]
    found: Object = status["state"]["terminated"]
    return found


def test_a_pod_reaches_the_api_server_by_name_with_its_token(node: Node, start: Start) -> None:
    script = """
        folder=/var/run/secrets/kubernetes.io/serviceaccount
        busybox nslookup kubernetes.default.svc.cluster.local || exit 1
        token=$(busybox cat $folder/token)
        [ -n "$token" ] && busybox nc -w 5 kubernetes.default 443 < /dev/null
    """
    path = start(pod("client", script.replace("busybox", "/bin/busybox")), "Succeeded")
    assert "10.96.0.1" in node.cluster.client.get(f"{path}/log")


def test_sigterm_gives_a_pod_its_grace(node: Node, start: Start) -> None:
    script = (
        'trap "echo draining; sleep 1; echo drained; exit 0" TERM; echo ready; while true; do sleep 0.1; done'
    )
    path = start(pod("drains", script.replace("sleep", "/bin/busybox sleep")), "Running")
    client = node.cluster.client
    wait_until(lambda: "ready" in client.get(f"{path}/log"), "the trap is set")
    client.patch(path, {"metadata": {"finalizers": ["testbed.example.com/read-me"]}})
    client.delete(path)
    wait_until(
        lambda: client.get(path)["status"]["phase"] == "Succeeded", "the pod ends by itself", POD_SECONDS
    )
    assert terminated(node, path)["exitCode"] == 0
    client.patch(path, {"metadata": {"finalizers": None}})


def test_a_container_over_its_memory_limit_is_oom_killed(node: Node, start: Start) -> None:
    hungry = "a=x; while true; do a=$a$a; done"
    path = start(pod("oom", hungry, resources={"limits": {"memory": "32Mi"}}), "Failed")
    assert terminated(node, path)["reason"] == "OOMKilled"


def test_a_crashing_container_is_started_again(node: Node, start: Start) -> None:
    body = pod("crashes", "exit 3")
    body["spec"]["restartPolicy"] = "Always"
    path = start(body, "Running")

    def waits() -> bool:
        (status,) = node.cluster.client.get(path)["status"]["containerStatuses"]
        return bool(status["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff")

    wait_until(waits, "the container is backed off", POD_SECONDS)


def test_gpus_come_from_the_device_plugin(node: Node, start: Start) -> None:
    script = "echo $NVIDIA_VISIBLE_DEVICES"
    path = start(pod("gpu", script, resources={"limits": {"nvidia.com/gpu": "2"}}), "Succeeded")
    devices = node.cluster.client.get(f"{path}/log").strip().split(",")
    assert len(set(devices)) == 2
    assert all(device.startswith("GPU-") for device in devices)


def test_a_service_is_reached_from_the_machine(node: Node, start: Start, namespace: str) -> None:
    script = "mkdir /tmp/web; echo hello > /tmp/web/index.html; /bin/busybox httpd -f -p 8080 -h /tmp/web"
    start(pod("web", script.replace("mkdir", "/bin/busybox mkdir")), "Running")
    ports = [{"port": 80, "targetPort": 8080}]
    body = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}}
    service = node.cluster.client.create(f"/api/v1/namespaces/{namespace}/services", body)
    port = node.forward(service["spec"]["clusterIP"], 80)

    def answers() -> bool:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5) as answer,
        ):
            return bool(answer.read() == b"hello\n")
        return False

    wait_until(answers, "the pod answers behind its service", POD_SECONDS)


def test_a_claim_gets_a_volume_that_any_user_may_write_to(node: Node, start: Start, namespace: str) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    node.cluster.client.create(claims, {"metadata": {"name": "data"}, "spec": spec})
    body = pod("writer", "echo kept > /data/file", volumeMounts=[{"name": "data", "mountPath": "/data"}])
    body["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    body["spec"]["securityContext"] = {"runAsUser": 1000, "runAsNonRoot": True}
    start(body, "Succeeded")
    assert any(file.read_text() == "kept\n" for file in node.folder.glob("volumes/*/file"))


def test_images_of_the_node_are_listed_by_the_kubelet(node: Node) -> None:
    status = node.cluster.client.get(f"/api/v1/nodes/{node.name}")["status"]
    names = [name for image in status["images"] for name in image["names"]]
    assert BUSYBOX in names, json.dumps(names)


def test_an_image_of_this_tree_runs_without_root_and_without_writing(
    node: Node, start: Start, tmp_path: Path
) -> None:
    files = {**image_contents.system(), **image_contents.python(), **image_contents.packages()}
    code = image_contents.project("worker_runtime/nvcf_worker", "proto/nvcf_proto", "broker/nvcf_broker")
    layers = [write_layer(tmp_path / "base", files), write_layer(tmp_path / "code", code)]
    environment = image_contents.python_environment()
    image = Image("registry.local/worker:test", layers, environment=environment, user="65534")
    write_archive(tmp_path / "worker.tar", [image])
    node.add_images(tmp_path / "worker.tar")
    body = pod("worker", "", image=image.name, securityContext=RESTRICTED)
    body["spec"]["containers"][0]["command"] = [
        "python3",
        "-c",
        "import nvcf_worker; print(nvcf_worker.__name__)",
    ]
    path = start(body, "Succeeded")
    assert node.cluster.client.get(f"{path}/log") == "nvcf_worker\n"
