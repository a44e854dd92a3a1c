"""The Python of docs/functions/tasks.md runs as it is written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "functions" / "tasks.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_what_the_page_says(number: int, tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(SNIPPETS[number])
    environment = {
        **os.environ,
        "NVCT_RESULTS_DIR": str(tmp_path / "results"),
        "NVCT_PROGRESS_FILE_PATH": str(tmp_path / "progress"),
        "SHARED_CONFIG_DIR": str(tmp_path / "shared"),
    }
    subprocess.run([sys.executable, str(tmp_path / "task.py")], env=environment, check=True, timeout=60)
    assert json.loads((tmp_path / "progress").read_bytes())["percentComplete"] == 100
    assert json.loads((tmp_path / "shared" / "nvcf-worker-exit.json").read_bytes())["category"] == "completed"
    assert any((tmp_path / "results").iterdir())


def test_the_page_has_snippets() -> None:
    assert len(SNIPPETS) >= 3
