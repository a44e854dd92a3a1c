"""Pods of functions on a real node: what containers find, how they end, and how failures are named.

The programs in them stand for functions and workers (`function_program`); the init container is the real one.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.kinds import POD
from nvcf_agent.kubernetes.pods.observe import Limits
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_agent.kubernetes.secret_objects import SecretObjects, of_pods
from nvcf_agent.secrets import InstanceSecrets
from nvcf_agent.state import inventory
from nvcf_agent.state.events import Ended, Progress, Ready
from nvcf_agent.state.managed_instance import Category
from nvcf_proto.icms.causes import Cause
from tests.kubernetes import function_program
from tests.kubernetes.cluster import image_contents
from tests.kubernetes.cluster.images import Image, write_archive, write_layer
from tests.kubernetes.cluster.node import Node
from tests.kubernetes.pod_backends import Source, running
from tests.support.waiting import eventually
from tests.unit.agent.kubernetes.pods import packed, spec

FUNCTION = "registry.local/function:pods"
WORKER = "registry.local/worker:pods"
FAKE_WORKER = "registry.local/worker:fake"
BROKEN = "registry.local/broken:pods"
QUICK = Limits(image_pull=2.0, restarts=1, restarting=1.0)
WAIT = 180.0
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def images(node: Node, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Images on the node: a function, the worker, a program in its place, and one without its program."""
    folder = tmp_path_factory.mktemp("images")
    base = {**image_contents.system(), **image_contents.python(), **image_contents.packages()}
    code = image_contents.project(
        "worker_runtime/nvcf_worker", "proto/nvcf_proto", "broker/nvcf_broker", "otel/nvcf_otel"
    )
    program = {"/app/program.py": Path(function_program.__file__)}
    layers = [
        write_layer(folder / "base", base),
        write_layer(folder / "code", code),
        write_layer(folder / "program", program),
    ]
    environment = image_contents.python_environment()
    run, worker = ["python3", "/app/program.py"], ["python3", "-m", "nvcf_worker"]
    made = [
        Image(FUNCTION, layers, entrypoint=run, environment=environment, user="65534"),
        Image(FAKE_WORKER, layers, entrypoint=run, environment=environment, user="10001"),
        Image(WORKER, layers, entrypoint=worker, environment=environment, user="10001"),
        Image(BROKEN, layers, entrypoint=["/there/is/nothing"], environment=environment, user="65534"),
    ]
    write_archive(folder / "images.tar", made)
    node.add_images(folder / "images.tar")


@pytest.fixture
async def api(node: Node, images: None) -> AsyncIterator[Api]:
    async with await Api.open(str(node.cluster.kubeconfig)) as made:
        yield made


@pytest.fixture
def settings(namespace: str) -> PodSettings:
    return PodSettings(worker_image=WORKER, namespace=namespace, run_as_non_root=True, grace=20)


async def seen_by(api: Api, namespace: str, pod: str) -> dict[str, Any]:
    """Return what the function's container has found last."""
    found: dict[str, Any] = {}

    async def has_said() -> bool:
        text = await api.logs(pod, namespace, "inference", lines=1, limit_bytes=100_000)
        # Before there is any output, the kubelet may answer that there is no such file.
        found.update(json.loads(text) if text.startswith("{") else {})
        return bool(found)

    # Without a worker in it, a function's container counts as ready at once.
    await eventually(has_said, "the container has begun", WAIT, interval=0.2)
    return found


async def model_server(api: Api, namespace: str) -> str:
    """Run a pod that serves a file, and return its URL."""
    script = "mkdir /tmp/w; echo weights > /tmp/w/weights.bin; httpd -f -p 8080 -h /tmp/w"
    command = ["sh", "-c", script.replace("mkdir", "busybox mkdir").replace("httpd", "busybox httpd")]
    container = {"name": "main", "image": FUNCTION, "command": command}
    metadata = {"name": "files", "namespace": namespace}
    await api.create(POD, {"metadata": metadata, "spec": {"containers": [container]}})
    address: list[str] = []

    async def has_address() -> bool:
        found = await api.get(POD, "files", namespace) or {}
        status = found["status"]
        address[:] = [status.get("podIP") or ""]
        return status.get("phase") == "Running" and bool(address[0])

    await eventually(has_address, "the server of files", WAIT, interval=0.2)
    return f"http://{address[0]}:8080/weights.bin"


