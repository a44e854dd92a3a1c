"""Clusters as administrators register them (docs/reference/protocol.md, sections 6.5 and 6.7)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import nats.errors
import pytest

from nvcf_proto.ids import is_id, new_id
from nvcf_proto.models import InstanceState
from tests.support.peers.icms_agent import GPUS, TERMINATION
from tests.support.platform.gateways import ACCOUNT
from tests.support.platform.icms import ComputePlane
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module")]

CLUSTERS = f"/v1/accounts/{ACCOUNT}/clusters"


async def test_ids_are_uuids_and_the_key_is_in_the_answer(plane: ComputePlane) -> None:
    """6.5: clusterId, clusterGroupId and, without a key set, clusterKey."""
    made = await plane.platform.call("POST", CLUSTERS, {"clusterName": "one", "clusterGroupName": "g"})
    assert set(made) == {"clusterId", "clusterGroupId", "clusterName", "clusterKey"}
    assert is_id(made["clusterId"])
    assert is_id(made["clusterGroupId"])


async def test_the_same_name_again_is_409_with_its_id(plane: ComputePlane) -> None:
    """6.5: unique in the account; ifExists=return answers 200 with the ids and no key."""
    made = await plane.platform.call("POST", CLUSTERS, {"clusterName": "two"})
    problem = await plane.platform.call("POST", CLUSTERS, {"clusterName": "two"}, expect=409)
    assert problem["clusterId"] == made["clusterId"]
    again = await plane.platform.call("POST", f"{CLUSTERS}?ifExists=return", {"clusterName": "two"})
    assert again == {name: value for name, value in made.items() if name != "clusterKey"}


async def test_names_of_other_accounts_do_not_matter(plane: ComputePlane) -> None:
    """6.5: a name is unique in its account."""
    body = {"clusterName": "three"}
    mine = await plane.platform.call("POST", CLUSTERS, body)
    theirs = await plane.platform.call("POST", "/v1/accounts/account-two/clusters", body, key="foreign")
    assert mine["clusterId"] != theirs["clusterId"]


async def test_a_name_registered_twice_at_once_is_one_cluster(plane: ComputePlane) -> None:
    """6.5: one of them gets the key, the others 409."""
    url, headers = plane.platform.gateway.url + CLUSTERS, plane.platform.authorization()

    async def register() -> int:
        async with plane.platform.session.post(
            url, json={"clusterName": "at-once"}, headers=headers
        ) as response:
            return response.status

    statuses = await asyncio.gather(*(register() for _ in range(8)))
    assert sorted(statuses) == [200] + [409] * 7


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "clusterName"),
        ({"clusterName": ""}, "clusterName"),
        ({"clusterName": "a b"}, "clusterName"),
        ({"clusterName": "x", "region": "a.b"}, "region"),
        ({"clusterName": "x", "cloudProvider": "MOON"}, "cloudProvider"),
        ({"clusterName": "x", "jwks": "{}"}, "jwks"),
        ({"clusterName": "x", "oidcIssuer": "file:///etc"}, "oidcIssuer"),
        ({"clusterName": "x", "authorizedNCAIds": ["a b"]}, "authorizedNCAIds[0]"),
        ({"clusterName": "x", "attributes": {"a": 1}}, "attributes.a"),
    ],
)
async def test_bad_registrations_are_400_naming_the_field(
    plane: ComputePlane, body: dict[str, Any], field: str
) -> None:
    """6.5: every member is checked before anything is made."""
    problem = await plane.platform.call("POST", CLUSTERS, body, expect=400)
    assert problem["field"] == field


@pytest.mark.parametrize("prefix", ["/v1/accounts", "/v1/si/accounts"])
async def test_both_paths_show_the_same(plane: ComputePlane, prefix: str) -> None:
    """6.5: every path exists under /v1/si too."""
    agent = await plane.cluster(connect=False, clusterDescription="a lab", attributes={"zone": "a"})
    found = await plane.platform.call("GET", f"{prefix}/{ACCOUNT}/clusters/{agent.cluster_id}")
    assert (found["clusterDescription"], found["attributes"]) == ("a lab", {"zone": "a"})
    listed = await plane.platform.call("GET", f"{prefix}/{ACCOUNT}/clusters")
    assert found in listed["clusters"]


ADMIN = [
    ("GET", ""),
    ("PUT", ""),
    ("DELETE", ""),
    ("POST", "/rotate"),
    ("POST", "/cordon"),
    ("POST", "/drain"),
    ("POST", "/uncordon"),
]


@pytest.mark.parametrize(("method", "action"), ADMIN)
async def test_other_accounts_reach_nothing(plane: ComputePlane, method: str, action: str) -> None:
    """6.5: 403 in the owner's path, 404 in their own; no scope below admin is enough."""
    agent = await plane.cluster(connect=False)
    call = plane.platform.call
    one = f"{CLUSTERS}/{agent.cluster_id}{action}"
    await call(method, one, {}, key="foreign", expect=403)
    own = f"/v1/accounts/account-two/clusters/{agent.cluster_id}{action}"
    await call(method, own, {}, key="foreign", expect=404)
    await call(method, one, {}, key="list", expect=403)
    before = plane.registered.get(agent.cluster_id)
    assert before is not None
    assert not before.evicted
    assert before.maintenance == "None"


