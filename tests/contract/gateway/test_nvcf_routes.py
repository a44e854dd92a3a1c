"""Routes of cloud-functions around functions: metadata, sharing, queues, GPUs and accounts."""

from __future__ import annotations

import time
from typing import Any

import pytest

from nvcf_proto.compute import Cluster, GpuPool
from nvcf_proto.ids import new_id
from tests.support.platform.gateways import ACCOUNT, Platform, Version
from tests.support.platform.icms import SPECIFICATION
from tests.support.platform.records import known_clusters
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

LLM_MODEL = {
    "name": "llama",
    "llmConfig": {"uris": ["/v1/chat/completions"], "tokenRateLimit": "10-S", "tokenizer": "t"},
}


def below(version: Version, subject: str = "functions") -> str:
    return f"/v2/nvcf/{subject}/{version.function_id}/versions/{version.id}"


async def test_function_ids(platform: Platform) -> None:
    versions = [await platform.create_version() for _ in range(2)]
    found = (await platform.call("GET", "/v2/nvcf/functions/ids", key="list"))["functionIds"]
    assert [each for each in found if each in {one.function_id for one in versions}] == [
        one.function_id for one in versions
    ]
    foreign = (await platform.call("GET", "/v2/nvcf/functions/ids", key="foreign"))["functionIds"]
    assert not {one.function_id for one in versions} & set(foreign)


async def test_a_version_is_changed_in_part(platform: Platform) -> None:
    version = await platform.create_version(functionType="LLM", models=[LLM_MODEL], description="old")
    body = {
        "tags": ["x"],
        "rateLimit": {"rateLimit": "5-S"},
        "modelUpdates": [{"modelName": "llama", "llmConfig": {"routingMethod": "RANDOM"}}],
        "llmInvocationConfig": {"priority": {"defaultPriority": 4}},
    }
    changed = (await platform.call("PUT", below(version), body))["function"]
    assert (changed["tags"], changed["description"]) == (["x"], "old")
    assert changed["rateLimit"]["rateLimit"] == "5-S"
    config = changed["models"][0]["llmConfig"]
    assert (config["routingMethod"], config["tokenRateLimit"]) == ("random", "10-S")
    found = (await platform.call("GET", below(version)))["function"]
    assert found["llmInvocationConfig"] == body["llmInvocationConfig"]
    metadata = {"tags": ["y", "z"]}
    path = below(version, "metadata/functions")
    assert (await platform.call("PUT", path, metadata))["function"]["tags"] == ["y", "z"]
    for refused, field in (
        ({"modelUpdates": [{"modelName": "other", "llmConfig": {"routingMethod": "pulsar"}}]}, "modelName"),
        ({"containerImage": "x"}, "containerImage"),
        ({}, "tags"),
    ):
        problem = await platform.call("PUT", below(version), refused, expect=400)
        assert problem["field"].endswith(field)


async def test_priorities_are_those_of_all_versions(platform: Platform) -> None:
    first = await platform.create_version(functionType="LLM", models=[LLM_MODEL])
    base = f"/v2/nvcf/functions/{first.function_id}/versions"
    body = {"containerImage": "x/y:2", "functionType": "LLM", "models": [LLM_MODEL]}
    second = Version(first.function_id, (await platform.call("POST", base, body))["function"]["versionId"])
    wanted = {"priority": {"defaultPriority": 7, "perAccountPriority": {"account-two": 0}}}
    await platform.call("PUT", below(first), {"llmInvocationConfig": wanted})
    for each in (first, second):
        assert (await platform.call("GET", below(each)))["function"]["llmInvocationConfig"] == wanted
    third = (await platform.call("POST", base, body))["function"]
    assert third["llmInvocationConfig"] == wanted
    plain = await platform.create_version()
    refused = await platform.call("PUT", below(plain), {"llmInvocationConfig": wanted}, expect=400)
    assert refused["field"] == "llmInvocationConfig"


