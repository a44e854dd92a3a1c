"""docs/start/first-function.md: every command works as written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NVCF = Path(sys.executable).with_name("nvcf")
BASH = shutil.which("bash") or "bash"
# Other tests cover the installation and the demo.
ELSEWHERE = ("make demo", ". .venv/bin/activate")


def commands() -> list[str]:
    """Return the page's lines in order, block by block."""
    page = (ROOT / "docs" / "start" / "first-function.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [
        "\n".join(line for line in block.splitlines() if not line.startswith(ELSEWHERE)) for block in blocks
    ]


@pytest.mark.timeout(300)  # a busy machine needs several times as long
@pytest.mark.skipif(shutil.which("curl") is None, reason="the page uses curl")
def test_every_command_runs_as_written(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NVCF_")}
    environment |= {"HOME": str(tmp_path), "PATH": f"{NVCF.parent}:{environment['PATH']}"}
    script = "set -euo pipefail\n" + "\n".join(commands())
    try:
        done = subprocess.run(
            [BASH, "-c", script],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=280,
            check=False,
        )
    finally:
        subprocess.run([str(NVCF), "down", "--kill"], env=environment, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
    for words in ("Hello, Ada!", "Hello, Grace!", "data: 5", "KeyError: 'name'", "Good morning, Ada!"):
        assert words in done.stdout
    assert "No module named 'no_such_module'" in done.stdout
    assert done.stdout.rstrip().endswith("everything is stopped")