async def test_groups_list_their_clusters(plane: ComputePlane) -> None:
    """6.5: a group has one id for all of its clusters."""
    one = await plane.platform.call("POST", CLUSTERS, {"clusterName": "ga", "clusterGroupName": "gold"})
    two = await plane.platform.call("POST", CLUSTERS, {"clusterName": "gb", "clusterGroupName": "gold"})
    assert one["clusterGroupId"] == two["clusterGroupId"]
    found = (await plane.platform.call("GET", f"/v1/accounts/{ACCOUNT}/clusterGroups"))["clusterGroups"]
    (group,) = [each for each in found if each["id"] == one["clusterGroupId"]]
    assert group["name"] == "gold"
    assert [each["name"] for each in group["clusters"]] == ["ga", "gb"]


async def test_pools_by_a_registration_of_nvidias_agent(plane: ComputePlane) -> None:
    """6.7: without a capacity it is the sum over the nodes, by how many instances fit."""
    agent = await plane.cluster(connect=False)
    assert (await agent.register())[0] == 200
    await eventually(lambda: agent.cluster_id in plane.clusters, "the live record")
    live = plane.clusters.get(agent.cluster_id)
    assert live is not None
    types = {each.instance_type: each for each in live.pools}
    assert set(types) == {kind["name"] for kind in GPUS[0]["instanceTypes"]}
    one = types["NCP.GPU.H100_2x"]
    assert (one.instances_total, one.instances_free, one.gpus_per_instance) == (16, 16, 2)
    assert (one.node_gpus, one.nodes) == (8, 2)
    assert one.attributes == {
        "cpuArch": "amd64",
        "os": "linux",
        "driverVersion": "550.90.07",
        "storage": "125Gi",
        "systemMemory": "64Gi",
        "gpuMemory": "79Gi",
    }
    assert (live.heartbeat_seconds, live.backend) == (300.0, "kubernetes")


async def test_a_heartbeat_says_what_is_free(plane: ComputePlane) -> None:
    """6.7: the live record follows each heartbeat, and a registration does not free anything."""
    agent = await plane.cluster(connect=False)
    await agent.register()
    assert (await agent.heartbeat(allocated=5))[0] == 200

    def free() -> set[int]:
        live = plane.clusters.get(agent.cluster_id)
        return set() if live is None else {each.instances_free for each in live.pools}

    await eventually(lambda: free() == {11}, "11 GPUs are free")
    seen = plane.clusters.get(agent.cluster_id)
    await agent.register()
    await eventually(lambda: plane.clusters.get(agent.cluster_id) != seen, "the registration is seen")
    assert free() == {11}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (False, False, True)),
        ({"maintenanceMode": "CordonOnly"}, (True, False, True)),
        ({"maintenanceMode": "CordonAndDrain"}, (True, True, True)),
        ({"draining": True}, (False, True, True)),
        ({"status": "unhealthy"}, (False, False, False)),
        ({"gpuUsage": {}}, (False, False, True)),
    ],
)
async def test_what_an_agent_says_of_itself(
    plane: ComputePlane, changes: dict[str, Any], expected: tuple[bool, bool, bool]
) -> None:
    """6.5: maintenanceMode, draining and status of a heartbeat."""
    agent = await plane.cluster(connect=False)
    assert (await agent.heartbeat(**changes))[0] == 200

    def found() -> tuple[bool, bool, bool] | None:
        live = plane.clusters.get(agent.cluster_id)
        return None if live is None else (live.cordoned, live.draining, live.healthy)

    await eventually(lambda: found() == expected, f"{expected}, not {found()}")


