"""What `nvcf task run` submits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nvcf_cli import tasks
from nvcf_cli.commands.task import app


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Bodies of the calls; the platform is a stand-in that takes them."""
    bodies: list[dict[str, Any]] = []

    async def submit(api: object, request: tasks.TaskRequest) -> dict[str, Any]:
        bodies.append(request.body())
        return {"id": "the-id"}

    monkeypatch.setattr(tasks, "submit", submit)
    return bodies


def run(tmp_path: Path, *arguments: str) -> str:
    (tmp_path / "key").write_text("nvcf-key")
    access = ["--url", "http://127.0.0.1:1", "--key-file", str(tmp_path / "key"), "--detach"]
    result = CliRunner().invoke(app, ["run", *arguments, *access])
    return result.output if result.exit_code == 0 else f"{result.output} {result.exception}"


def test_an_image_has_its_arguments_and_variables(submitted: list[dict[str, Any]], tmp_path: Path) -> None:
    options = ["--image", "r.example/team/train:1", "--gpu", "H100", "--instance-type", "X_1x", "--args"]
    run(tmp_path, *options, "python train.py", "--env", "SEED=7", "--results", "platform")
    (body,) = submitted
    assert (body["name"], body["containerImage"]) == ("train", "r.example/team/train:1")
    assert body["containerArgs"] == "python train.py"
    assert body["containerEnvironment"] == [{"key": "SEED", "value": "7"}]
    assert body["gpuSpecification"] == {
        "clusters": [],
        "gpu": "H100",
        "gpusPerInstance": 1,
        "instanceType": "X_1x",
    }
    assert body["resultHandlingStrategy"] == "UPLOAD"
    assert "process" not in body
    assert "resultsLocation" not in body


def test_a_chart_has_its_values(submitted: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text("epochs: 3\n")
    options = ["--helm-chart", "oci://r.example/train:1.0", "--gpu", "H100", "--instance-type", "X_1x"]
    run(tmp_path, *options, "--values", str(tmp_path / "values.yaml"))
    (body,) = submitted
    assert (body["name"], body["helmChart"]) == ("train", "oci://r.example/train:1.0")
    assert body["gpuSpecification"]["configuration"] == {"epochs": 3}
    assert body["gpuSpecification"]["instanceType"] == "X_1x"
    assert not {"process", "containerImage", "containerEnvironment"} & set(body)


def test_a_file_is_a_process(submitted: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    run(tmp_path, str(tmp_path / "train.py"), "--env", "SEED=7", "--results", "s3://bucket/x")
    (body,) = submitted
    assert (body["name"], body["process"]["environment"]) == ("train", {"SEED": "7"})
    assert (body["resultHandlingStrategy"], body["resultsLocation"]) == ("UPLOAD", "s3://bucket/x")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "give one of a file"),
        (("--image", "i"), "belong together"),
        (("--image", "i", "--instance-type", "x", "--python", "p"), "--python belongs to a file"),
        (("train.py", "--image", "i"), "give one of a file"),
        (("--image", "i", "--helm-chart", "c"), "give one of a file"),
        (("--helm-chart", "c"), "belong together"),
        (("--helm-chart", "c", "--instance-type", "x", "--env", "A=1"), "do not belong to a chart"),
        (("--helm-chart", "c", "--instance-type", "x", "--python", "p"), "--python belongs to a file"),
        (("--image", "i", "--instance-type", "x", "--values", "v"), "--values belongs to --helm-chart"),
        (("train.py", "--args", "x"), "--args belongs to --image"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    submitted: list[dict[str, Any]], tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    assert reason in run(tmp_path, *arguments)
    assert submitted == []


def test_log_lines_in_a_tasks_error_are_readable() -> None:
    record = '{"time": "2026-12-01T17:05:46.903Z", "level": "critical", "message": "exit code 1"}'
    task = {"healthInfo": {"error": f"the task ended: exit code 1\nno data\n{record}"}}
    assert tasks.error_of(task) == "the task ended: exit code 1\nno data\n17:05:46.903 CRITICAL exit code 1"
    assert tasks.error_of({}) == ""
