"""Programs of tests that come from PyPI: each is installed once, into a folder of its own in ~/.cache."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path


class CannotInstall(RuntimeError):
    """A program of the tests is not there, and cannot be installed."""


def folder(name: str, version: str) -> Path:
    """Return the folder of an installation. It may not exist yet."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / f"nvcf-test-{name}" / version


def with_python(version: str) -> str:
    """Return the version of an installation that belongs to this Python."""
    return f"{version}-python{'.'.join(map(str, sys.version_info[:3]))}"


def installed(home: Path, program: str, install: Callable[[Path], str], *check: str) -> Path:
    """Return the program `bin/PROGRAM` in `home`; one process installs it, the others wait.

    `install` fills the folder and returns the program's script, which has to run with the arguments `check`.
    Raises CannotInstall.
    """
    found = home / "bin" / program
    if found.exists():
        return found
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not found.exists():
            shutil.rmtree(home, ignore_errors=True)
            found.parent.mkdir(parents=True)
            script = install(home)
            # The program comes last: who finds it finds all of it.
            unfinished = home / "unfinished"
            unfinished.write_text(script)
            unfinished.chmod(0o755)
            if check:
                run([str(unfinished), *check], f"{program} does not run here")
            unfinished.rename(found)
    return found


def own_python(home: Path) -> Path:
    """Return the interpreter of a new virtual environment in the folder."""
    venv.create(home / "venv", with_pip=True)
    return home / "venv/bin/python"


def pip(python: Path | str, *arguments: str) -> None:
    """Install packages. Raises CannotInstall."""
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    run([*command, *arguments], f"pip cannot install {' '.join(arguments)}")


def run(command: list[str], failure: str, **environment: str) -> None:
    """Run a command with more variables. Raises CannotInstall if it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    if done.returncode:
        raise CannotInstall(f"{failure}: {done.stderr.strip()[-1000:]}")