async def test_an_agent_may_send_heartbeats_more_often(plane: ComputePlane) -> None:
    """6.7: heartbeatSeconds of the registration decides how long silence is no sign."""
    agent = await plane.cluster(connect=False, attributes={"tier": "gold"})
    await agent.register(heartbeatSeconds=2.0, backend="process", attributes={"disk": "nvme"})
    await agent.heartbeat()
    await eventually(lambda: agent.cluster_id in plane.clusters, "the live record")
    live = plane.clusters.get(agent.cluster_id)
    assert live is not None
    assert (live.heartbeat_seconds, live.silent_after, live.backend) == (2.0, 10.0, "process")
    assert live.attributes == {"tier": "gold", "disk": "nvme"}


@pytest.mark.parametrize(
    ("action", "mode", "expected"),
    [("cordon", "CordonOnly", (True, False)), ("drain", "CordonAndDrain", (True, True))],
)
async def test_an_administrators_wish_holds_until_it_is_taken_back(
    plane: ComputePlane, action: str, mode: str, expected: tuple[bool, bool]
) -> None:
    """6.5: at once, also after heartbeats; the agent is told, and uncordon ends it."""
    agent = await plane.cluster(connect=False)
    await agent.heartbeat()
    one = f"{CLUSTERS}/{agent.cluster_id}"

    def found() -> tuple[bool, bool] | None:
        live = plane.clusters.get(agent.cluster_id)
        return None if live is None else (live.cordoned, live.draining)

    await eventually(lambda: found() == (False, False), "the live record")
    assert (await plane.platform.call("POST", f"{one}/{action}"))["maintenance"] == mode
    await eventually(lambda: found() == expected, "without a heartbeat")
    assert (await agent.heartbeat())[1] == {"action": "ACCEPTED", "maintenance": mode}
    assert found() == expected
    await plane.platform.call("POST", f"{one}/uncordon")
    await eventually(lambda: found() == (False, False), "uncordoned")
    assert (await agent.heartbeat())[1]["maintenance"] == "None"


async def test_a_change_replaces_what_was_registered(plane: ComputePlane) -> None:
    """6.5: PUT changes the members of the registration, not the name, and the live record follows."""
    agent = await plane.cluster(connect=False, clusterDescription="before")
    await agent.heartbeat()
    await eventually(lambda: agent.cluster_id in plane.clusters, "the live record")
    body = {"region": "eu", "clusterGroupName": "gold", "authorizedNCAIds": ["account-two"]}
    found = await plane.platform.call("PUT", f"{CLUSTERS}/{agent.cluster_id}", body)
    assert (found["region"], found["clusterDescription"]) == ("eu", "")

    def follows() -> bool:
        live = plane.clusters.get(agent.cluster_id)
        return live is not None and (live.region, live.group) == ("eu", "gold")

    await eventually(follows, "the live record follows")
    assert plane.clusters.get(agent.cluster_id).authorized_nca_ids == ("account-two",)  # type: ignore[union-attr]


async def test_rotation_gives_a_new_key_beside_the_old_one(plane: ComputePlane) -> None:
    """6.5: the old key works for 10 more minutes."""
    agent = await plane.cluster(connect=False)
    rotated = await plane.platform.call("POST", f"{CLUSTERS}/{agent.cluster_id}/rotate")
    renewed = plane.agent(agent.cluster_id, rotated["clusterKey"])
    assert renewed.credential != agent.credential
    assert (await renewed.heartbeat())[0] == 200
    assert (await agent.heartbeat())[0] == 200
    keys = (await plane.platform.call("GET", "/v2/nvcf/keys"))["keys"]
    mine = [each for each in keys if each.get("clusterId") == agent.cluster_id]
    assert sorted("expiresAt" in each for each in mine) == [False, True]


