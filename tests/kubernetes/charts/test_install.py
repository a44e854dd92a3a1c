"""Both charts in a real API server: objects, upgrades, and the rights of their service accounts."""

from __future__ import annotations

import base64
import shutil
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from nvcf_gateway.installation import manifests, new_secrets, write
from tests.kubernetes.charts.rendering import CASES, ROOT, flags, pod_of, rendered, values_of
from tests.kubernetes.cluster.client import ApiProblem, Client
from tests.kubernetes.cluster.clusters import Cluster
from tests.kubernetes.cluster.processes import wait_until

AGENT = values_of("nvcf-agent", "job")
BUILT_IN = [(chart, case) for chart, case in CASES if case != "operators"]


def token_client(cluster: Cluster, namespace: str, account: str) -> Client:
    """Return a client with the rights of a service account."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    answer = cluster.client.create(
        path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    )
    return Client(cluster.kubeconfig, token=answer["status"]["token"])


def denied(problem: pytest.ExceptionInfo[ApiProblem]) -> bool:
    return problem.value.status in (403, 422)


@pytest.fixture
def crds(api_server: Cluster) -> None:
    """The definitions, which helm would install at the first installation."""
    api_server.kubectl(
        "apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "charts/nvcf-agent/crds")
    )
    api_server.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")


@pytest.mark.parametrize(("chart", "case"), BUILT_IN)
@pytest.mark.usefixtures("crds")
def test_the_api_server_takes_all_objects(chart: str, case: str, api_server: Cluster, namespace: str) -> None:
    own = (
        *values_of(chart, case),
        *(("namespaces.create=false", f"namespaces.requests={namespace}") if chart == "nvcf-agent" else ()),
    )
    api_server.helm(
        "install",
        chart,
        str(ROOT / "charts" / chart),
        "--namespace",
        namespace,
        "--dry-run=server",
        *flags(own),
    )
    objects = [
        each for each in rendered(chart, case)
        if each["metadata"].get("namespace") is None and each["kind"] not in ("Namespace", "Pod")
    ]  # fmt: skip
    # Rights of the cluster's administrator, and every field known.
    text = yaml.safe_dump_all(objects)
    api_server.kubectl(
        "apply",
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "--namespace",
        namespace,
        "-f",
        "-",
        stdin=text,
    )


@pytest.mark.parametrize(("chart", "case"), [("nvcf", "everything"), ("nvcf-agent", "everything")])
def test_pods_are_allowed_where_pod_security_is_restricted(
    chart: str, case: str, api_server: Cluster, namespace: str
) -> None:
    client, path = api_server.client, f"/api/v1/namespaces/{namespace}"
    client.patch(path, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    wait_until(lambda: client.find(f"{path}/serviceaccounts/default"), "the namespace has its account")
    for each in rendered(chart, case):
        if (pod := pod_of(each)) is None:
            continue
        for absent in ("serviceAccountName", "priorityClassName"):
            pod.pop(absent, None)
        claims = [claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", [])]
        pod["volumes"] = [*pod.get("volumes", []), *({"name": name, "emptyDir": {}} for name in claims)]
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": each["metadata"]["name"]}}
        client.create(f"{path}/pods?dryRun=All", {**body, "spec": pod})


def earlier(chart: str, folder: Path) -> Path:
    """Return a copy of a chart under an earlier version."""
    shutil.copytree(ROOT / "charts" / chart, folder / chart)
    about = folder / chart / "Chart.yaml"
    about.write_text(about.read_text().replace("0.1.0", "0.0.9"))
    return folder / chart


def secret_data(client: Client, namespace: str) -> dict[str, Any]:
    found = client.get(f"/api/v1/namespaces/{namespace}/secrets")["items"]
    return {each["metadata"]["name"]: each["data"] for each in found if each["type"] == "Opaque"}


async def make_secrets(cluster: Cluster, namespace: str) -> list[str]:
    """Do what the Job does, with the rights that the chart gives it."""
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/nvcf-setup/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = cluster.client.create(path, request)["status"]["token"]
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(ssl=trust)) as session:
        made = manifests("nvcf", namespace, new_secrets("local", time.time()))
        return await write(session, cluster.client.server, made)


async def test_an_upgrade_keeps_secrets_and_volumes(
    api_server: Cluster, namespace: str, tmp_path: Path
) -> None:
    hooks = [
        each for each in rendered("nvcf", "defaults")
        if each["metadata"]["name"] == "nvcf-setup" and each["kind"] != "Job"
    ]  # fmt: skip
    text = yaml.safe_dump_all(hooks).replace("namespace: nvcf\n", f"namespace: {namespace}\n")
    api_server.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=text)
    client = api_server.client
    # Pods stay Pending here, so the hook would not end; what its Job does is done below.
    install = ("--namespace", namespace, "--no-hooks")
    api_server.helm("install", "nvcf", str(earlier("nvcf", tmp_path)), *install)
    assert all(line.endswith("created") for line in await make_secrets(api_server, namespace))
    before = secret_data(client, namespace)
    assert set(before) == {"nvcf-signing", "nvcf-sealing", "nvcf-broker", "nvcf-admin"}
    api_server.helm(
        "upgrade", "nvcf", str(ROOT / "charts/nvcf"), *install, "--set", "gateway.graceSeconds=90"
    )
    assert all(line.endswith("is there") for line in await make_secrets(api_server, namespace))
    assert secret_data(client, namespace) == before
    gateway = client.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/nvcf-gateway")
    assert gateway["metadata"]["labels"]["helm.sh/chart"] == "nvcf-0.1.0"
    assert "--grace=90" in gateway["spec"]["template"]["spec"]["containers"][0]["args"]
    api_server.helm("rollback", "nvcf", "1", *install)
    api_server.helm("uninstall", "nvcf", *install)
    assert secret_data(client, namespace) == before
    setup = token_client(api_server, namespace, "nvcf-setup")
    for path in ("secrets", "secrets/other", "configmaps"):
        with pytest.raises(ApiProblem) as problem:
            setup.get(f"/api/v1/namespaces/{namespace}/{path}")
        assert denied(problem)


@pytest.fixture
def agent(api_server: Cluster, namespace: str, crds: None) -> Iterator[Client]:
    """The chart nvcf-agent in a namespace; a client with the rights of its agent."""
    requests = f"{namespace}-backend"
    values = (*AGENT, f"namespaces.requests={requests}")
    api_server.helm(
        "install", "nvcf-agent", str(ROOT / "charts/nvcf-agent"), "--namespace", namespace, "--no-hooks",
        "--skip-crds", *flags(values),
    )  # fmt: skip
    yield token_client(api_server, namespace, "nvcf-agent")
    api_server.helm("uninstall", "nvcf-agent", "--namespace", namespace, "--no-hooks", "--ignore-not-found")
    api_server.client.delete(f"/api/v1/namespaces/{requests}")


def secret(namespace: str, name: str = "s") -> dict[str, Any]:
    data = {"a": base64.b64encode(b"b").decode()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    }


def binding(namespace: str, role: str, kind: str = "ClusterRole") -> dict[str, Any]:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "nvcf-agent", "namespace": namespace},
        "roleRef": {"apiGroup": group, "kind": kind, "name": role},
        "subjects": [{"kind": "User", "name": "anybody", "apiGroup": group}],
    }


def test_the_agent_reads_secrets_of_its_own_namespaces_only(
    api_server: Cluster, namespace: str, agent: Client
) -> None:
    requests = f"{namespace}-backend"
    agent.create(f"/api/v1/namespaces/{requests}/secrets", secret(requests))
    assert agent.get(f"/api/v1/namespaces/{requests}/secrets/s")["data"]
    api_server.client.create(f"/api/v1/namespaces/{namespace}/secrets", secret(namespace))
    for path in (f"namespaces/{namespace}/secrets/s", "namespaces/kube-system/secrets", "secrets"):
        with pytest.raises(ApiProblem) as problem:
            agent.get(f"/api/v1/{path}")
        assert denied(problem), path


def test_the_agent_cannot_widen_its_rights(api_server: Cluster, namespace: str, agent: Client) -> None:
    role, group = f"nvcf-agent-{namespace}-miniservice", "/apis/rbac.authorization.k8s.io/v1"
    own = f"sr-{namespace}"

    def make_namespace(name: str) -> None:
        agent.create(
            "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        )

    def bind(where: str, bound: str) -> None:
        agent.create(f"{group}/namespaces/{where}/rolebindings", binding(where, bound))

    def refused() -> str:
        try:
            bind("default", role)
        except ApiProblem as problem:
            return str(problem)
        api_server.client.delete(f"{group}/namespaces/default/rolebindings/nvcf-agent")
        return ""

    # A new policy takes a moment until the API server applies it.
    wait_until(lambda: "begin with sr-" in refused(), "the policy is applied")
    make_namespace(own)
    try:
        bind(own, role)
        for attempt in (
            lambda: make_namespace(f"x-{namespace}"),
            lambda: agent.patch("/api/v1/namespaces/kube-system", {"metadata": {"labels": {"a": "b"}}}),
            lambda: agent.delete(f"/api/v1/namespaces/{namespace}"),
            lambda: bind(namespace, role),
            lambda: agent.create(f"{group}/namespaces/{own}/rolebindings", {
                **binding(own, "cluster-admin"), "metadata": {"name": "all", "namespace": own}}),
            lambda: agent.create(f"{group}/clusterrolebindings", {}),
        ):  # fmt: skip
            with pytest.raises(ApiProblem) as problem:
                attempt()
            assert denied(problem), problem.value
    finally:
        api_server.client.delete(f"/api/v1/namespaces/{own}")


def test_settings_of_the_chart_are_what_the_definitions_take(
    api_server: Cluster, namespace: str, agent: Client
) -> None:
    path = f"/apis/nvcf.nvidia.io/v1/namespaces/{namespace}/nvcfbackends/nvcf-agent"
    spec = agent.get(path)["spec"]
    assert spec["clusterConfig"]["clusterName"] == "gpu-a"
    assert spec["clusterConfig"]["requestsNamespace"] == f"{namespace}-backend"
    assert spec["agentConfig"]["natsURL"] == "nats://nats:4222"
    labels = api_server.client.get(f"/api/v1/namespaces/{namespace}-backend")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "baseline"
    api_server.helm("uninstall", "nvcf-agent", "--namespace", namespace, "--no-hooks")
    assert api_server.client.find(f"/api/v1/namespaces/{namespace}-backend") is not None
