"""`nvcf new`: each template makes a project whose tests and linters pass and that can be served."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvcf_broker.process import free_port
from nvcf_cli.errors import CliError, UsageError
from nvcf_cli.main import run
from nvcf_cli.scaffold import TEMPLATES, project, render, write_project
from tests.support.platform.gateways import running_platform

BIN = Path(sys.executable).parent
BASH = shutil.which("bash") or "bash"
# `triton` and `llm` need a server: tests/triton has one, and tests/llm an engine.
BODIES = {
    "hello": {"name": "Ada"},
    "stream": {"text": "a great idea"},
    "batch": {"text": "a great idea"},
    "class": {"text": "a great idea"},
    "sidecar": {"name": "Ada"},
    "asgi": {"name": "Ada"},
}
ANSWERS = {
    "hello": "Ada!", "stream": "great", "batch": ":6", "class": ":2", "sidecar": "Ada!", "asgi": "Ada!",
}  # fmt: skip


def needs(template: str) -> None:
    """Skip a template that the environment cannot run."""
    if TEMPLATES[template].requirements:
        pytest.importorskip("fastapi", reason="the extra `examples` is not installed")


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "NVC"))
    }
    return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("template", list(TEMPLATES))
def test_its_own_tests_pass_and_it_is_tidy(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs(template)
    monkeypatch.chdir(tmp_path)
    assert run(["new", "my-function", "--template", template]) == 0
    assert "my-function" in capsys.readouterr().out
    folder = tmp_path / "my-function"
    names = {path.name for path in folder.iterdir()}
    assert {"function.py", "test_function.py", "requirements.txt", "Dockerfile", "README.md"} <= names
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert not re.search(r"@[A-Z]+@", path.read_text()), path
    assert "my-function" in (folder / "README.md").read_text()
    tested = command(str(BIN / "pytest"), "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", cwd=folder)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    rules = (
        "--line-length",
        "110",
        "--select",
        "E,F,I,UP,B",
        "--config",
        "lint.isort.known-third-party=['nvcf_worker']",
    )
    linted = command(str(BIN / "ruff"), "check", "--no-cache", *rules, ".", cwd=folder)
    assert linted.returncode == 0, linted.stdout
    formatted = command(
        str(BIN / "ruff"), "format", "--no-cache", "--line-length", "110", "--check", ".", cwd=folder
    )
    assert formatted.returncode == 0, formatted.stdout


async def test_every_template_serves_on_the_platform(tmp_path: Path) -> None:
    """Each generated function.py, started as an agent starts it, responds through a real gateway."""
    pytest.importorskip("fastapi", reason="the extra `examples` is not installed")
    async with running_platform(tmp_path) as platform:

        async def one(template: str) -> None:
            folder = tmp_path / template
            write_project(folder, project(template, template))
            version = await platform.deployed_version(template)
            file = folder / "function.py"
            # It runs in its folder, as with `nvcf deploy`.
            await platform.start_worker(version, file, environment={"PYTHONPATH": str(folder)})
            url = platform.gateway.url + version.pexec
            body, headers = BODIES[template], platform.authorization()
            async with platform.session.post(url, json=body, headers=headers) as answer:
                text = await answer.text()
            assert (answer.status, ANSWERS[template] in text) == (200, True), text

        async with asyncio.TaskGroup() as group:
            for template in BODIES:
                group.create_task(one(template))


def readme_command(folder: Path, word: str) -> str:
    """Return the line of a project's README that begins with `word`."""
    lines = (folder / "README.md").read_text().splitlines()
    return next(line.strip() for line in lines if line.startswith(f"    {word}"))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Run a platform on this machine. Returns the environment in which the `nvcf` command finds it."""
    home = tmp_path_factory.mktemp("platform")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NVC")}
    environment |= {"NVCF_HOME": str(home), "PATH": f"{BIN}:{environment['PATH']}"}
    try:
        subprocess.run(
            [str(BIN / "nvcf"), "up", "--detach", "--http-port", "0"],
            env=environment, check=True, capture_output=True, timeout=100,
        )  # fmt: skip
        yield environment
    finally:
        subprocess.run([str(BIN / "nvcf"), "down", "--kill"], env=environment, check=False, timeout=60)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the READMEs use curl")
@pytest.mark.xdist_group("nvcf_new")
@pytest.mark.parametrize("template", list(BODIES))
def test_its_readme_works_as_written(template: str, up: dict[str, str], tmp_path: Path) -> None:
    """Run each line of the README: start it alone, call it with curl, deploy it and invoke it."""
    needs(template)
    name = f"my-{template}"
    folder = tmp_path / name
    write_project(folder, project(name, template))

    def shell(line: str) -> str:
        done = subprocess.run(
            [BASH, "-c", line], cwd=folder, env=up, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    port = free_port()
    run_it = f"{TEMPLATES[template].run} --port {port}"
    log = tmp_path / "log"
    with log.open("wb") as file:
        served = subprocess.Popen(
            [BASH, "-c", f"exec {run_it}"], cwd=folder, env=up, stdout=file, stderr=file
        )
    try:
        curl = readme_command(folder, "curl").replace("localhost:8000", f"127.0.0.1:{port}")
        retried = curl.replace("curl ", "curl -sS --fail --retry 30 --retry-delay 1 --retry-connrefused ", 1)
        assert ANSWERS[template] in shell(retried), log.read_text()
    finally:
        served.terminate()
        assert served.wait(20) is not None
    shell(readme_command(folder, "nvcf deploy"))
    assert ANSWERS[template] in shell(readme_command(folder, "nvcf invoke"))


def test_a_project_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="hello, stream"):
        project("name", "nothing")
    with pytest.raises(CliError):
        project("a name with blanks", "hello")
    (tmp_path / "file").touch()
    with pytest.raises(CliError, match="not empty"):
        write_project(tmp_path, {})
    with pytest.raises(CliError, match="cannot write"):
        write_project(tmp_path / "file", {"a": ""})
    assert render("@A@ @B@ a@b.c", {"A": "1"}) == "1 @B@ a@b.c"