async def test_rate_limits_under_the_route_of_cloud_functions(platform: Platform) -> None:
    version = await platform.create_version()
    path = below(version, "ratelimit/functions")
    body = {"rateLimit": {"rateLimit": "5-S", "exemptedNcaIds": ["account-two"], "syncCheck": True}}
    shown = (await platform.call("PUT", path, body))["function"]["rateLimit"]
    assert shown.items() >= body["rateLimit"].items()
    policy = await platform.call("GET", f"{below(version)}/rate-limit")
    assert (policy["config"]["rate"], policy["config"]["excludedNcaIds"]) == ("5-S", ["account-two"])
    assert "rateLimit" not in (await platform.call("DELETE", path))["function"]
    await platform.call("GET", f"{below(version)}/rate-limit", expect=404)


async def test_functions_are_shared_account_by_account(platform: Platform) -> None:
    version = await platform.create_version()
    base = "/v2/nvcf/authorizations/functions"
    function = f"{base}/{version.function_id}"

    def party(account: str) -> dict[str, Any]:
        return {"authorizedParty": {"ncaId": account}}

    await platform.call("PATCH", f"{function}/add", party("account-two"), expect=404)
    body = {"authorizedParties": [{"ncaId": "account-two"}, {"ncaId": "account-two"}]}
    made = (await platform.call("POST", function, body))["function"]
    assert made["authorizedParties"] == [{"ncaId": "account-two"}]
    await platform.call("PATCH", f"{function}/add", party("account-two"), expect=409)
    added = (await platform.call("PATCH", f"{function}/add", party("account-three")))["function"]
    assert added["authorizedParties"] == [{"ncaId": "account-two"}, {"ncaId": "account-three"}]
    one = {"id": version.function_id, "versionId": version.id, "ncaId": ACCOUNT,
        "authorizedParties": added["authorizedParties"]
    }  # fmt: skip
    assert (await platform.call("GET", f"{function}/versions/{version.id}"))["function"] == one
    assert (await platform.call("GET", function))["functions"] == [one]
    assert one in (await platform.call("GET", base))["functions"]
    old = await platform.call("GET", f"/v2/nvcf/functions/{version.function_id}/authorizations")
    assert old["function"]["authorizedParties"] == added["authorizedParties"]
    await platform.call("PATCH", f"{function}/remove", party("account-nine"), expect=404)
    left = (await platform.call("PATCH", f"{function}/remove", party("account-two")))["function"]
    assert left["authorizedParties"] == [{"ncaId": "account-three"}]
    for method, target, own in (
        ("POST", function, {"authorizedParties": [{"ncaId": ACCOUNT}]}),
        ("PATCH", f"{function}/add", party(ACCOUNT)),
        ("PATCH", f"{function}/add", party("*")),
    ):
        problem = await platform.call(method, target, own, expect=400)
        assert problem["field"].endswith("ncaId")
    assert (await platform.call("DELETE", function))["function"]["authorizedParties"] == []
    assert one["id"] not in {each["id"] for each in (await platform.call("GET", base))["functions"]}


async def queue(platform: Platform, version: Version, key: str = "list") -> dict[str, Any]:
    path = f"/v2/nvcf/queues/functions/{version.function_id}/versions/{version.id}"
    (found,) = (await platform.call("GET", path, key=key))["queues"]
    return dict(found)


async def polled(platform: Platform, version: Version, key: str = "invoke") -> str:
    """Make a call that gets 202, and return its id."""
    headers = {**platform.authorization(key), "NVCF-POLL-SECONDS": "1"}
    url = platform.gateway.url + version.pexec
    async with platform.session.post(url, data=b"{}", headers=headers) as response:
        assert response.status == 202
        return response.headers["nvcf-reqid"]


