"""The agent runs Helm functions with the rights that its chart gives it, and has no others."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import NAMESPACE, ROLE_BINDING, SECRET
from nvcf_agent.kubernetes.helm import names
from nvcf_agent.state.events import Ended, Ready
from tests.kubernetes.cluster.clusters import Cluster
from tests.kubernetes.helm.support import SHORT, Setting
from tests.support.waiting import eventually

CHART = Path(__file__).parents[3] / "charts" / "nvcf-agent"
KINDS = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding",
         "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")  # fmt: skip
TOKEN = {
    "apiVersion": "authentication.k8s.io/v1",
    "kind": "TokenRequest",
    "spec": {"expirationSeconds": 3600},
}


@pytest.fixture
def identity(setting: Setting, tmp_path: Path) -> Iterator[tuple[Path, str, str]]:
    """A kubeconfig of the chart's service account; NAMESPACE/NAME of it, and the name of the role."""
    cluster, namespace = setting.cluster, setting.namespace
    values = {
        "controlPlane.url": "https://nvcf.example",
        "controlPlane.natsUrl": "tls://nvcf.example:4222",
        "cluster.name": "test",
        "registration.adminKeySecret": "admin",
        "namespaces.requests": namespace,
    }
    pairs = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    text = cluster.helm("template", "agent", str(CHART), "--namespace", namespace, *pairs)
    wanted = [each for each in yaml.safe_load_all(text) if each and each["kind"] in KINDS]
    hooks = [each for each in wanted if "helm.sh/hook" in (each["metadata"].get("annotations") or {})]
    objects = yaml.safe_dump_all([each for each in wanted if each not in hooks])
    cluster.kubectl("apply", "--namespace", namespace, "-f", "-", stdin=objects)
    names_of = {each["kind"]: each["metadata"]["name"] for each in wanted if each not in hooks}
    role = next(
        each["metadata"]["name"]
        for each in wanted
        if each["kind"] == "ClusterRole" and each["metadata"]["name"].endswith("-miniservice")
    )
    yield (
        _kubeconfig(cluster, namespace, names_of["ServiceAccount"], tmp_path),
        (f"{namespace}/{names_of['ServiceAccount']}"),
        role,
    )
    cluster.kubectl("delete", "--namespace", namespace, "--ignore-not-found", "-f", "-", stdin=objects)


def _kubeconfig(cluster: Cluster, namespace: str, account: str, folder: Path) -> Path:
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    token = cluster.client.create(path, TOKEN)["status"]["token"]
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    for each in config["clusters"]:
        authority = each["cluster"].pop("certificate-authority", None)
        if authority is not None:
            text = (cluster.kubeconfig.parent / authority).read_bytes()
            each["cluster"]["certificate-authority-data"] = base64.b64encode(text).decode()
    config["users"] = [{"name": each["name"], "user": {"token": token}} for each in config["users"]]
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file


async def test_the_rights_of_the_chart_are_enough_and_no_more(
    setting: Setting, identity: tuple[Path, str, str]
) -> None:
    kubeconfig, account, role = identity
    spec = setting.spec(replicas=2)
    given: dict[str, Any] = {"service_account": account, "role": role}
    async with setting.agent(kubeconfig=kubeconfig, **given) as agent:
        await agent.backend.create(spec)
        await agent.until(Ready)
        api: Api = agent.api

        # Secrets of the function's namespace, not those of others.
        assert (await api.list(SECRET, names.namespace_of(spec.instance_id))).items
        for namespace in ("kube-system", "default", None):
            with pytest.raises(ApiError, match="forbidden"):
                await api.list(SECRET, namespace)
        with pytest.raises(ApiError, match=r"forbidden|denied"):
            await api.create(NAMESPACE, {"metadata": {"name": "other"}})
        with pytest.raises(ApiError, match=r"forbidden|denied"):
            await api.apply(ROLE_BINDING, _binding("kube-system", role, account))
        with pytest.raises(ApiError, match="forbidden"):
            await api.apply(ROLE_BINDING, _binding(names.namespace_of(spec.instance_id), "admin", account))

        await agent.backend.delete(spec.instance_id, 5)
        await agent.until(Ended)
        await eventually(lambda: not agent.backend._services.objects, "it is gone", SHORT)


def _binding(namespace: str, role: str, account: str) -> dict[str, object]:
    owner, _, name = account.partition("/")
    return {
        "metadata": {"name": "more", "namespace": namespace},
        "roleRef": {"apiGroup": ROLE_BINDING.group, "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "namespace": owner, "name": name}],
    }