async def test_a_library_function_finds_models_secrets_and_its_worker_alone(
    api: Api, settings: PodSettings, node: Node
) -> None:
    models = [{"name": "m", "version": "1", "uri": await model_server(api, settings.namespace)}]
    made = spec(
        gpus=0,
        container_image=FUNCTION,
        worker_mode="library",
        models=packed(models),
        variables={"ESS_FQDN": "https://gateway", "CONTAINER_REGISTRIES_CREDENTIALS": packed({})},
    )
    source = Source()
    async with InstanceSecrets(source, SecretObjects(api, of_pods(settings.namespace))) as secrets:
        async with running(api, settings, secrets=secrets) as (backend, seen):
            await backend.create(made)
            await eventually(lambda: seen.of(Ready, made.instance_id), "it is ready", WAIT)
            found = await seen_by(api, settings.namespace, made.instance_id)
            assert found["uid"] == 65534
            assert found["models"] == ["/config/models/m/weights.bin"]
            assert found["secrets"] == {"TOKEN": "one"}
            assert not found["token"]
            assert found["environ"]["NVCF_WORKER_TOKEN"]
            assert not [name for name in found["environ"] if "CREDENTIAL" in name]
            parts = [each.part for each in seen.of(Progress, made.instance_id)]
            assert parts[-1] == "ready"
            assert "initialized" in parts
            source.values = {"TOKEN": "two"}

            async def renewed() -> bool:
                now = await seen_by(api, settings.namespace, made.instance_id)
                return bool(now["secrets"] == {"TOKEN": "two"})

            await eventually(renewed, "the kubelet brings the new secret", WAIT, interval=0.5)
            await backend.delete(made.instance_id, 5)
            await backend.forget(made.instance_id)


async def test_the_function_outlives_its_workers_last_request(
    api: Api, settings: PodSettings, node: Node
) -> None:
    made = spec(gpus=0, container_image=FUNCTION, variables={"UTILS_CONTAINER": FAKE_WORKER})
    async with running(api, settings) as (backend, seen):
        await backend.create(made)
        await eventually(lambda: seen.of(Ready, made.instance_id), "it is ready", WAIT)
        found = await seen_by(api, settings.namespace, made.instance_id)
        assert "NVCF_WORKER_TOKEN" not in found["environ"]
        stay = {"metadata": {"finalizers": ["test.example/read-me"]}}
        await api.patch(POD, made.instance_id, settings.namespace, stay)
        await api.delete(POD, made.instance_id, settings.namespace, grace=20)
        told: dict[str, dict[str, float]] = {}

        async def ended() -> bool:
            pod = await api.get(POD, made.instance_id, settings.namespace) or {}
            for each in pod["status"]["containerStatuses"]:
                words = (each["state"].get("terminated") or {}).get("message", "").split()
                told[each["name"]] = dict(zip(words[::2], map(float, words[1::2]), strict=True))
            return all(told.values())

        await eventually(ended, "both containers have ended", WAIT, interval=0.2)
        await api.patch(POD, made.instance_id, settings.namespace, {"metadata": {"finalizers": None}})
        assert told["inference"]["told"] >= told["utils"]["drained"]
        assert told["inference"]["told"] < told["utils"]["drained"] + 10
        await backend.delete(made.instance_id, 1)


@pytest.mark.parametrize(
    ("changes", "memory", "cause", "category", "texts"),
    [
        (
            {"variables": {"INFERENCE_CONTAINER_ARGS": "crash"}},
            None,
            Cause.CONTAINER_RESTART_LOOP,
            Category.CRASH,
            ("exit code 3", "Traceback: no weights"),
        ),
        (
            {"variables": {"INFERENCE_CONTAINER_ARGS": "eat"}},
            64 * 2**20,
            Cause.CONTAINER_RESTART_LOOP,
            Category.OUT_OF_MEMORY,
            ("more memory than its limit",),
        ),
        (
            {"container_image": BROKEN},
            None,
            Cause.CREATE_CONTAINER_ERROR,
            Category.CREATE_CONTAINER,
            ("/there/is/nothing",),
        ),
        (
            {"container_image": "registry.local/none:1"},
            None,
            Cause.IMAGE_PULL,
            Category.IMAGE_PULL,
            ("registry.local/none:1",),
        ),
    ],
    ids=["crash", "memory", "entrypoint", "image"],
)
async def test_failures_are_named(
    api: Api,
    settings: PodSettings,
    node: Node,
    changes: dict[str, Any],
    memory: int | None,
    cause: Cause,
    category: Category,
    texts: tuple[str, ...],
) -> None:
    made = spec(gpus=0, worker_mode="library", **{"container_image": FUNCTION, **changes})
    made = replace(made, limits=inventory.Limits(memory))
    async with running(api, settings, limits=QUICK) as (backend, seen):
        await backend.create(made)
        await eventually(lambda: seen.of(Ended, made.instance_id), "it has failed", WAIT)
        (ended,) = seen.of(Ended, made.instance_id)
        assert (ended.cause, ended.category, ended.gone) == (cause, category, False), ended.reason
        for text in texts:
            assert text in ended.reason
        await backend.delete(made.instance_id, 1)
