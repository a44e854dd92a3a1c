"""`examples/triton` and the template `triton`, deployed as their pages say, on a real tritonserver."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvcf_cli.scaffold import project, write_project
from tests.triton.server import with_tritonserver

EXAMPLE = Path(__file__).parents[2] / "examples/triton"
BIN = Path(sys.executable).parent


@pytest.fixture
def up(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Run a platform on this machine; returns the environment of its commands."""
    environment = with_tritonserver() | {"NVCF_HOME": str(tmp_path / "home")}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"
    command = [str(BIN / "nvcf"), "up", "--detach", "--http-port", "0"]
    # As root, instances would get a user that cannot read this server's folder.
    command += ["--instance-uid-range", "none"]
    try:
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=150)
        yield environment
    finally:
        subprocess.run([str(BIN / "nvcf"), "down", "--kill"], env=environment, check=False, timeout=60)


def test_both_are_deployed_and_answer(up: dict[str, str], tmp_path: Path) -> None:
    def shell(*words: str, folder: Path = tmp_path) -> str:
        done = subprocess.run(
            words, cwd=folder, env=up, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    example = tmp_path / "example"
    shutil.copytree(EXAMPLE, example)
    trained = shell("python", "train.py", folder=example)
    assert float(trained.partition("%")[0]) > 97
    models = ("--model", "read_digit", "--model", "read_number")
    made = json.loads(
        shell("nvcf", "deploy", "models", "--triton", *models, "--name", "digits", "--json", folder=example)
    )
    status = json.loads(shell("nvcf", "status", "--json"))
    key = (Path(up["NVCF_HOME"]) / "admin.key").read_text().strip()
    read = shell("python", "call.py", _url(status), key, made["functionId"], folder=example)
    drawn, found, right = read.splitlines()
    assert int(right.partition("%")[0]) > 90
    assert len(drawn.split()) == len(found.split()) == 17

    name = "my-triton"
    write_project(tmp_path / name, project(name, "triton"))
    lines = (tmp_path / name / "README.md").read_text().splitlines()
    for word in ("nvcf deploy", "nvcf invoke"):
        line = next(each.strip() for each in lines if each.startswith(f"    {word}"))
        said = shell("bash", "-c", line, folder=tmp_path / name)
    assert json.loads(said)["outputs"][0]["data"] == ["Hello, Ada!"]


def _url(status: dict[str, object]) -> str:
    return str(status["url"])
