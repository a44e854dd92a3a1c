"""What an image or a chart is started with."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from nvcf_gateway.clusters.creation import expiry
from nvcf_gateway.clusters.launch import (
    Access,
    check_size,
    container_environment,
    container_launch,
)
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.messages import LONGEST_VALUE, InstanceOrder
from nvcf_proto.ids import new_id
from nvcf_proto.models import DeploymentSpecification, FunctionVersion

IMAGE = {"containerImage": "registry.example/echo:1"}
CHART = {"helmChart": "https://helm.example/charts/echo-1.tgz", "helmChartServiceName": "front"}
ACCESS = Access("aW1hZ2Vz", "Y2hhcnRz", "https://gateway.example")


def version(**fields: Any) -> FunctionVersion:
    ids = {"id": new_id(), "functionId": new_id(), "name": "f", "ncaId": "a", "createdAt": 1}
    return FunctionVersion.from_dict({**ids, **fields})


def read(text: str | None) -> Any:
    assert text is not None
    return json.loads(base64.b64decode(text))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {},
            {
                "INFERENCE_CONTAINER_ARGS": "",
                "INFERENCE_CONTAINER_ENV": "W10=",
                "INFERENCE_PORT": "8000",
                "INFERENCE_PROTOCOL": "REST",
                "INFERENCE_HEALTH_ENDPOINT": "/v2/health/ready",
                "INFERENCE_HEALTH_PROTOCOL": "HTTP",
                "INFERENCE_HEALTH_TIMEOUT": "PT10S",
                "INFERENCE_HEALTH_PORT": "8000",
                "INFERENCE_HEALTH_EXPECTED_RESPONSE_CODE": "200",
                "CONTAINER_REGISTRIES_CREDENTIALS": "aW1hZ2Vz",
                "HELM_REGISTRIES_CREDENTIALS": "Y2hhcnRz",
                "FUNCTION_SECRETS_PRESENT": "false",
            },
        ),
        ({"containerArgs": "serve --name 'a b'"}, {"INFERENCE_CONTAINER_ARGS": "serve --name 'a b'"}),
        ({"containerArgs": "serve \\\n --port 1"}, {"INFERENCE_CONTAINER_ARGS": "serve  --port 1"}),
        ({"inferencePort": 9000}, {"INFERENCE_PORT": "9000", "INFERENCE_HEALTH_PORT": "9000"}),
        (
            {"healthUri": "/ok", "inferencePort": 9000},
            {"INFERENCE_HEALTH_ENDPOINT": "/ok", "INFERENCE_HEALTH_PORT": "9000"},
        ),
        (
            {
                "health": {
                    "protocol": "gRPC",
                    "uri": "/svc",
                    "port": 50051,
                    "timeout": "PT20S",
                    "expectedStatusCode": 204,
                },
                "healthUri": "/other",
                "inferencePort": 9000,
            },
            {
                "INFERENCE_PORT": "9000",
                "INFERENCE_PROTOCOL": "GRPC",
                "INFERENCE_HEALTH_PROTOCOL": "gRPC",
                "INFERENCE_HEALTH_ENDPOINT": "/svc",
                "INFERENCE_HEALTH_PORT": "50051",
                "INFERENCE_HEALTH_TIMEOUT": "PT20S",
                "INFERENCE_HEALTH_EXPECTED_RESPONSE_CODE": "204",
            },
        ),
        (
            {"utilsContainerImage": "registry.example/utils:2"},
            {"UTILS_CONTAINER": "registry.example/utils:2"},
        ),
    ],
)
def test_settings_become_variables(fields: dict[str, Any], expected: dict[str, str]) -> None:
    found = container_environment(version(**IMAGE, **fields), ACCESS)
    assert {name: found.get(name) for name in expected} == expected


def test_variables_of_the_container_are_json() -> None:
    given = [{"key": "A", "value": "two\nlines"}, {"key": "B", "value": "é"}]
    found = container_environment(version(**IMAGE, containerEnvironment=given), ACCESS)
    assert read(found["INFERENCE_CONTAINER_ENV"]) == given


@pytest.mark.parametrize("absent", ["UTILS_CONTAINER", "SECRETS_ASSERTION_TOKEN", "ESS_FQDN"])
def test_what_is_not_there_is_left_out(absent: str) -> None:
    """NVIDIA's agent adds a container for secrets as soon as there is a token."""
    assert absent not in container_environment(version(**IMAGE, utilsContainerImage="GO"), ACCESS)


def test_secrets_are_read_from_the_gateway() -> None:
    access = Access("", "", "https://gateway.example", "token", has_secrets=True)
    found = container_environment(version(**IMAGE), access)
    assert found["FUNCTION_SECRETS_PRESENT"] == "true"
    assert found["SECRETS_ASSERTION_TOKEN"] == "token"
    assert found["ESS_FQDN"] == "https://gateway.example"


def test_a_chart_has_its_values_and_its_service() -> None:
    values = {"replicas": 2, "name": "é"}
    chart = version(**CHART)
    launch = container_launch(chart, DeploymentSpecification(configuration=values))
    assert (launch["helm_chart"], launch["container_image"]) == (CHART["helmChart"], None)
    assert read(launch["configuration"]) == values
    found = container_environment(chart, ACCESS)
    assert found["HELM_CHART_INFERENCE_SERVICE_NAME"] == "front"


def test_models_and_resources_are_named_with_their_places() -> None:
    model = {"name": "m", "version": "1", "uri": "https://models.example/m"}
    resource = {"name": "r", "version": "2", "uri": "https://models.example/r"}
    launch = container_launch(
        version(**IMAGE, models=[model], resources=[resource]), DeploymentSpecification()
    )
    assert (read(launch["models"]), read(launch["resources"])) == ([model], [resource])
    assert launch["configuration"] is None


def test_what_no_agent_would_read_is_not_sent() -> None:
    check_size("models", "x" * LONGEST_VALUE)
    with pytest.raises(InvalidRecord, match="smaller"):
        check_size("models", "x" * (LONGEST_VALUE + 1))


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_an_order_lasts_as_long_by_the_clock_of_the_gateway_as_by_the_autoscalers(ahead: float) -> None:
    order = InstanceOrder(
        request_id=new_id(),
        function_version_id=new_id(),
        cluster_id="c",
        gpu_specification_id=new_id(),
        issued_at=1000.0,
        expires_at=1020.0,
    )
    assert expiry(order, 1000.0 + ahead) == 1020.0 + ahead
    assert expiry(order.replace(issued_at=None), 1000.0 + ahead) == 1020.0, "an earlier release"
