"""A tritonserver for tests: the program and its Python backend, from the wheel of nvidia-pytriton.

It has a virtual environment of its own, because its Python backend gives models empty tensors with numpy 2.
The server is 2.51 for CPU and has no other backend. `tritonserver()` installs it once, in half a minute;
`python -m tests.triton.installed` does the same and prints the path of the program.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PACKAGES = (("--no-deps", "nvidia-pytriton==0.7.0"), ("numpy<2",))
VERSION = "1"
"""Counted up when the folder's contents change."""
SHM_PREFIX = "nvcf-test-triton-"
"""How names of the program's shared memory begin; its process id and "-" follow."""

_SCRIPT = """#!/bin/sh
# Starts tritonserver as NVIDIA's image has it on PATH. The last option of a kind wins.
export PATH="{venv}/bin:$PATH" PYTHONPATH="{packages}"
export LD_LIBRARY_PATH="{packages}/nvidia_pytriton.libs:{libraries}"
unset VIRTUAL_ENV PYTHONHOME
exec "{server}" --backend-directory="{folder}/backends" --cache-directory="{caches}" \\
    --backend-config="python,shm-region-prefix-name={prefix}$$-" --disable-auto-complete-config \\
    --allow-gpu-metrics=false --exit-timeout-secs=5 "$@"
"""


class CannotInstall(RuntimeError):
    """There is no tritonserver for the tests, and none can be made."""


def folder() -> Path:
    """Return the folder of the installation. It may not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    python = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    return Path(root) / "nvcf-test-triton" / f"{VERSION}-python{python}"


def tritonserver() -> Path:
    """Return the program, and install it if it is not there. One process installs, the others wait.

    Raises CannotInstall.
    """
    home = folder()
    program = home / "bin" / "tritonserver"
    if program.exists():
        return program
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            shutil.rmtree(home, ignore_errors=True)
            _install(home)
    return program


def _install(home: Path) -> None:
    libraries = sysconfig.get_config_var("LIBDIR")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        reason = "this Python is built without --enable-shared"
        raise CannotInstall(f"Triton's Python backend needs libpython, and {reason}")
    venv.create(home / "venv", with_pip=True)
    pip = [str(home / "venv/bin/python"), "-m", "pip", "install", "--disable-pip-version-check"]
    for packages in PACKAGES:
        done = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip()[-1000:]
            raise CannotInstall(f"pip cannot install {packages[-1]} into {home}: {reason}")
    [site] = (home / "venv/lib").glob("python3*/site-packages")
    triton = site / "pytriton/tritonserver"
    stubs = triton / f"python_backend_stubs/{sys.version_info.major}.{sys.version_info.minor}"
    stub = stubs / "triton_python_backend_stub"
    if not stub.exists():
        raise CannotInstall(f"nvidia-pytriton has no Python backend for this Python: {stub} is missing")
    shutil.copytree(triton / "backends/python", home / "backends/python")
    shutil.copy(stub, home / "backends/python")
    script = _SCRIPT.format(
        venv=home / "venv",
        packages=site,
        libraries=libraries,
        server=triton / "bin/tritonserver",
        folder=home,
        caches=triton / "caches",
        prefix=SHM_PREFIX,
    )
    # The program comes last: who finds it finds all of it.
    (home / "bin").mkdir()
    unfinished = home / "bin/unfinished"
    unfinished.write_text(script)
    unfinished.chmod(0o755)
    unfinished.rename(home / "bin/tritonserver")


if __name__ == "__main__":
    sys.stdout.write(f"{tritonserver()}\n")