async def test_queues_and_positions(platform: Platform) -> None:
    version = await platform.deployed_version(keep_queued=True)
    assert (await queue(platform, version))["queueDepth"] == 0
    first = await polled(platform, version)
    second = await polled(platform, version)
    for place, request in enumerate((first, second), start=1):
        found = await platform.call("GET", f"/v2/nvcf/queues/{request}/position", key="invoke")
        assert found == {
            "functionId": version.function_id,
            "functionVersionId": version.id,
            "positionInQueue": place,
        }
        await platform.call("GET", f"/v2/nvcf/queues/{request}/position", key="foreign", expect=404)

    async def two_wait() -> bool:
        return bool((await queue(platform, version))["queueDepth"] == 2)

    await eventually(two_wait, "both requests are counted")
    found = await queue(platform, version)
    assert (found["functionName"], found["functionStatus"]) == ("test-function", "DEPLOYING")
    whole = await platform.call("GET", f"/v2/nvcf/queues/functions/{version.function_id}")
    assert [each["functionVersionId"] for each in whole["queues"]] == [version.id]
    sharing = f"/v2/nvcf/authorizations/functions/{version.function_id}"
    await platform.call("GET", f"/v2/nvcf/queues/functions/{version.function_id}", key="foreign", expect=404)
    await platform.call("POST", sharing, {"authorizedParties": [{"ncaId": "account-two"}]})
    assert (await queue(platform, version, key="foreign"))["queueDepth"] == 2
    await platform.call("DELETE", f"/v2/nvcf/pexec/status/{first}", key="invoke", expect=204)
    await platform.call("GET", f"/v2/nvcf/queues/{first}/position", key="invoke", expect=404)
    await platform.call("GET", f"/v2/nvcf/queues/{new_id()}/position", key="invoke", expect=404)


async def test_gpus_groups_and_their_use(platform: Platform) -> None:
    pools = (GpuPool("H100", "NCP.GPU.H100_1x", 8, 8), GpuPool("H100", "NCP.GPU.H100_8x", 1, 1))
    one = Cluster("c-one", "east", time.time(), pools, "group-a", "kubernetes")
    two = Cluster("c-two", "west", time.time(), pools[:1], None, "kubernetes")
    async with known_clusters(platform, one, two):

        async def known() -> bool:
            return len((await platform.call("GET", "/v2/nvcf/clusterGroups"))["clusterGroups"]) == 2

        await eventually(known, "the gateway knows the clusters")
        groups = (await platform.call("GET", "/v2/nvcf/clusterGroups", key="list"))["clusterGroups"]
        assert [each["name"] for each in groups] == ["c-two", "group-a"]
        assert groups[1]["gpus"] == [
            {"name": "H100", "instanceTypes": [{"name": "NCP.GPU.H100_1x"}, {"name": "NCP.GPU.H100_8x"}]}
        ]
        assert groups[1]["clusters"] == [{"id": "c-one", "name": "c-one", "region": "east"}]
        url = platform.gateway.url + "/v2/nvcf/supportedGpus"
        async with platform.session.get(url, headers=platform.authorization("list")) as response:
            assert await response.json() == [
                {"gpu": "H100", "backend": "c-two"},
                {"gpu": "H100", "backend": "group-a"},
            ]
        version = await platform.create_version()
        await platform.deploy(version, **SPECIFICATION, minInstances=1, maxInstances=4, backend="group-a")
        usage = (await platform.call("GET", f"/v2/nvcf/accounts/{ACCOUNT}/usage/gpus"))["gpus"]
        (found,) = (each for each in usage if each["gpu"] == "H100")
        assert found == {
            **SPECIFICATION,
            "currentMaxUsage": 4,
            "currentMinUsage": 1,
            "placements": [
                {
                    "clusterId": "c-one",
                    "cluster": "c-one",
                    "clusterGroup": "group-a",
                    "region": "east",
                    "currentMaxUsage": 4,
                    "currentMinUsage": 1,
                }
            ],
        }
        assert (await platform.call("GET", "/v2/nvcf/usage/gpus", key="foreign"))["gpus"] == []


