"""Who may register clusters for whom, and what stays of deleted ones (docs/reference/protocol.md, 6.5)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from nvcf_broker.files import write_private
from nvcf_proto.compute import RegisteredCluster
from nvcf_proto.ids import new_id
from tests.support.platform.gateways import ACCOUNT, running_platform
from tests.support.platform.icms import ComputePlane
from tests.support.waiting import eventually

module = pytest.mark.asyncio(loop_scope="module")

CLUSTERS = f"/v1/accounts/{ACCOUNT}/clusters"


def called(**fields: Any) -> dict[str, Any]:
    return {"clusterName": f"c-{new_id()[:8]}", **fields}


async def known(plane: ComputePlane, cluster_id: str) -> RegisteredCluster:
    await eventually(lambda: plane.registered.get(cluster_id), "the record")
    record = plane.registered.get(cluster_id)
    assert record is not None
    return record


@module
@pytest.mark.parametrize(("key", "accounts"), [("admin", ("*",)), ("account-admin", (ACCOUNT,))])
async def test_whom_a_cluster_serves_by_default(
    plane: ComputePlane, key: str, accounts: tuple[str, ...]
) -> None:
    """6.5: all accounts if an operator registers it, else the own one."""
    for body in (called(), called(authorizedNCAIds=[])):
        made = await plane.platform.call("POST", CLUSTERS, body, key=key)
        assert (await known(plane, made["clusterId"])).authorized_nca_ids == accounts


@module
@pytest.mark.parametrize("accounts", [["*"], ["account-two"], [ACCOUNT, "account-two"]])
async def test_an_accounts_admin_gets_nobody_elses_functions(
    plane: ComputePlane, accounts: list[str]
) -> None:
    """6.5: neither at the registration nor later."""
    platform = plane.platform
    refused = await platform.call(
        "POST", CLUSTERS, called(authorizedNCAIds=accounts), key="account-admin", expect=403
    )
    assert "operator" in refused["detail"]
    own = called(authorizedNCAIds=[ACCOUNT])
    made = await platform.call("POST", CLUSTERS, own, key="account-admin")
    one = f"{CLUSTERS}/{made['clusterId']}"
    body = {"authorizedNCAIds": accounts}
    await platform.call("PUT", one, body, key="account-admin", expect=403)
    assert (await known(plane, made["clusterId"])).authorized_nca_ids == (ACCOUNT,)
    await platform.call("PUT", one, body)
    assert (await platform.call("GET", one))["authorizedNCAIds"] == accounts
    # A change that does not name accounts leaves them as they are.
    await platform.call("PUT", one, {"region": "eu"})
    assert (await platform.call("GET", one))["authorizedNCAIds"] == accounts


@module
async def test_a_shared_cluster_is_the_operators(plane: ComputePlane) -> None:
    """6.5: whoever rotates its key, or puts a key set, is its agent."""
    platform = plane.platform
    made = await platform.call("POST", CLUSTERS, called())
    one = f"{CLUSTERS}/{made['clusterId']}"
    calls = [
        ("POST", f"{one}/rotate", None),
        ("PUT", one, {"region": "eu"}),
        *(("POST", f"{one}/{action}", None) for action in ("cordon", "drain", "uncordon")),
        ("DELETE", one, None),
    ]
    for method, path, body in calls:
        await platform.call(method, path, body, key="account-admin", expect=403)
    assert (await platform.call("GET", one, key="account-admin"))["clusterId"] == made["clusterId"]
    own = f"{CLUSTERS}/{(await platform.call('POST', CLUSTERS, called(), key='account-admin'))['clusterId']}"
    for method, path, body in calls:
        await platform.call(method, path.replace(one, own), body, key="account-admin")


@module
async def test_only_an_operator_makes_operators(plane: ComputePlane) -> None:
    """The scope is not part of admin."""
    body = {"scopes": ["admin", "operator"]}
    await plane.platform.call("POST", "/v2/nvcf/keys", body, key="account-admin", expect=403)
    made = await plane.platform.call("POST", "/v2/nvcf/keys", body)
    assert made["key"]["scopes"] == ["admin", "operator"]


@module
async def test_the_id_of_a_deleted_cluster_is_never_used_again(plane: ComputePlane) -> None:
    """6.7: else a restored backup would end everything of its successor."""
    body = called()
    first = await plane.cluster(body["clusterName"])
    await plane.platform.call("DELETE", f"{CLUSTERS}/{first.cluster_id}")
    assert (await first.heartbeat())[1] == {"action": "SELF_DESTRUCT"}
    entry = plane.registered.entry(first.cluster_id)
    assert entry is not None
    old = entry.value.replace(evicted_at=time.time() - 25 * 3600)
    await plane.registered.update(first.cluster_id, old, entry.revision)

    def small() -> bool:
        record = plane.registered.get(first.cluster_id)
        return (
            record is not None and record.evicted and record.authorized_nca_ids == ("*",) and not record.gpus
        )

    async def forgotten() -> bool:
        return (await first.heartbeat())[0] == 401

    await eventually(forgotten, "its key is void", 60)
    await eventually(small, "little stays")
    second = await plane.platform.call("POST", CLUSTERS, body)
    assert second["clusterId"] != first.cluster_id


@module
async def test_only_who_was_deleted_is_told_to_end_everything(plane: ComputePlane) -> None:
    """6.5: the agent of a later registration that got the same id is not, whatever a backup says."""
    agent = await plane.cluster()
    await plane.platform.call("DELETE", f"{CLUSTERS}/{agent.cluster_id}")
    record = await known(plane, agent.cluster_id)
    assert record.evicted_keys == (agent.credential.split("-")[1],)
    entry = plane.registered.entry(agent.cluster_id)
    assert entry is not None
    await plane.registered.update(
        agent.cluster_id, record.replace(evicted_keys=("0123456789ab",)), entry.revision
    )

    async def refused() -> bool:
        return (await agent.heartbeat())[0] == 401

    await eventually(refused, "401, not SELF_DESTRUCT")


@pytest.mark.asyncio
async def test_a_bootstrap_file_gives_its_keys_more_scopes(tmp_path: Path) -> None:
    """The key that an earlier `nvcf up` made becomes an operator's; nothing takes scopes away."""
    async with running_platform(tmp_path) as platform:
        file = tmp_path / "bootstrap-keys.json"
        records = json.loads(file.read_bytes())
        ids = {each["ncaId"] + "/" + "+".join(each["scopes"]): each["id"] for each in records}
        one, two = ids[f"{ACCOUNT}/admin"], ids[f"{ACCOUNT}/admin+operator"]
        for each in records:
            each["scopes"] = {one: ["admin", "operator"], two: ["admin"]}.get(each["id"], each["scopes"])
        write_private(file, json.dumps(records))
        await platform.start_gateway()
        shown = (await platform.call("GET", "/v2/nvcf/keys"))["keys"]
        scopes = {each["id"]: each["scopes"] for each in shown}
        assert scopes[one] == scopes[two] == ["admin", "operator"]
