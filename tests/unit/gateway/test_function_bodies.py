"""What a function may be created with and changed to: each rule names its field."""

from __future__ import annotations

from typing import Any

import pytest

from nvcf_gateway.management.function_bodies import (
    FunctionCreation,
    MetadataUpdate,
    RateLimitSetting,
    VersionCreation,
    VersionUpdate,
)
from nvcf_gateway.management.functions import build_version
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.ids import new_id
from nvcf_proto.models import Function, FunctionVersion, RateLimit

IMAGE = {"containerImage": "nvcr.io/org/image:1"}
CHART = {"helmChart": "https://helm.example/charts/echo-1.0.0.tgz", "helmChartServiceName": "entrypoint"}
MODEL = {"name": "llama", "version": "1.0", "uri": "https://registry.example/models/llama/1.0"}
PROCESS = {"python": "/usr/bin/python3", "file": "/srv/f.py", "workingDirectory": "/srv"}
LLM = {**IMAGE, "functionType": "LLM"}

EVERYTHING: dict[str, Any] = {
    **IMAGE,
    "name": "everything",
    "inferenceUrl": "/v1/infer",
    "inferencePort": 9000,
    "health": {
        "protocol": "gRPC",
        "uri": "/ready",
        "port": 9001,
        "timeout": "PT1M30S",
        "expectedStatusCode": 204,
    },
    "healthUri": "/old",
    "containerArgs": "--model 'a b' -v",
    "containerEnvironment": [{"key": "A", "value": "b"}, {"key": "EMPTY", "value": ""}],
    "models": [
        {
            **MODEL,
            "llmConfig": {
                "uris": ["/v1/chat/completions"],
                "tokenizer": "t",
                "tokenRateLimit": "100-S, 5-D",
                "inputTokenRateLimit": "1-W",
                "outputTokenRateLimit": "7-M",
                "routingMethod": "round-robin",
            },
        }
    ],
    "resources": [{"name": "r", "version": "2", "uri": "ngc://r"}],
    "utilsContainerImage": "GO",
    "apiBodyFormat": "PREDICT_V2",
    "tags": ["a:b", "c=d"],
    "description": "d" * 256,
    "functionType": "LLM",
    "rateLimit": {"rateLimit": "100-S", "exemptedNcaIds": ["other"], "syncCheck": True},
    "llmInvocationConfig": {"priority": {"defaultPriority": 3, "perAccountPriority": {"other": 0}}},
    "telemetries": {"logsTelemetryId": new_id()},
}


def built(body: dict[str, Any]) -> FunctionVersion:
    wanted = FunctionCreation.from_dict({"name": "f", **body})
    return build_version(wanted, Function(new_id(), wanted.name, "account", 1.0), new_id(), 2.0)


def test_every_field_is_kept_in_the_record() -> None:
    version = built(EVERYTHING)
    members = version.to_dict()
    for name, value in EVERYTHING.items():
        if name != "rateLimit":
            assert members[name] == value, name
    assert version.rate_limit == RateLimit("100-S", ("other",), sync_check=True)
    assert FunctionVersion.from_json(version.to_json()) == version


@pytest.mark.parametrize(
    "body",
    [
        IMAGE,
        CHART,
        {"models": [MODEL]},
        {"process": PROCESS},
        {**IMAGE, "models": [MODEL]},
        {"process": PROCESS, "functionType": "LLM"},
        {**LLM, "models": [{"name": "m", "llmConfig": {"uris": ["/v1/completions"]}}]},
        {**IMAGE, "health": {}},
        {**IMAGE, "inferencePort": 0},
        {**IMAGE, "health": None, "models": None, "rateLimit": None},
        {**IMAGE, "name": "with.dots"},
        {**IMAGE, "tags": []},
        {**CHART, "containerArgs": ""},
        {**CHART, "containerEnvironment": []},
    ],
)
def test_functions_of_each_kind_can_be_created(body: dict[str, Any]) -> None:
    built(body)


def test_defaults_of_health_are_those_of_a_triton_server() -> None:
    assert built({**IMAGE, "health": {}}).to_dict()["health"] == {
        "protocol": "HTTP",
        "uri": "/v2/health/ready",
        "port": 8000,
        "timeout": "PT10S",
        "expectedStatusCode": 200,
    }