async def test_an_account_is_its_own(platform: Platform) -> None:
    version = await platform.create_version()
    (only,) = (await platform.call("GET", "/v2/nvcf/accounts", key="list"))["accounts"]
    own = (await platform.call("GET", f"/v2/nvcf/accounts/{ACCOUNT}"))["account"]
    assert own == only
    assert own["ncaId"] == ACCOUNT
    assert own["currentNumberFunctions"] >= 1
    base = f"/v2/nvcf/accounts/{ACCOUNT}"
    alias = below(version).replace("/v2/nvcf", base)
    assert await platform.call("GET", alias) == await platform.call("GET", below(version))
    problems = [
        await platform.call("GET", f"/v2/nvcf/accounts/{name}{rest}", key="foreign", expect=404)
        for name in (ACCOUNT, "nobody")
        for rest in ("", "/functions", "/usage/gpus", f"/functions/{version.function_id}")
    ]
    assert {each["detail"] for each in problems} == {
        f"Account '{name}': Not found" for name in (ACCOUNT, "nobody")
    }
    await platform.call("PUT", alias, {"tags": ["x"]}, key="foreign", expect=404)
    await platform.call("PUT", alias, {"tags": ["x"]}, key="list", expect=403)
    await platform.call("PUT", alias, {"tags": ["x"]})


async def test_assets_are_listed_to_their_account(platform: Platform) -> None:
    body = {"contentType": "text/plain", "description": "one"}
    made = await platform.call("POST", "/v2/nvcf/assets", body, key="invoke")
    listed = (await platform.call("GET", "/v2/nvcf/assets", key="invoke"))["assets"]
    assert made["assetId"] not in {each["assetId"] for each in listed}, "it is not uploaded yet"
    headers = {"Content-Type": "text/plain", "x-amz-meta-nvcf-asset-description": "one"}
    async with platform.session.put(made["uploadUrl"], data=b"bytes", headers=headers) as response:
        assert response.status == 200
    listed = (await platform.call("GET", "/v2/nvcf/assets", key="invoke"))["assets"]
    assert {"assetId": made["assetId"], "contentType": "text/plain", "description": "one"} in listed
    foreign = (await platform.call("GET", "/v2/nvcf/assets", key="foreign"))["assets"]
    assert made["assetId"] not in {each["assetId"] for each in foreign}
    await platform.call("GET", "/v2/nvcf/assets", key="list", expect=403)


async def test_other_accounts_learn_nothing(platform: Platform) -> None:
    version = await platform.deployed_version()
    party = {"authorizedParty": {"ncaId": "account-two"}}
    sharing = f"/v2/nvcf/authorizations/functions/{version.function_id}"
    attacks: list[tuple[str, str, Any]] = [
        ("PUT", below(version), {"tags": ["x"]}),
        ("PUT", below(version, "metadata/functions"), {"tags": ["x"]}),
        ("PUT", below(version, "ratelimit/functions"), {"rateLimit": {"rateLimit": "1-S"}}),
        ("DELETE", below(version, "ratelimit/functions"), None),
        ("GET", sharing, None),
        ("GET", f"{sharing}/versions/{version.id}", None),
        ("POST", sharing, {"authorizedParties": [{"ncaId": "account-two"}]}),
        ("PATCH", f"{sharing}/add", party),
        ("PATCH", f"{sharing}/remove", party),
        ("DELETE", sharing, None),
        ("GET", f"/v2/nvcf/queues/functions/{version.function_id}", None),
        ("GET", below(version, "queues/functions"), None),
    ]
    before = await platform.call("GET", below(version))
    for method, path, body in attacks:
        existing = await platform.call(method, path, body, key="foreign", expect=404)
        other = path.replace(version.function_id, new_id()).replace(version.id, new_id())
        missing = await platform.call(method, other, body, key="foreign", expect=404)
        assert len(existing["detail"]) == len(missing["detail"]), "existing and missing ones look alike"
        alias = path.replace("/v2/nvcf", f"/v2/nvcf/accounts/{ACCOUNT}")
        await platform.call(method, alias, body, key="foreign", expect=404)
        if method != "GET":
            await platform.call(method, path, body, key="list", expect=403)
    assert await platform.call("GET", below(version)) == before
    listed = await platform.call("GET", "/v2/nvcf/authorizations/functions", key="foreign")
    assert version.function_id not in {each["id"] for each in listed["functions"]}
