"""The fixture `nvcf_platform`, used as in a user's project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil

CONFTEST = 'pytest_plugins = ["nvcf_worker.testing.plugin"]\n'
FUNCTION = """
from nvcf_worker import BadInput, serve


def handler(request):
    if request.path == "/bad":
        raise BadInput("no")
    print("called", flush=True)
    return {"name": request.json()["name"], "path": request.path}


serve(handler)
"""
TEST = """
from pathlib import Path

import pytest

from nvcf_worker.testing.platform import LocalPlatform, PlatformError

FILE = Path(__file__).with_name("function.py")


def test_through_the_whole_platform(nvcf_platform: LocalPlatform) -> None:
    function = nvcf_platform.deploy(FILE, "greeter", concurrency=2)
    result = function.post(json={"name": "Ada"})
    assert (result.status, result.json()) == (200, {"name": "Ada", "path": "/"})
    assert result.request_id
    assert function.request("PUT", "/a/b", json={"name": "x"}).json()["path"] == "/a/b"
    assert function.request("GET", "/bad").status == 400
    assert "called" in function.logs()


def test_a_function_that_does_not_start_is_reported(nvcf_platform: LocalPlatform, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import no_such_module")
    with pytest.raises(PlatformError, match="broken"):
        nvcf_platform.deploy(broken, "broken")
"""


def test_a_projects_own_integration_tests(tmp_path: Path) -> None:
    for name, text in (("conftest.py", CONFTEST), ("function.py", FUNCTION), ("test_it.py", TEST)):
        (tmp_path / name).write_text(text)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis"]
    done = subprocess.run(
        [*command, "--basetemp", str(tmp_path / "base"), "."],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    left = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(process.info["cmdline"] or ())
    ]
    assert left == []