def test_repeated_tags_count_once_and_routing_methods_have_one_spelling() -> None:
    config = {"uris": ["/v1/a", "/v1/a"], "routingMethod": "Power_Of_Two"}
    version = built({**LLM, "tags": ["a", "b", "a"], "models": [{"name": "m", "llmConfig": config}]})
    assert version.tags == ("a", "b")
    found = version.models[0].llm_config
    assert found is not None
    assert (found.routing_method, found.uris) == ("power-of-two", ("/v1/a",))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "containerImage"),
        ({"models": []}, "containerImage"),
        ({**IMAGE, **CHART}, "containerImage"),
        ({**IMAGE, "process": PROCESS}, "containerImage"),
        ({**CHART, "process": PROCESS}, "helmChart"),
        ({"helmChart": CHART["helmChart"]}, "helmChartServiceName"),
        ({**CHART, "helmChart": "https://helm.example/echo"}, "helmChart"),
        ({**CHART, "helmChart": "oci://helm.example/echo"}, "helmChart"),
        ({**IMAGE, "helmChartServiceName": "s"}, "helmChartServiceName"),
        ({**CHART, "helmChartServiceName": "Not_A_Service"}, "helmChartServiceName"),
        ({**CHART, "containerArgs": "-v"}, "containerArgs"),
        ({**CHART, "containerEnvironment": [{"key": "A", "value": "b"}]}, "containerEnvironment"),
        ({**IMAGE, "containerArgs": "'open"}, "containerArgs"),
        ({**IMAGE, "containerEnvironment": [{"value": "b"}]}, "containerEnvironment[0].key"),
        ({**IMAGE, "containerEnvironment": [{"key": "1A"}]}, "containerEnvironment[0].key"),
        ({**IMAGE, "containerEnvironment": [{"key": "A"}, {"key": "A"}]}, "containerEnvironment[1].key"),
        ({**IMAGE, "health": {"protocol": "TCP"}}, "health.protocol"),
        ({**IMAGE, "health": {"uri": ""}}, "health.uri"),
        ({**IMAGE, "health": {"uri": "ready"}}, "health.uri"),
        ({**IMAGE, "health": {"port": 0}}, "health.port"),
        ({**IMAGE, "health": {"port": 65_536}}, "health.port"),
        ({**IMAGE, "health": {"timeout": "10s"}}, "health.timeout"),
        ({**IMAGE, "health": {"timeout": "PT0S"}}, "health.timeout"),
        ({**IMAGE, "health": {"timeout": "PT2H"}}, "health.timeout"),
        ({**IMAGE, "health": {"expectedStatusCode": 600}}, "health.expectedStatusCode"),
        ({**IMAGE, "health": {"surprise": 1}}, "health.surprise"),
        ({**IMAGE, "healthUri": "x"}, "healthUri"),
        ({**IMAGE, "inferencePort": -1}, "inferencePort"),
        ({**IMAGE, "inferencePort": 65_536}, "inferencePort"),
        ({**IMAGE, "models": [{"name": "m", "uri": "u"}]}, "models[0].version"),
        ({**IMAGE, "models": [{"name": "m", "version": "1"}]}, "models[0].uri"),
        ({**IMAGE, "models": [MODEL, MODEL]}, "models[1].name"),
        ({**IMAGE, "models": [{**MODEL, "name": "../etc"}]}, "models[0].name"),
        ({**IMAGE, "models": [{**MODEL, "name": ""}]}, "models[0].name"),
        ({**IMAGE, "resources": [{"name": "r", "version": "1"}]}, "resources[0].uri"),
        ({**IMAGE, "resources": [MODEL, MODEL]}, "resources[1].name"),
        (LLM, "models"),
        ({**LLM, "models": [MODEL]}, "models[0].llmConfig.uris"),
        ({**LLM, "models": [{"name": "m", "llmConfig": {}}]}, "models[0].llmConfig.uris"),
        ({**LLM, "models": [{"name": "m", "llmConfig": {"uris": ["v1"]}}]}, "models[0].llmConfig.uris[0]"),
        (
            {**LLM, "models": [{"name": "m", "llmConfig": {"uris": ["/v1"], "routingMethod": "best"}}]},
            "models[0].llmConfig.routingMethod",
        ),
        *(
            (
                {**LLM, "models": [{"name": "m", "llmConfig": {"uris": ["/v1"], name: rate}}]},
                f"models[0].llmConfig.{name}",
            )
            for name in ("tokenRateLimit", "inputTokenRateLimit", "outputTokenRateLimit")
            for rate in ("", "0-S", "5-Y", "5", "1-S,2-S", "1-S;2-M")
        ),
        ({**IMAGE, "llmInvocationConfig": {}}, "llmInvocationConfig"),
        (
            {**LLM, "llmInvocationConfig": {"priority": {"perAccountPriority": {"a": 1}}}},
            "llmInvocationConfig.priority.defaultPriority",
        ),
        (
            {**LLM, "llmInvocationConfig": {"priority": {"defaultPriority": 2**32}}},
            "llmInvocationConfig.priority.defaultPriority",
        ),
        (
            {
                **LLM,
                "llmInvocationConfig": {"priority": {"defaultPriority": 1, "perAccountPriority": {"a": -1}}},
            },
            "llmInvocationConfig.priority.perAccountPriority.a",
        ),
        ({**IMAGE, "apiBodyFormat": "JSON"}, "apiBodyFormat"),
        ({**IMAGE, "utilsContainerImage": "a b"}, "utilsContainerImage"),
        ({**IMAGE, "tags": ["t"] * 65}, "tags"),
        ({**IMAGE, "tags": ["t" * 129]}, "tags[0]"),
        ({**IMAGE, "tags": ["ok", "not ok"]}, "tags[1]"),
        ({**IMAGE, "description": "d" * 257}, "description"),
        ({**IMAGE, "functionType": "BATCH"}, "functionType"),
        ({**IMAGE, "rateLimit": {}}, "rateLimit.rateLimit"),
        ({**IMAGE, "rateLimit": {"rateLimit": "5"}}, "rateLimit.rateLimit"),
        (
            {**IMAGE, "rateLimit": {"rateLimit": "5-S", "exemptedNcaIds": ["a b"]}},
            "rateLimit.exemptedNcaIds[0]",
        ),
        ({**IMAGE, "telemetries": {}}, "telemetries"),
    ],
)
def test_what_is_refused_is_named(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        built(body)
    assert caught.value.field == field


def test_a_version_takes_the_name_of_its_function() -> None:
    function = Function(new_id(), "f", "account", 1.0)
    assert build_version(VersionCreation.from_dict(IMAGE), function, new_id(), 2.0).name == "f"
    with pytest.raises(InvalidRecord):
        build_version(VersionCreation.from_dict({**IMAGE, "name": "g"}), function, new_id(), 2.0)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "tags"),
        ({"modelUpdates": []}, "tags"),
        ({"tags": ["a b"]}, "tags[0]"),
        ({"modelUpdates": [{"modelName": "m"}]}, "modelUpdates[0].llmConfig"),
        ({"modelUpdates": [{"modelName": "m", "llmConfig": {}}]}, "modelUpdates[0].llmConfig"),
        ({"modelUpdates": [{"modelName": "m", "llmConfig": {"uris": []}}]}, "modelUpdates[0].llmConfig.uris"),
        (
            {"modelUpdates": [{"modelName": "m", "llmConfig": {"routingMethod": "pulsar"}}] * 2},
            "modelUpdates[1].modelName",
        ),
        ({"containerImage": "x"}, "containerImage"),
    ],
)
def test_changes_that_are_refused(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        VersionUpdate.from_dict(body)
    assert caught.value.field == field


def test_metadata_are_the_tags() -> None:
    assert MetadataUpdate.from_dict({"tags": ["a", "a"]}).tags == ("a",)
    with pytest.raises(InvalidRecord):
        MetadataUpdate.from_dict({})


def test_a_new_rate_keeps_the_rates_of_single_accounts() -> None:
    before = RateLimit.from_dict(
        {"rate": "1-S", "perUserRate": "2-S", "perNcaIdConfigs": [{"ncaId": "a", "rate": "3-S"}]}
    )
    after = RateLimitSetting("9-M", ("b",)).applied_to(before)
    assert (after.rate, after.excluded) == ("9-M", ("b",))
    assert (after.user_rate, after.account_rates) == (before.user_rate, before.account_rates)
