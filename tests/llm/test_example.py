"""`examples/llm`, deployed as its page says, on a real engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.llm.installed import engine
from tests.llm.server import with_engine
from tests.llm.tiny_model import said

EXAMPLE = Path(__file__).parents[2] / "examples/llm"
PAGE = Path(__file__).parents[2] / "docs/functions/llm.md"
BIN = Path(sys.executable).parent


@pytest.fixture
def up(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Run a platform on this machine; returns the environment of its commands."""
    environment = with_engine() | {"NVCF_HOME": str(tmp_path / "home")}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"
    command = [str(BIN / "nvcf"), "up", "--detach", "--http-port", "0"]
    # As root, instances would get a user that cannot read the engine's folder.
    command += ["--instance-uid-range", "none"]
    try:
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=150)
        yield environment
    finally:
        subprocess.run([str(BIN / "nvcf"), "down", "--kill"], env=environment, check=False, timeout=60)


def test_it_is_deployed_and_answers(up: dict[str, str], tmp_path: Path) -> None:
    def shell(*words: str) -> str:
        done = subprocess.run(
            words, cwd=tmp_path / "example", env=up, capture_output=True, text=True, timeout=150, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    shutil.copytree(EXAMPLE, tmp_path / "example")
    model = f"MODEL_FILE={engine().model}"
    made = json.loads(shell("nvcf", "deploy", "function.py", "--env", model, "--name", "small", "--json"))
    url = json.loads(shell("nvcf", "status", "--json"))["url"]
    key = (Path(up["NVCF_HOME"]) / "admin.key").read_text().strip()
    assert shell("python", "call.py", url, key, made["functionId"], "Hello") == said(40) + "\n"
    # What the page says, with the address, key and id of this platform.
    [snippet] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    for usual, mine in (
        ("http://127.0.0.1:8080", url),
        ("~/.nvcf/admin.key", f"{up['NVCF_HOME']}/admin.key"),
        ("3b241101-e2bb-4255-8caf-4136c566a962", made["functionId"]),
    ):
        assert usual in snippet
        snippet = snippet.replace(usual, mine)
    # Without temperature 0 the first word may be any: the words after it are known.
    assert shell("python", "-c", snippet) in said(80)
