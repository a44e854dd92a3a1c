"""Telemetry endpoints over HTTP, and versions that choose among them."""

from __future__ import annotations

from typing import Any

import pytest

from nvcf_proto.ids import new_id
from nvcf_proto.models import Scope
from tests.support.platform.gateways import Platform

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/v2/nvcf/telemetries"
PROMETHEUS = {
    "endpoint": "https://prometheus.example.com/api/v1/write",
    "protocol": "HTTP",
    "provider": "PROMETHEUS",
    "types": ["METRICS"],
    "secret": {"name": "prometheus-secret"},
}


async def create(platform: Platform, name: str, **changes: Any) -> dict[str, Any]:
    body = {**PROMETHEUS, "name": name, **changes}
    return dict((await platform.call("POST", PATH, body))["telemetry"])


async def test_life_of_an_endpoint(platform: Platform) -> None:
    made = await create(platform, "metrics-one")
    assert made["secretFiles"] == ["prometheus-secret-clientCert", "prometheus-secret-clientKey"]
    assert {key: made[key] for key in PROMETHEUS} == PROMETHEUS
    one = f"{PATH}/{made['telemetryId']}"
    assert (await platform.call("GET", one, key="list"))["telemetry"] == made
    assert made in (await platform.call("GET", PATH))["telemetries"]

    refused = await platform.call("POST", PATH, {**PROMETHEUS, "name": "metrics-one"}, expect=409)
    assert "change it (PUT)" in refused["detail"]
    changed = {
        **PROMETHEUS,
        "endpoint": "https://other.example.com/write",
        "configuration": {"auth": "BEARER"},
    }
    after = (await platform.call("PUT", one, changed))["telemetry"]
    assert after["endpoint"] == "https://other.example.com/write"
    assert after["secretFiles"] == ["prometheus-secret"]
    assert (after["name"], after["createdAt"]) == ("metrics-one", made["createdAt"])

    await platform.call("DELETE", one, expect=204)
    await platform.call("GET", one, expect=404)
    again = await create(platform, "metrics-one")
    assert again["telemetryId"] == made["telemetryId"]


async def test_the_secrets_name_serves_where_no_other_is_given(platform: Platform) -> None:
    made = (await platform.call("POST", PATH, {**PROMETHEUS, "secret": {"name": "as-the-peer"}}))["telemetry"]
    assert made["name"] == "as-the-peer"


async def test_a_secrets_value_is_taken_and_not_repeated(platform: Platform) -> None:
    secret = {"name": "leaky", "value": {"clientKey": "hunter2"}}
    refused = await platform.call("POST", PATH, {**PROMETHEUS, "name": "leaky", "secret": secret}, expect=400)
    assert refused["field"] == "secret.value"
    assert "the keys clientCert, clientKey" in refused["detail"]
    secret = {"name": "leaky", "value": {"clientKey": "hunter2", "clientCert": "hunter3"}}
    made = await create(platform, "leaky", secret=secret)
    assert made["secret"] == {"name": "leaky"}
    for text in (refused, made, await platform.call("GET", PATH)):
        assert "hunter" not in str(text)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"types": ["LOGS"]}, "types[0]"),
        ({"protocol": "GRPC"}, "protocol"),
        ({"protocol": "http"}, "protocol"),
        ({"provider": "SOMEBODY"}, "provider"),
        ({"endpoint": "prometheus:9090"}, "endpoint"),
        ({"secret": None, "configuration": {"auth": "BASIC"}}, "secret"),
        ({"name": "a/b"}, "name"),
        ({"name": "in-region", "region": "x"}, "region"),
        ({"configuration": {"allowMetrics": ["("]}}, "configuration.allowMetrics[0]"),
    ],
)
async def test_wrong_fields_are_named(platform: Platform, changes: dict[str, Any], field: str) -> None:
    refused = await platform.call("POST", PATH, {**PROMETHEUS, "name": "wrong", **changes}, expect=400)
    assert refused["field"] == field


async def test_belongs_to_its_account_and_needs_the_scope(platform: Platform) -> None:
    made = await create(platform, "mine")
    one = f"{PATH}/{made['telemetryId']}"
    foreign = await create_as_foreigner(platform)
    assert foreign["telemetryId"] != made["telemetryId"]
    for method, body in (("GET", None), ("PUT", PROMETHEUS), ("DELETE", None)):
        await platform.call(method, one, body, key="foreign", expect=404)
    await platform.call("POST", PATH, {**PROMETHEUS, "name": "no"}, key="list", expect=403)
    await platform.call("GET", PATH, key="invoke", expect=403)
    await platform.call("GET", f"{PATH}/{new_id()}", expect=404)
    await platform.call("GET", f"{PATH}/mine", expect=404)


async def create_as_foreigner(platform: Platform) -> dict[str, Any]:
    answer = await platform.call("POST", PATH, {**PROMETHEUS, "name": "mine"}, key="foreign")
    return dict(answer["telemetry"])


async def test_a_version_chooses_among_the_accounts_endpoints(platform: Platform) -> None:
    metrics = await create(platform, "chosen")
    foreign = (await platform.call("POST", PATH, {**PROMETHEUS, "name": "theirs"}, key="foreign"))[
        "telemetry"
    ]
    chosen = {"metricsTelemetryId": metrics["telemetryId"]}
    version = await platform.create_version("watched", telemetries=chosen)
    path = f"/v2/nvcf/functions/{version.function_id}/versions/{version.id}"
    assert (await platform.call("GET", path))["function"]["telemetries"] == chosen

    one = f"{PATH}/{metrics['telemetryId']}"
    refused = await platform.call("DELETE", one, expect=409)
    assert f"version {version.id} of watched uses it" in refused["detail"]
    elsewhere = {
        **PROMETHEUS,
        "provider": "SPLUNK",
        "types": ["LOGS"],
        "endpoint": "https://splunk.example.com:8088/services/collector",
    }
    refused = await platform.call("PUT", one, elsewhere, expect=409)
    assert "sends its METRICS there" in refused["detail"]
    await platform.call("DELETE", path, expect=204)
    await platform.call("DELETE", one, expect=204)

    wrong = {
        "telemetries.logsTelemetryId": {
            "logsTelemetryId": (await create(platform, "only-metrics"))["telemetryId"]
        },
        "telemetries.metricsTelemetryId": {"metricsTelemetryId": foreign["telemetryId"]},
        "telemetries.tracesTelemetryId": {"tracesTelemetryId": new_id()},
        "telemetries.traces": {"traces": new_id()},
    }
    for field, telemetries in wrong.items():
        body = {"name": "unwatched", "containerImage": "example/test:1", "telemetries": telemetries}
        refused = await platform.call("POST", "/v2/nvcf/functions", body, expect=400)
        assert refused["field"] == field


async def test_keys_for_some_functions_manage_no_endpoints(platform: Platform) -> None:
    version = await platform.create_version("limited")
    wish = {"scopes": [Scope.MANAGE.value], "functionIds": [version.function_id]}
    key = (await platform.call("POST", "/v2/nvcf/keys", wish))["key"]["key"]
    platform.keys["limited"] = key
    refused = await platform.call("POST", PATH, {**PROMETHEUS, "name": "no"}, key="limited", expect=403)
    assert "manage telemetry endpoints" in refused["detail"]
