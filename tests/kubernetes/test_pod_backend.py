"""The pod backend against a real API server; pods run on fake nodes, as soon as they are bound."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.errors import StartError, Unsupported
from nvcf_agent.kubernetes.backend import PodBackend
from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.informer import Informer
from nvcf_agent.kubernetes.client.kinds import CONFIG_MAP, NETWORK_POLICY, POD, RESOURCE_QUOTA, SECRET, Kind
from nvcf_agent.kubernetes.pods.names import INSTANCE_TYPE
from nvcf_agent.kubernetes.pods.observe import Limits
from nvcf_agent.kubernetes.pods.settings import PodSettings, Requests
from nvcf_agent.kubernetes.pods.status import is_starting
from nvcf_agent.kubernetes.pods.task_end import has_begun
from nvcf_agent.kubernetes.prefetch import SELECTOR
from nvcf_agent.kubernetes.secret_objects import SecretObjects, of_pods
from nvcf_agent.secrets import InstanceSecrets
from nvcf_agent.state.events import Ended, Observed, Progress, Ready
from nvcf_agent.state.managed_instance import Category
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.reports import PrefetchImage
from tests.kubernetes.cluster.kwok import FakeNodes, Shape
from tests.kubernetes.pod_backends import Source, running
from tests.support.waiting import eventually
from tests.unit.agent.kubernetes.pods import WORKER, logins, spec, task_spec

QUICK = Limits(image_pull=1.0)
GPU_NODE = Shape(labels={INSTANCE_TYPE: "NCP.GPU.H100"})
BROKEN = {"finalizers": ["test.example/stay"]}


@pytest.fixture
async def api(kwok_nodes: FakeNodes) -> AsyncIterator[Api]:
    async with await Api.open(str(kwok_nodes.cluster.kubeconfig)) as made:
        yield made


@pytest.fixture
def settings(namespace: str) -> PodSettings:
    return PodSettings(worker_image=WORKER, namespace=namespace, cluster_name="here")


async def names_of(api: Api, kind: Kind, namespace: str) -> set[str]:
    return {each["metadata"]["name"] for each in (await api.list(kind, namespace)).items}


async def test_the_life_of_an_instance(api: Api, settings: PodSettings, kwok_nodes: FakeNodes) -> None:
    (node,) = kwok_nodes.add(1, GPU_NODE)
    made = spec(variables={"CONTAINER_REGISTRIES_CREDENTIALS": logins("registry.example")})
    async with running(api, settings, limits=QUICK) as (backend, seen):
        first = await backend.create(made)
        assert not first.ready
        again = await backend.create(made)
        assert again.instance_id == first.instance_id
        await seen.until(Ready, made.instance_id)
        where = seen.of(Observed, made.instance_id)[-1]
        assert where.node == node
        assert all(where.ips)
        passed = [each.part for each in seen.of(Progress, made.instance_id)]
        assert passed[0] == "pod created"
        assert passed[-1] == "ready"
        assert [each.ready for each in await backend.list()] == [True]
        (pod,) = (await api.list(POD, settings.namespace)).items
        assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "2"}
        await backend.delete(made.instance_id, 5)
        assert await backend.list() == []
        await backend.delete(made.instance_id, 5)
        await backend.forget(made.instance_id)
        assert not seen.of(Ended, made.instance_id)
    assert await names_of(api, SECRET, settings.namespace) == set()
    assert await names_of(api, CONFIG_MAP, settings.namespace) <= {"kube-root-ca.crt"}
    policies = await names_of(api, NETWORK_POLICY, settings.namespace)
    assert policies == {"nvcf-default-deny", "nvcf-allow-egress"}


async def test_the_next_agent_takes_over_and_touches_nothing(
    api: Api, settings: PodSettings, kwok_nodes: FakeNodes
) -> None:
    kwok_nodes.add(1, GPU_NODE)
    kept, unknown = spec(), spec()
    async with running(api, settings, limits=QUICK) as (backend, seen):
        for each in (kept, unknown):
            await backend.create(each)
            await seen.until(Ready, each.instance_id)
    before = {each["metadata"]["name"]: each for each in (await api.list(POD, settings.namespace)).items}
    async with running(api, settings, {kept.instance_id}) as (backend, seen):
        await eventually(lambda: not backend._watcher.pod(unknown.instance_id))
        assert [each.instance_id for each in await backend.list()] == [kept.instance_id]
        assert [each.ready for each in await backend.list()] == [True]
        (after,) = (await api.list(POD, settings.namespace)).items
        assert after["metadata"]["resourceVersion"] == before[kept.instance_id]["metadata"]["resourceVersion"]
        left = await names_of(api, SECRET, settings.namespace)
        assert left
        assert all(name.startswith(kept.instance_id) for name in left)


async def test_foreign_objects_stay(api: Api, settings: PodSettings, kwok_nodes: FakeNodes) -> None:
    secret = {"metadata": {"name": "foreign", "namespace": settings.namespace}, "stringData": {"a": "b"}}
    await api.create(SECRET, secret)
    async with running(api, settings, limits=QUICK):
        assert "foreign" in await names_of(api, SECRET, settings.namespace)


async def test_an_instance_without_room_ends_with_the_schedulers_words(
    api: Api, settings: PodSettings, kwok_nodes: FakeNodes
) -> None:
    kwok_nodes.add(1, replace(GPU_NODE, gpus=1))
    made = spec(gpus=2)
    async with running(api, settings, limits=replace(QUICK, unscheduled=1.0)) as (backend, seen):
        await backend.create(made)
        ended = await seen.until(Ended, made.instance_id)
        assert (ended.cause, ended.category) == (Cause.NO_CAPACITY, Category.CAPACITY)
        assert "Insufficient nvidia.com/gpu" in ended.reason
        assert ended.final
        assert not ended.gone
        await backend.delete(made.instance_id, 0)
        assert await backend.list() == []


async def test_a_pod_that_somebody_deletes_is_missed(
    api: Api, settings: PodSettings, kwok_nodes: FakeNodes
) -> None:
    kwok_nodes.add(1, GPU_NODE)
    made = spec()
    async with running(api, settings, limits=QUICK) as (backend, seen):
        await backend.create(made)
        await seen.until(Ready, made.instance_id)
        await api.delete(POD, made.instance_id, settings.namespace, grace=0)
        ended = await seen.until(Ended, made.instance_id)
        assert (ended.cause, ended.gone) == (Cause.NOT_FOUND, True)
        await backend.delete(made.instance_id, 1)


async def test_an_image_that_cannot_be_pulled_is_named(
    api: Api, settings: PodSettings, kwok_nodes: FakeNodes
) -> None:
    """The status is written as a kubelet writes it: no fake node pulls images, so the pod has no node."""
    made = spec()
    async with running(api, settings, limits=QUICK) as (backend, seen):
        await backend.create(made)
        state = {"waiting": {"reason": "ErrImagePull", "message": "manifest unknown"}}
        said = {"name": "inference", "state": state, "ready": False, "restartCount": 0}
        said |= {"image": "x", "imageID": ""}
        status = {"status": {"containerStatuses": [said]}}
        await api.patch(POD, made.instance_id, settings.namespace, status, part="status")
        ended = await seen.until(Ended, made.instance_id)
        assert (ended.cause, ended.category) == (Cause.IMAGE_PULL, Category.IMAGE_PULL)
        assert "manifest unknown" in ended.reason
        assert "CONTAINER inference WAITING" in ended.reason
        await backend.delete(made.instance_id, 0)


async def test_a_second_deletion_shortens_the_first(
    api: Api, settings: PodSettings, kwok_nodes: FakeNodes
) -> None:
    """A finalizer stands for a container that does not end."""
    made = spec(gpus=0)
    async with running(api, settings, limits=QUICK) as (backend, _):
        await backend.create(made)
        await api.patch(POD, made.instance_id, settings.namespace, {"metadata": BROKEN})
        first = asyncio.create_task(backend.delete(made.instance_id, 300))
        second = asyncio.create_task(backend.delete(made.instance_id, 0))
        await eventually(lambda: _is_going(backend, made))
        assert not first.done()
        await api.patch(POD, made.instance_id, settings.namespace, {"metadata": {"finalizers": None}})
        await asyncio.gather(first, second)


async def test_a_server_whose_worker_has_left_is_not_waited_for(
    api: Api, settings: PodSettings, kwok_nodes: FakeNodes
) -> None:
    """The node says so by the readiness of the server's container."""
    made = spec(gpus=0)

    async def grace() -> int:
        pod = await api.get(POD, made.instance_id, settings.namespace) or {}
        return int(pod["metadata"].get("deletionGracePeriodSeconds", -1))

    async def write(*, ready: bool) -> None:
        running_now = {"state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "started": True}
        about = {"image": "x", "imageID": "x", "restartCount": 0}
        statuses = [{"name": name, "ready": ready, **running_now, **about} for name in ("inference", "utils")]
        await api.patch(
            POD,
            made.instance_id,
            settings.namespace,
            {"status": {"containerStatuses": statuses}},
            part="status",
        )

    async with running(api, settings, limits=QUICK) as (backend, _):
        await backend.create(made)
        await _bind_to_nobody(api, settings, made)
        await write(ready=True)
        # A pod that starts gets a short grace period: the agent must know that this one runs.
        await eventually(lambda: not is_starting(backend._watcher.pod(made.instance_id) or {}))
        deleting = asyncio.create_task(backend.delete(made.instance_id, 300))
        await eventually(lambda: _is_going(backend, made))
        assert await grace() == 300
        await write(ready=False)

        async def is_short() -> bool:
            return await grace() == 5

        await eventually(is_short, "its grace period is shortened")
        assert not deleting.done()
        await api.delete(POD, made.instance_id, settings.namespace, grace=0)
        await deleting


def _has_begun(backend: PodBackend, made: InstanceSpec) -> bool:
    pod = backend._watcher.pod(made.instance_id)
    return pod is not None and has_begun(pod)


async def _bind_to_nobody(api: Api, settings: PodSettings, made: InstanceSpec) -> None:
    """Without a node, a pod would be gone at once."""
    node = {"metadata": {"name": made.instance_id}, "target": {"kind": "Node", "name": "nobody"}}
    await api._connection.call("POST", POD.path(settings.namespace, made.instance_id, "binding"), {}, node)


async def test_a_task_whose_worker_starts_yet_has_its_whole_grace_period(
    api: Api, settings: PodSettings, kwok_nodes: FakeNodes
) -> None:
    made = task_spec(gpus=0)
    about = {"image": "x", "imageID": "x", "restartCount": 0}
    runs = {**about, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
    statuses = [
        {**runs, "name": "task", "ready": True, "started": True},
        {**runs, "name": "utils", "ready": False, "started": False},
    ]
    async with running(api, settings, limits=QUICK) as (backend, _):
        await backend.create(made)
        await _bind_to_nobody(api, settings, made)
        body = {"status": {"containerStatuses": statuses}}
        await api.patch(POD, made.instance_id, settings.namespace, body, part="status")
        await eventually(lambda: _has_begun(backend, made))
        deleting = asyncio.create_task(backend.delete(made.instance_id, 420))
        await eventually(lambda: _is_going(backend, made))
        pod = await api.get(POD, made.instance_id, settings.namespace) or {}
        assert pod["metadata"]["deletionGracePeriodSeconds"] == 420
        await api.delete(POD, made.instance_id, settings.namespace, grace=0)
        await deleting


def _is_going(backend: PodBackend, made: InstanceSpec) -> bool:
    pod = backend._watcher.pod(made.instance_id)
    return pod is not None and "deletionTimestamp" in pod["metadata"]


async def test_what_the_api_server_refuses_is_refused_and_a_quota_is_waited_for(
    api: Api, settings: PodSettings, kwok_nodes: FakeNodes
) -> None:
    async with running(api, settings, limits=QUICK) as (backend, _):
        broken = replace(settings, sidecar=Requests("much"))
        with pytest.raises(Unsupported, match="refuses"):
            await PodBackend(api, broken, watcher=backend._watcher).create(spec(gpus=0))
        quota = {
            "metadata": {"name": "none", "namespace": settings.namespace},
            "spec": {"hard": {"pods": "0"}},
        }
        await api.create(RESOURCE_QUOTA, quota)
        await eventually(lambda: _quota_counts(api, settings.namespace), interval=0.1)
        with pytest.raises(StartError, match="exceeded quota"):
            await backend.create(spec(gpus=0))


async def _quota_counts(api: Api, namespace: str) -> bool:
    found = await api.get(RESOURCE_QUOTA, "none", namespace)
    return bool(found and found.get("status", {}).get("used"))


async def _file(api: Api, namespace: str, instance_id: str) -> dict[str, Any]:
    found = await api.get(SECRET, f"{instance_id}-secrets", namespace)
    data = (found or {}).get("data") or {}
    return json.loads(base64.b64decode(data["secrets.json"])) if "secrets.json" in data else {}


async def test_secrets_follow_the_gateway_also_after_a_restart(
    api: Api, settings: PodSettings, kwok_nodes: FakeNodes
) -> None:
    source, made = Source(), spec(gpus=0, variables={"ESS_FQDN": "https://gateway"})

    def holds(values: dict[str, Any]) -> Callable[[], Any]:
        async def check() -> bool:
            return await _file(api, settings.namespace, made.instance_id) == values

        return check

    sink = SecretObjects(api, of_pods(settings.namespace))
    async with InstanceSecrets(source, sink) as secrets:
        async with running(api, settings, secrets=secrets) as (backend, _):
            await backend.create(made)
            assert await holds({"TOKEN": "one"})()
            source.values = {"TOKEN": "two"}
            await eventually(holds({"TOKEN": "two"}), interval=0.1)
    source.values = {}
    async with InstanceSecrets(source, sink) as secrets:
        async with running(api, settings, {made.instance_id}, secrets=secrets):
            await eventually(holds({}), interval=0.1)


async def test_images_are_prefetched_once_on_all_nodes(
    api: Api, settings: PodSettings, kwok_nodes: FakeNodes
) -> None:
    nodes = kwok_nodes.add(3, GPU_NODE)
    made = spec(prefetch=True, variables={"CONTAINER_REGISTRIES_CREDENTIALS": logins("registry.example")})
    other = replace(made, order=made.order.replace(request_id="other"))
    pods: list[dict[str, Any]] = []
    pulling = Informer(
        api,
        POD,
        namespace=settings.namespace,
        labels=SELECTOR,
        on_change=lambda old, new: pods.append(new) if old is None and new is not None else None,
    )
    watching = asyncio.create_task(pulling.run())
    try:
        await pulling.synced.wait()
        async with running(api, settings, nodes=lambda _kind: nodes) as (backend, _):
            # The control plane tells before there is an instance. Those that come do not ask again.
            told = PrefetchImage(
                container_image=made.order.launch_specification.container_image or "",
                instance_type_value=made.order.instance_type_value,
                credentials=logins("registry.example"),
            )
            backend.prefetch([told])
            await backend.create(made)
            await backend.create(other)
            await eventually(lambda: len(pods) == len(nodes), "a pod for each node")
            await eventually(lambda: not pulling.objects, "they are removed")
            assert len(pods) == len(nodes)

            async def tidy() -> bool:
                return not [
                    name for name in await names_of(api, SECRET, settings.namespace) if "prefetch" in name
                ]

            await eventually(tidy, "the login is removed")
    finally:
        watching.cancel()
        await asyncio.wait({watching})
