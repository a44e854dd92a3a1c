"""Pages about calls, rate limits and security: every command runs as written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
NVCF = Path(sys.executable).with_name("nvcf")
BASH = shutil.which("bash") or "bash"
NEEDED = ("curl", "openssl")
# Values that a reader fills in.
OF_THE_READER = re.compile(r"^(GATEWAY|KEY|FUNCTION)=.*$", re.MULTILINE)
FUNCTION = """
import time

from nvcf_worker import Request


def hello(request: Request) -> dict[str, object]:
    body = request.json()
    if "messages" in body:
        message = {"role": "assistant", "content": f"I am {body['model']}."}
        return {"model": body["model"], "choices": [{"index": 0, "message": message}]}
    time.sleep(body.get("seconds", 0))
    return {"greeting": f"Hello, {body['name']}!", "path": request.path, "assets": len(request.assets)}
"""

pytestmark = [
    pytest.mark.timeout(300),  # a busy machine needs several times as long
    pytest.mark.xdist_group("caller_pages"),
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in NEEDED), reason=f"the pages use {' and '.join(NEEDED)}"
    ),
]


@dataclass(frozen=True)
class Reader:
    """A user with a platform on this machine and a function on it."""

    directory: Path
    variables: dict[str, str]

    def follow(self, page: str) -> str:
        """Run all commands of a page in order. Returns their output."""
        text = (DOCS / page).read_text(encoding="utf-8")
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        assert blocks
        script = OF_THE_READER.sub("", "\n".join(blocks))
        # A call that the gateway refuses must fail the test.
        curl = 'curl() { command curl --fail-with-body "$@" && echo; }\n'
        done = subprocess.run(
            [BASH, "-c", "set -euo pipefail\n" + curl + script],
            cwd=self.directory,
            env={**os.environ, **self.variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    directory = tmp_path_factory.mktemp("reader")
    home = directory / "platform"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NVCF_")}
    environment["NVCF_HOME"] = str(home)

    def nvcf(*words: str) -> str:
        done = subprocess.run(
            [str(NVCF), *words], env=environment, cwd=directory, capture_output=True, text=True,
            timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (directory / "hello.py").write_text(FUNCTION)
    (directory / "picture.png").write_bytes(b"\x89PNG" + bytes(1000))
    try:
        nvcf("up", "--detach", "--http-port", "0")
        nvcf("deploy", "hello.py:hello", "--concurrency", "4")
        status: dict[str, Any] = json.loads(nvcf("status", "--json"))
        (function,) = json.loads(nvcf("functions", "--json"))
        yield Reader(
            directory,
            {
                "GATEWAY": status["url"],
                "KEY": (home / "admin.key").read_text().strip(),
                "FUNCTION": function["id"],
                "VERSION": function["versionId"],
            },
        )
    finally:
        subprocess.run([str(NVCF), "down", "--kill"], env=environment, check=False, timeout=60)


def test_calling(reader: Reader) -> None:
    said = reader.follow("call/http.md")
    assert said.count("Hello, Ada!") == 4
    assert '"path":"/v1/anything"' in said
    assert "nvcf-status: fulfilled" in said.lower()
    assert '"assets":1' in said
    assert "202 Accepted" in (reader.directory / "headers.txt").read_text()


def test_openai(reader: Reader) -> None:
    said = reader.follow("call/openai.md")
    assert "I am small." in said
    assert '"object":"list"' in said


def test_rate_limits(reader: Reader) -> None:
    said = reader.follow("operate/rate-limits.md")
    assert '"100-S,5000-H"' in said


def test_security(reader: Reader) -> None:
    said = reader.follow("operate/security.md")
    assert "web shop" in said
    made = json.loads((reader.directory / "made.json").read_text())
    assert made["key"]["id"] in said
    (key,) = (reader.directory / "keys").glob("*.pem")
    assert key.stat().st_mode & 0o077 == 0
