"""Calls to a real API server."""

from __future__ import annotations

from pathlib import Path

import pytest
from kubernetes.aio.config import incluster_config

from nvcf_agent.errors import AgentError
from nvcf_agent.kubernetes.client import api as api_module
from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.kinds import CONFIG_MAP, ICMS_REQUEST, POD, SERVICE_ACCOUNT, Kind
from tests.kubernetes.cluster.clusters import Cluster
from tests.kubernetes.frozen_relay import FrozenRelay
from tests.support.waiting import eventually


def config_map(name: str, namespace: str, **data: str) -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": namespace, "labels": {"of": "test"}}, "data": data}


async def test_objects_are_made_read_changed_and_removed(api: Api, namespace: str) -> None:
    assert await api.get(CONFIG_MAP, "one", namespace) is None
    made = await api.create(CONFIG_MAP, config_map("one", namespace, a="1"))
    with pytest.raises(ApiError) as refused:
        await api.create(CONFIG_MAP, config_map("one", namespace))
    assert refused.value.is_conflict
    patched = await api.patch(CONFIG_MAP, "one", namespace, {"data": {"b": "2"}})
    assert patched["data"] == {"a": "1", "b": "2"}
    old = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "data": {"b": "3"}}
    with pytest.raises(ApiError) as refused:
        await api.patch(CONFIG_MAP, "one", namespace, old)
    assert refused.value.is_conflict
    assert not await api.delete(CONFIG_MAP, "one", namespace, uid="00000000-0000-0000-0000-000000000000")
    assert await api.delete(CONFIG_MAP, "one", namespace, uid=made["metadata"]["uid"])
    assert not await api.delete(CONFIG_MAP, "one", namespace)
    assert (await api.version()).startswith("v1.")


async def test_applying_takes_away_what_is_not_applied_any_more(api: Api, namespace: str) -> None:
    await api.apply(CONFIG_MAP, config_map("one", namespace, a="1", b="2"))
    await api.patch(CONFIG_MAP, "one", namespace, {"data": {"theirs": "3"}})
    applied = await api.apply(CONFIG_MAP, config_map("one", namespace, a="1"))
    assert applied["data"].keys() >= {"a"}
    assert "b" not in applied["data"]
    managers = {each["manager"] for each in applied["metadata"]["managedFields"]}
    assert managers == {"nvcf-agent"}


async def test_a_list_reads_pages_and_says_what_its_items_are(
    api: Api, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        await api.create(CONFIG_MAP, config_map(f"c{number}", namespace))
    monkeypatch.setattr(api_module, "PAGE", 2)
    listed = await api.list(CONFIG_MAP, namespace, labels="of=test")
    assert [each["metadata"]["name"] for each in listed.items] == [f"c{number}" for number in range(5)]
    assert {(each["apiVersion"], each["kind"]) for each in listed.items} == {("v1", "ConfigMap")}
    assert int(listed.version) > 0


async def test_refusals_have_their_reason(api: Api, namespace: str) -> None:
    with pytest.raises(ApiError, match="Invalid value") as refused:
        await api.create(POD, {"metadata": {"name": "_", "namespace": namespace}, "spec": {"containers": []}})
    assert refused.value.is_final
    with pytest.raises(ApiError) as refused:
        await api.create(CONFIG_MAP, config_map("one", "no-such-namespace"))
    assert refused.value.is_missing
    # That there is no such kind is no answer to whether there is such an object.
    with pytest.raises(ApiError, match="404"):
        await api.get(Kind("example.com", "v1", "things", "Thing"), "one", namespace)


@pytest.mark.usefixtures("crds")
async def test_a_watch_of_a_version_that_is_too_old_ends_with_410(api: Api, namespace: str) -> None:
    with pytest.raises(ApiError) as refused:
        async for _ in api.watch(ICMS_REQUEST, namespace, version="1", seconds=5):
            pass
    assert refused.value.status == 410


async def test_no_answer_is_an_error_after_the_deadline(frozen: FrozenRelay, namespace: str) -> None:
    async with await Api.open(str(frozen.kubeconfig)) as api:
        await api.version()
        frozen.freeze()
        with pytest.raises(ApiError, match=r"no answer within 0\.5 s") as failed:
            await api.read("/version", deadline=0.5)
        assert failed.value.status == 0
        frozen.end()
        with pytest.raises(ApiError) as failed:
            await api.read("/version", deadline=1)
        assert failed.value.status == 0


async def test_settings_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="cannot use the settings"):
        await Api.open(str(tmp_path / "nowhere"))


async def test_a_new_token_is_taken_when_the_old_one_is_refused(
    api_server: Cluster, api: Api, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if api_server.control_plane is None:
        pytest.skip("the address and authority of a cluster that the environment names are not known")
    token, client = tmp_path / "token", api_server.client
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"

    def new_account() -> str:
        client.create(accounts, {"metadata": {"name": "agent"}})
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        return str(client.create(f"{accounts}/agent/token", asked)["status"]["token"])

    token.write_text(new_account())
    host, port = api_server.control_plane.server.removeprefix("https://").split(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    authority = api_server.control_plane.pki / "ca.crt"
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
    async with await Api.open() as inside:
        assert await inside.version()
        await api.delete(SERVICE_ACCOUNT, "agent", namespace)
        fresh = new_account()

        async def refused() -> bool:
            try:
                await inside.get(CONFIG_MAP, "one", namespace)
            except ApiError as error:
                return error.status == 401
            return False

        await eventually(refused, "the old token is refused", interval=0.2)
        token.write_text(fresh)
        with pytest.raises(ApiError) as forbidden:
            await inside.get(CONFIG_MAP, "one", namespace)
        # It is known again; that it may do nothing is another thing.
        assert forbidden.value.status == 403
