"""A tritonserver for tests: the program and its Python backend, from the wheel of nvidia-pytriton.

It has a virtual environment of its own, because its Python backend gives models empty tensors with numpy 2.
The server is 2.51 for CPU and has no other backend. `tritonserver()` installs it once, in half a minute;
`python -m tests.triton.installed` does the same and prints the path of the program.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

from tests.support.installing import CannotInstall, folder, installed, own_python, pip, with_python

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


def tritonserver() -> Path:
    """Return the program, and install it if it is not there. Raises CannotInstall."""
    return installed(folder("triton", with_python(VERSION)), "tritonserver", _install)


def _install(home: Path) -> str:
    libraries = sysconfig.get_config_var("LIBDIR")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        reason = "this Python is built without --enable-shared"
        raise CannotInstall(f"Triton's Python backend needs libpython, and {reason}")
    python = own_python(home)
    for packages in PACKAGES:
        pip(python, *packages)
    [site] = (home / "venv/lib").glob("python3*/site-packages")
    triton = site / "pytriton/tritonserver"
    stubs = triton / f"python_backend_stubs/{sys.version_info.major}.{sys.version_info.minor}"
    stub = stubs / "triton_python_backend_stub"
    if not stub.exists():
        raise CannotInstall(f"nvidia-pytriton has no Python backend for this Python: {stub} is missing")
    shutil.copytree(triton / "backends/python", home / "backends/python")
    shutil.copy(stub, home / "backends/python")
    return _SCRIPT.format(
        venv=home / "venv",
        packages=site,
        libraries=libraries,
        server=triton / "bin/tritonserver",
        folder=home,
        caches=triton / "caches",
        prefix=SHM_PREFIX,
    )


if __name__ == "__main__":
    sys.stdout.write(f"{tritonserver()}\n")