async def test_a_revoked_key_ends_at_once(plane: ComputePlane) -> None:
    """6.5: it is an API key like others; the broker connection goes, too."""
    agent = await plane.cluster()
    keys = (await plane.platform.call("GET", "/v2/nvcf/keys"))["keys"]
    (mine,) = [each for each in keys if each.get("clusterId") == agent.cluster_id]
    await plane.platform.call("DELETE", f"/v2/nvcf/keys/{mine['id']}", expect=204)
    assert (await agent.heartbeat())[0] == 401
    await eventually(lambda: agent.nats.is_closed, "its connection is ended")


async def test_a_deleted_cluster_is_told_to_end_everything(plane: ComputePlane) -> None:
    """6.5: SELF_DESTRUCT at each heartbeat; its reports are still taken, its name is free again."""
    agent, version = await plane.cluster("mortal"), await plane.version()
    await agent.heartbeat()
    request = await plane.running(agent, version)
    await plane.platform.call("DELETE", f"{CLUSTERS}/{agent.cluster_id}")
    for _ in range(2):
        assert (await agent.heartbeat())[1] == {"action": "SELF_DESTRUCT"}
    status, _ = await agent.ended(
        request, f"0-sr-{request}", "instance-terminated-service-maintenance", systemFailure=None
    )
    assert status == 200
    record = await plane.state(request, InstanceState.FAILED)
    assert record.category == "maintenance"
    await eventually(lambda: agent.cluster_id not in plane.clusters, "the live record is gone")
    await plane.platform.call("GET", f"{CLUSTERS}/{agent.cluster_id}", expect=404)
    await plane.order(version, agent.cluster_id, write=False, expect="no cluster")
    info = f"$JS.API.CONSUMER.INFO.{TERMINATION}.{TERMINATION}-{agent.cluster_id}"
    answer = json.loads((await plane.client.request(info, b"", timeout=10)).data)
    assert answer["error"]["code"] == 404
    await eventually(lambda: agent.client is None or agent.client.is_closed, "its connection is ended")
    heir = await plane.cluster("mortal")
    assert heir.cluster_id != agent.cluster_id
    assert (await heir.heartbeat())[1]["action"] == "ACCEPTED"
    assert (await agent.heartbeat())[1] == {"action": "SELF_DESTRUCT"}


async def test_an_agent_of_a_deleted_cluster_gets_neither_queues_nor_secrets(plane: ComputePlane) -> None:
    """6.5: all that is left for it are its last reports."""
    agent, version = await plane.cluster(), await plane.version()
    await agent.register()
    request = await plane.running(agent, version)
    await agent.close()
    wanted = {
        "instanceId": f"0-sr-{request}",
        "functionId": version.function_id,
        "functionVersionId": version.id,
    }
    assert (await agent.call("POST", "/v2/nvcf/agents/secret-credentials", wanted))[0] == 200
    await plane.platform.call("DELETE", f"{CLUSTERS}/{agent.cluster_id}")
    assert (await agent.call("POST", "/v2/nvcf/agents/secret-credentials", wanted))[0] == 404
    assert (await agent.register())[0] == 200
    info = f"$JS.API.CONSUMER.INFO.{TERMINATION}.{TERMINATION}-{agent.cluster_id}"
    answer = json.loads((await plane.client.request(info, b"", timeout=10)).data)
    assert answer["error"]["code"] == 404
    with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
        await agent.connect()


@pytest.mark.parametrize(
    "gpus",
    [
        [{"name": f"G{number}", "instanceTypes": []} for number in range(33)],
        [{"name": "H100", "instanceTypes": [{"name": f"t{number}"} for number in range(129)]}],
        [{"name": "H100", "instanceTypes": [{"name": "huge", "gpuCount": 1025}]}],
    ],
)
async def test_a_registration_beyond_all_machines_is_400(
    plane: ComputePlane, gpus: list[dict[str, Any]]
) -> None:
    """6.5: each type is a pool that every heartbeat writes and the autoscaler reads."""
    agent = await plane.cluster(connect=False)
    assert (await agent.register(gpus=gpus))[0] == 400


async def test_an_unknown_cluster_is_told_nothing(plane: ComputePlane) -> None:
    """6.5: no identity can be checked for it."""
    agent = await plane.cluster(connect=False)
    stranger = plane.agent(new_id(), agent.credential)
    assert (await stranger.heartbeat())[0] == 403
    assert (await plane.agent(new_id(), "x").heartbeat())[0] == 401
