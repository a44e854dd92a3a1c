"""Secrets over HTTP: set, rotated, read, counted and removed."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from nvcf_gateway.secrets.keys import create_sealing_key
from nvcf_proto.compute import account_event_id
from nvcf_proto.secrets import telemetry_secrets_path
from tests.support.platform.gateways import ACCOUNT, Platform, Version, running_platform
from tests.support.platform.secrets import (
    BASE,
    VALUE,
    agent_token,
    ess_path,
    put_secrets,
    read_secrets,
    secret_names,
    secrets_path,
    worker_token,
)
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_secrets_of_a_new_function_reach_its_instance_and_nothing_else(platform: Platform) -> None:
    given: list[dict[str, Any]] = [
        {"name": "TOKEN", "value": VALUE},
        {"name": "config.json", "value": {"a": [1, None, "ä"]}},
        {"name": "empty", "value": ""},
    ]
    version = await platform.create_version(secrets=given)
    await platform.deploy(version)
    status, answer, _ = await read_secrets(platform, await agent_token(platform, version), ess_path(version))
    assert (status, answer) == (200, {"data": {each["name"]: each["value"] for each in given}})
    shown = await platform.call("GET", f"/v2/nvcf/functions/{version.function_id}/versions/{version.id}")
    assert (
        shown["function"]["secrets"]
        == ["TOKEN", "config.json", "empty"]
        == await secret_names(platform, version)
    )
    assert VALUE not in json.dumps(shown)


async def test_put_adds_and_replaces_and_keeps_the_others(platform: Platform) -> None:
    version = await platform.deployed_version()
    one = await agent_token(platform, version)
    status, answer, tag = await read_secrets(platform, one, ess_path(version))
    assert (status, answer) == (200, {"data": {}})
    assert (await read_secrets(platform, one, ess_path(version), tag=tag))[0] == 304

    await put_secrets(platform, version, A="1", B="2")
    status, answer, changed = await read_secrets(platform, one, ess_path(version), tag=tag)
    assert (status, answer) == (200, {"data": {"A": "1", "B": "2"}})
    assert (await read_secrets(platform, one, ess_path(version), tag=changed))[0] == 304

    await put_secrets(platform, version, B="3", C="4")
    status, answer, _ = await read_secrets(platform, one, ess_path(version), tag=changed)
    assert (status, answer) == (200, {"data": {"A": "1", "B": "3", "C": "4"}})

    await platform.call("DELETE", f"{secrets_path(version)}/names/A", expect=204)
    assert (await platform.call("DELETE", f"{secrets_path(version)}/names/A", expect=404))["detail"].endswith(
        "secret A"
    )
    assert await secret_names(platform, version) == ["B", "C"]
    await platform.call("DELETE", secrets_path(version), expect=204)
    assert await secret_names(platform, version) == []
    assert (await read_secrets(platform, one, ess_path(version)))[1] == {"data": {}}
    await put_secrets(platform, version, D="again")
    assert (await read_secrets(platform, one, ess_path(version)))[1] == {"data": {"D": "again"}}


async def test_all_versions_of_a_function_at_once(platform: Platform) -> None:
    first = await platform.create_version("several")
    body = {"containerImage": "example/test:2", "secrets": [{"name": "OWN", "value": "x"}]}
    made = await platform.call("POST", f"/v2/nvcf/functions/{first.function_id}/versions", body)
    second = Version(first.function_id, made["function"]["versionId"])
    function = f"{BASE}/functions/{first.function_id}"
    await platform.call("PUT", function, {"secrets": [{"name": "ALL", "value": "y"}]}, expect=204)
    assert await secret_names(platform, first) == ["ALL"]
    assert await secret_names(platform, second) == ["ALL", "OWN"]
    listed = (await platform.call("GET", function, key="list"))["functions"]
    assert {each["versionId"]: each["secrets"] for each in listed} == {
        first.id: ["ALL"],
        second.id: ["ALL", "OWN"],
    }


@pytest.mark.parametrize(
    ("secrets", "field"),
    [
        ([], "secrets"),
        ([{"name": "A"}], "secrets[0].value"),
        ([{"name": "A", "value": None}], "secrets[0].value"),
        ([{"name": "A", "value": "ä" * 16_385}], "secrets[0].value"),
        ([{"name": "A", "value": ["x" * 32_768]}], "secrets[0].value"),
        ([{"name": "A", "value": VALUE}, {"name": "A", "value": VALUE}], "secrets[1].name"),
        ([{"name": "n" * 49, "value": VALUE}], "secrets[0].name"),
        ([{"name": "../x", "value": VALUE}], "secrets[0].name"),
        ([{"name": ".hidden", "value": VALUE}], "secrets[0].name"),
        ([{"name": "", "value": VALUE}], "secrets[0].name"),
        ([{"name": "A", "value": VALUE, "more": 1}], "secrets[0].more"),
        ([{"name": f"S{number}", "value": VALUE} for number in range(65)], "secrets"),
    ],
)
async def test_what_is_no_secret_is_refused_without_repeating_it(
    platform: Platform, secrets: list[dict[str, Any]], field: str
) -> None:
    version = await platform.create_version()
    refused = await platform.call("PUT", secrets_path(version), {"secrets": secrets}, expect=400)
    assert refused["field"] == field
    assert VALUE not in json.dumps(refused)
    if secrets:
        body = {"name": "x", "containerImage": "example/test:1", "secrets": secrets}
        assert VALUE not in json.dumps(await platform.call("POST", "/v2/nvcf/functions", body, expect=400))
    assert await secret_names(platform, version) == []


async def test_the_largest_values_pass(platform: Platform) -> None:
    version = await platform.deployed_version()
    await put_secrets(platform, version, A="ä" * 16_384, B="x" * 32_768)
    _, answer, _ = await read_secrets(platform, await agent_token(platform, version), ess_path(version))
    assert len(answer["data"]["A"].encode()) == len(answer["data"]["B"]) == 32_768


async def test_secrets_of_telemetry_endpoints_are_for_agents_only(platform: Platform) -> None:
    endpoint = {
        "name": "vendor",
        "endpoint": "https://otlp.example.com",
        "protocol": "HTTP",
        "provider": "OTEL_COLLECTOR",
        "types": ["LOGS", "TRACES"],
        "secret": {"name": "vendor-token", "value": "first-" + VALUE},
    }
    made = (await platform.call("POST", "/v2/nvcf/telemetries", endpoint))["telemetry"]
    chosen = {"logsTelemetryId": made["telemetryId"], "tracesTelemetryId": made["telemetryId"]}
    version = await platform.deployed_version(telemetries=chosen)
    agent = await agent_token(platform, version)
    where = telemetry_secrets_path(ACCOUNT, made["telemetryId"])
    status, answer, _ = await read_secrets(platform, agent, where)
    assert (status, answer) == (200, {"data": {"vendor-token": "first-" + VALUE}})
    assert (await read_secrets(platform, await worker_token(platform, version), where))[0] == 403
    other = await platform.deployed_version()
    assert (await read_secrets(platform, await agent_token(platform, other), where))[0] == 403

    one = f"{BASE}/telemetries/{made['telemetryId']}"
    await platform.call("PUT", one, {"secret": {"name": "vendor-token", "value": "second"}}, expect=204)
    assert (await read_secrets(platform, agent, where))[1] == {"data": {"vendor-token": "second"}}
    for secret, field in (
        ({"name": "other", "value": "x"}, "secret.name"),
        ({"name": "vendor-token"}, "secret.value"),
        ({"name": "vendor-token", "value": {"a": "b"}}, "secret.value"),
        ({"name": "vendor-token", "value": 7}, "secret.value"),
    ):
        assert (await platform.call("PUT", one, {"secret": secret}, expect=400))["field"] == field
    await platform.call(
        "PUT", one, {"secret": {"name": "vendor-token", "value": "x"}}, key="foreign", expect=404
    )
    await platform.call(
        "PUT", one, {"secret": {"name": "vendor-token", "value": "x"}}, key="list", expect=403
    )
    second = {**endpoint, "name": "second"}
    refused = await platform.call("POST", "/v2/nvcf/telemetries", second, expect=409)
    assert "vendor has a secret vendor-token" in refused["detail"]
    # Without a value it stays; under another name it is none any more.
    kept = {name: value for name, value in endpoint.items() if name != "name"} | {
        "secret": {"name": "vendor-token"}
    }
    await platform.call("PUT", f"/v2/nvcf/telemetries/{made['telemetryId']}", kept)
    assert (await read_secrets(platform, agent, where))[1] == {"data": {"vendor-token": "second"}}
    await platform.call(
        "PUT", f"/v2/nvcf/telemetries/{made['telemetryId']}", {**kept, "secret": {"name": "file-token"}}
    )
    assert (await read_secrets(platform, agent, where))[1] == {"data": {}}


async def test_changes_are_events_without_values(platform: Platform) -> None:
    version = await platform.create_version(secrets=[{"name": "A", "value": VALUE}])
    await put_secrets(platform, version, A=VALUE + "2", B=VALUE + "3")
    await platform.call("DELETE", f"{secrets_path(version)}/names/B", expect=204)
    query = f"/v2/nvcf/events?kind=secret&functionVersionId={version.id}"
    events = (await platform.call("GET", query, key="list"))["events"]
    found = [(each["data"]["action"], each["data"]["names"]) for each in reversed(events)]
    assert found == [("set", "A"), ("set", "B"), ("rotate", "A"), ("delete", "B")]
    assert all(each["data"]["by"].startswith("apikey:") for each in events)
    assert VALUE not in json.dumps(events)
    # Those of an account itself are in the list of all.
    registry = {
        "registryHostname": "events.example.com",
        "secret": {"name": "events", "value": base64.b64encode(b"me:" + VALUE.encode()).decode()},
        "artifactTypes": ["HELM"],
    }
    await platform.call("POST", "/v2/nvcf/registry-credentials", registry)
    events = (await platform.call("GET", "/v2/nvcf/events?kind=secret", key="list"))["events"]
    assert events[0]["functionVersionId"] == account_event_id(ACCOUNT)
    assert "events.example.com" in events[0]["text"]
    foreign = (await platform.call("GET", "/v2/nvcf/events?kind=secret", key="foreign"))["events"]
    assert foreign == []


async def test_quotas_bound_an_account_and_no_other(tmp_path: Path) -> None:
    flags = ("--quota", "secrets=3", "--quota", "secret-bytes=4000")
    async with running_platform(tmp_path, flags=flags) as small:
        version = await small.create_version(
            secrets=[{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
        )
        refused = await put_secrets(small, version, C="3", D="4", expect=507)
        assert (refused["quota"], refused["limit"], refused["used"]) == ("secrets", 3, 2)
        await put_secrets(small, version, A="5", C="3")
        refused = await put_secrets(small, version, A="x" * 5000, expect=507)
        assert refused["quota"] == "secret-bytes"
        # What takes no more room always passes.
        await put_secrets(small, version, A="6")
        await small.call("DELETE", secrets_path(version), expect=204)
        await put_secrets(small, version, D="4", E="5", F="6")
        used = {
            each["quota"]: each["used"] for each in (await small.call("GET", "/v2/nvcf/quotas"))["quotas"]
        }
        assert used["secrets"] == 3
        body = {"name": "x", "containerImage": "a/b:1", "secrets": [{"name": "A", "value": VALUE}]}
        await small.call("POST", "/v2/nvcf/functions", body, key="foreign")


async def test_keys_are_rotated_by_adding_one_and_deleting_the_old(tmp_path: Path) -> None:
    keys = tmp_path / "sealing"
    keys.mkdir()
    create_sealing_key(keys / "1.key")
    async with running_platform(tmp_path, flags=("--sealing-keys", str(keys))) as running:
        version = await running.deployed_version(secrets=[{"name": "A", "value": VALUE}])
        own = await agent_token(running, version)
        _, _, before = await read_secrets(running, own, ess_path(version))
        create_sealing_key(keys / "2.key")

        async def resealed() -> bool:
            return "sealed with the current key" in running.gateway.child.text()

        await eventually(resealed, "the secret is sealed again")
        (keys / "1.key").unlink()
        status, answer, after = await read_secrets(running, own, ess_path(version))
        assert (status, answer) == (200, {"data": {"A": VALUE}})
        assert after != before


async def test_without_a_sealing_key_nothing_is_kept(tmp_path: Path) -> None:
    async with running_platform(tmp_path, gateways=0) as running:
        (tmp_path / "sealing.key").unlink()
        await running.start_gateway()
        version = await running.deployed_version()
        assert "--sealing-keys" in (await put_secrets(running, version, A=VALUE, expect=501))["detail"]
        body = {"name": "x", "containerImage": "a/b:1", "secrets": [{"name": "A", "value": VALUE}]}
        await running.call("POST", "/v2/nvcf/functions", body, expect=501)
        assert len((await running.call("GET", "/v2/nvcf/functions"))["functions"]) == 1
        assert (await read_secrets(running, await agent_token(running, version), ess_path(version)))[1] == {
            "data": {}
        }
