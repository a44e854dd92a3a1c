"""The pages on sessions: every command works as written, on a free port."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nvcf_broker.process import free_port

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = (DOCS / "functions" / "sessions.md", DOCS / "call" / "sessions.md")
NVCF = Path(sys.executable).with_name("nvcf")
BASH = shutil.which("bash") or "bash"


def commands() -> str:
    """Return the pages' shell blocks in order."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "set -euo pipefail\n" + "".join(blocks).replace("8090", str(free_port()))


@pytest.mark.timeout(300)  # a busy machine needs several times as long
def test_every_command_runs_as_written(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NVCF_")}
    environment |= {"HOME": str(tmp_path), "PATH": f"{NVCF.parent}:{environment['PATH']}"}
    try:
        done = subprocess.run(
            [BASH, "-c", commands()],
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
    assert "you said: hello" in done.stdout
    assert re.search(r"^  sessions   127\.0\.0\.1:\d+$", done.stdout, re.MULTILINE), done.stdout
    assert done.stdout.rstrip().endswith("everything is stopped")
