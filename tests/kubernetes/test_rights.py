"""The roles of the agent's chart are enough for its state, leadership and events, not for other Secrets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import yaml

from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import EVENT, NODE, NVCF_BACKEND, SECRET
from nvcf_agent.kubernetes.client.lease import Lease, LeaseTimes
from nvcf_agent.kubernetes.events import EventRecorder
from nvcf_agent.kubernetes.store import RequestStore
from nvcf_agent.state import transitions
from nvcf_agent.state.inventory import Share
from nvcf_agent.state.persisted_state import EndedInstance, StoredInstance
from tests.kubernetes.cluster.clusters import Cluster
from tests.kubernetes.test_store import watching
from tests.support.waiting import eventually
from tests.unit.agent.orders import CLUSTER, order

CHART = Path(__file__).parents[2] / "charts" / "nvcf-agent"
RELEASE = "agent"

pytestmark = pytest.mark.usefixtures("crds")


@pytest.fixture
def role(api_server: Cluster, namespace: str) -> Iterator[None]:
    """The objects that give the agent its rights, in its own namespace and in that of requests."""
    requests = f"{namespace}-requests"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": requests}}
    api_server.client.create("/api/v1/namespaces", body)
    values = {
        "cluster.name": "here",
        "registration.enabled": "false",
        "registration.clusterId": "00000000-0000-4000-8000-000000000001",
        "controlPlane.url": "http://gateway",
        "controlPlane.natsUrl": "nats://broker",
        "namespaces.requests": requests,
        "namespaces.create": "false",
    }
    sets = [f"--set={name}={value}" for name, value in values.items()]
    show = "--show-only=templates/rbac.yaml"
    text = api_server.helm("template", RELEASE, str(CHART), "--namespace", namespace, show, *sets)
    objects = [each for each in yaml.safe_load_all(text) if each]
    for each in objects:
        if each["kind"] in ("ServiceAccount", "Role", "RoleBinding"):
            each["metadata"].setdefault("namespace", namespace)
    text = yaml.safe_dump_all(objects)
    api_server.kubectl("apply", "--filename", "-", stdin=text)
    yield
    api_server.kubectl("delete", "--filename", "-", "--wait=false", stdin=text)
    api_server.client.delete(f"/api/v1/namespaces/{requests}")


@pytest.fixture
async def agent(api_server: Cluster, role: None, namespace: str, tmp_path: Path) -> AsyncIterator[Api]:
    """The API server as the agent's service account sees it."""
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    account = next(
        name
        for each in api_server.client.get(accounts)["items"]
        if (name := each["metadata"]["name"]).startswith(RELEASE)
    )
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = api_server.client.create(f"{accounts}/{account}/token", asked)["status"]["token"]
    config = yaml.safe_load(api_server.kubeconfig.read_text())
    for each in config["users"]:
        each["user"] = {"token": token}
    path = tmp_path / "agent.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    async with await Api.open(str(path)) as api:
        yield api


@pytest.mark.timeout(300)
async def test_the_agent_can_do_its_work_and_no_more(agent: Api, api: Api, namespace: str) -> None:
    requests = f"{namespace}-requests"
    async with Lease(agent, namespace, "nvcf-agent", "pod", LeaseTimes(3, 2.0, 0.2)).leading():
        recorder = EventRecorder(agent, "pod")
        store = RequestStore(agent, requests, on_saved=recorder.record_saved)
        async with watching(store), watching(recorder):
            instance = transitions.accepted(order("r"), Share(), 1.0)
            await store.save({instance.id: StoredInstance.of(instance, CLUSTER)})
            await store.save_ended({"x": EndedInstance(request_id="r", until=9.0)})
            found, ended = await RequestStore(agent, requests).load()
            assert [each.restored() for each in found] == [instance]
            assert set(ended) == {"x"}

            async def told() -> bool:
                return bool((await api.list(EVENT, requests)).items)

            await eventually(told, "the event is written", interval=0.1)
            await store.forget(instance.id)
        backend = {"metadata": {"name": "here", "namespace": namespace}, "spec": {}}
        await api.create(NVCF_BACKEND, backend)
        assert (await agent.list(NVCF_BACKEND, namespace)).items
        status = {"metadata": backend["metadata"], "status": {"agentStatus": "Healthy"}}
        await agent.apply(NVCF_BACKEND, status, part="status")
        await agent.list(NODE)
    for refused in (
        agent.list(SECRET, "kube-system"),
        agent.list(SECRET),
        agent.list(SECRET, namespace),
        agent.apply(NVCF_BACKEND, backend),
    ):
        with pytest.raises(ApiError) as error:
            await refused
        assert error.value.status == 403
