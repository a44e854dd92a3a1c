"""Bodies that `nvcf scale`, `nvcf function` and `nvcf deploy` of images and charts send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nvcf_cli.charts import name_from_chart, read_values
from nvcf_cli.commands.function import version_facts
from nvcf_cli.deploying import DeployRequest
from nvcf_cli.errors import UsageError
from nvcf_cli.images import Artifact, creation, name_from_image, served_models
from nvcf_cli.main import run
from nvcf_cli.scale import rescaled
from nvcf_gateway.management.function_bodies import FunctionCreation
from nvcf_proto.models import Deployment

IMAGE = "registry.example.com/team/echo:1"


def deployment(*bounds: tuple[int, int]) -> dict[str, Any]:
    """As the management API answers it."""
    each = [{"gpu": "SIM", "minInstances": low, "maxInstances": high} for low, high in bounds]
    return {
        "deploymentSpecifications": each,
        "keepQueued": True,
        "maxQueueDepth": None,
        "functionVersionId": "11111111-1111-4111-8111-111111111111",
        "functionStatus": "ACTIVE",
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0, 8, None), (0, 8)),
        ((None, 8, None), (1, 8)),
        ((0, None, None), (0, 2)),
        ((5, None, None), (5, 5)),
        ((None, None, 4), (1, 2)),
    ],
)
def test_what_is_not_given_stays(
    given: tuple[int | None, int | None, int | None], expected: tuple[int, int]
) -> None:
    body = rescaled(deployment((1, 2), (3, 4)), 1, *given)
    first, second = body["deploymentSpecifications"]
    assert (first["minInstances"], first["maxInstances"]) == expected
    assert first.get("maxRequestConcurrency") == given[2]
    assert second == {"gpu": "SIM", "minInstances": 3, "maxInstances": 4}
    # Only what a request may have.
    assert body.keys() == {"deploymentSpecifications", "keepQueued"}


def test_the_body_is_one_that_the_platform_takes() -> None:
    body = rescaled(deployment((1, 2)), 1, 0, None, 2)
    version = "11111111-1111-4111-8111-111111111111"
    ids = {"functionVersionId": version, "functionId": version, "createdAt": 1.0}
    (specification,) = Deployment.from_dict({**body, **ids}).specifications
    assert (specification.min_instances, specification.max_request_concurrency) == (0, 2)


def test_contradictions_of_bounds_are_told() -> None:
    with pytest.raises(UsageError, match="--min, too"):
        rescaled(deployment((3, 4)), 1, None, 2, None)
    with pytest.raises(UsageError, match="the deployment has 1"):
        rescaled(deployment((3, 4)), 2, 1, 1, None)
    assert run(["scale", "hello"]) == 2


def test_an_image_is_deployed_with_what_was_given_and_nothing_else() -> None:
    request = DeployRequest("echo", artifact=Artifact(image=IMAGE, environment={"A": "1"}, port=8000))
    assert request.version() == {
        "name": "echo",
        "containerImage": IMAGE,
        "containerEnvironment": [{"key": "A", "value": "1"}],
        "inferencePort": 8000,
    }
    assert DeployRequest("echo", artifact=Artifact(image=IMAGE)).version() == {
        "name": "echo",
        "containerImage": IMAGE,
    }


def test_a_chart_needs_its_service_and_has_no_environment() -> None:
    chart = Artifact(chart="https://charts.example.com/charts/rag-1.0.tgz", chart_service="api", health="/up")
    body = creation(chart, name="rag", kind="DEFAULT", description=None, tags=("a",))
    assert body == {
        "name": "rag",
        "functionType": "DEFAULT",
        "helmChart": "https://charts.example.com/charts/rag-1.0.tgz",
        "helmChartServiceName": "api",
        "health": {"protocol": "HTTP", "uri": "/up"},
        "tags": ["a"],
    }
    wrong: tuple[dict[str, Any], ...] = (
        {"chart": "c"},
        {"image": "i", "chart": "c", "chart_service": "s"},
        {},
        {"chart": "c", "chart_service": "s", "arguments": "a"},
    )
    for members in wrong:
        with pytest.raises(UsageError):
            Artifact(**members)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (IMAGE, "echo"),
        ("echo", "echo"),
        ("localhost:5000/echo", "echo"),
        ("nvcr.io/nvidia/tritonserver@sha256:00ff", "tritonserver"),
        ("a/my.model:1", "my-model"),
    ],
)
def test_an_image_gives_its_function_a_name(image: str, name: str) -> None:
    assert name_from_image(image) == name


@pytest.mark.parametrize(
    ("chart", "name"),
    [
        ("oci://registry.example/charts/rag:1.0.0", "rag"),
        ("https://charts.example.com/rag-1.0.tgz", "rag"),
        ("https://charts.example.com/vector-store-v1.2.0-rc.1.tgz", "vector-store"),
        ("https://charts.example.com/rag.tgz", "rag"),
    ],
)
def test_a_chart_gives_its_function_a_name(chart: str, name: str) -> None:
    assert name_from_chart(chart) == name


def test_a_charts_values_are_read_as_helm_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text("replicas: 2\nimage: {tag: '1'}\nignored: [the, of]\n")
    assert read_values(file) == {"replicas": 2, "image": {"tag": "1"}, "ignored": ["the", "of"]}
    file.write_text("")
    assert (read_values(file), read_values(None)) == ({}, None)
    for wrong in ("- 1", "a: [", "day: 2024-01-01", "a: .nan", "text"):
        file.write_text(wrong)
        with pytest.raises(UsageError, match=r"values\.yaml"):
            read_values(file)
    with pytest.raises(UsageError, match="No such file"):
        read_values(tmp_path / "missing")


def test_file_and_image_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (
        ["deploy"],
        ["deploy", "f.py", "--image", IMAGE],
        ["deploy", "f.py", "--port", "1"],
        ["deploy", "f.py", "--helm-service", "s"],
        ["deploy", "--image", IMAGE, "--values", "values.yaml"],
        ["deploy", "--image", IMAGE, "--helm-chart", "oci://a/b:1", "--helm-service", "s"],
        ["deploy", "--helm-chart", "oci://a/b:1"],
        ["deploy", "--helm-chart", "oci://a/b:1", "--helm-service", "s", "--env", "A=1"],
        ["deploy", "--helm-chart", "oci://a/b:1", "--helm-service", "s", "--prefetch"],
        ["function", "create", "x"],
        ["function", "create", "x", "--image", IMAGE, "--type", "NEW"],
        ["function", "create", "x", "--image", IMAGE, "--type", "LLM"],
        ["function", "create", "x", "--image", IMAGE, "--model", "tiny=/v1/chat/completions"],
        ["function", "create", "x", "--image", IMAGE, "--type", "LLM", "--model", "tiny"],
        ["function", "create", "x", "--image", IMAGE, "--token-rate", "10-S"],
        ["function", "update", "x"],
    ):
        assert run(wrong) == 2, wrong
        assert "error: " in capsys.readouterr().err


def test_models_are_in_the_form_of_the_platform() -> None:
    paths = "tiny=/v1/chat/completions, /v1/responses"
    body = served_models([paths], "LLM", "100-S")
    body |= creation(Artifact(image=IMAGE), name="chat", kind="LLM", description=None, tags=())
    (model,) = FunctionCreation.from_dict(body).models
    assert model.llm_config is not None
    assert model.llm_config.uris == ("/v1/chat/completions", "/v1/responses")
    assert model.llm_config.token_rate_limit == "100-S"
    assert served_models([], "DEFAULT", None) == {}


def test_facts_of_a_version() -> None:
    version = {"containerImage": IMAGE, "functionType": "DEFAULT", "tags": ["a", "b"], "process": None}
    facts = version_facts(version, {**deployment((1, 2))})
    assert ("image", IMAGE) in facts
    assert ("tags", "a, b") in facts
    assert facts[-1][1].startswith("SIM")
