"""Check the demo's requirements. Each error names the way to install the missing part."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from examples.demo.failure import DemoFailure

MODULES = ("nvcf_cli", "nvcf_gateway", "nvcf_agent", "rapidocr", "PIL")
LOAD_DEADLINE = 60.0


def nvcf_command() -> Path:
    """Return the `nvcf` command of this Python. Raises `DemoFailure` if the package is not installed."""
    command = Path(sys.executable).with_name("nvcf")
    if not command.exists():
        raise DemoFailure(f"there is no nvcf command beside {sys.executable}; {install_hint()}")
    return command


def check() -> None:
    """Raise `DemoFailure` if a package, or a system library of OpenCV, is missing."""
    missing = [name for name in MODULES if find_spec(name) is None]
    if missing:
        raise DemoFailure(f"missing packages: {', '.join(missing)}; {install_hint()}")
    # In a process of its own: the demo itself needs no OpenCV, and a broken library may end the process.
    loaded = subprocess.run(
        [sys.executable, "-c", "import cv2"],
        capture_output=True,
        text=True,
        timeout=LOAD_DEADLINE,
        check=False,
    )
    if loaded.returncode:
        raise DemoFailure(explain_opencv(loaded.stderr))


def install_hint() -> str:
    return "use `make demo`, or install with `pip install -e '.[local,examples]'`"


def explain_opencv(stderr: str) -> str:
    """Explain a failed `import cv2`, the only package that needs system libraries."""
    reason = stderr.strip().rpartition("\n")[2] or "it ended without a word"
    hint = ""
    if "libGL" in reason or "libgthread" in reason or "libglib" in reason:
        hint = "; on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0"
    return f"OpenCV, which the OCR function needs, does not load: {reason}{hint}"
