"""An S3-compatible store for tests: `moto_server`, in a virtual environment of its own.

`python -m tests.support.moto` installs it once, in ten seconds, and prints the path of the program.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.support.installing import folder, installed, own_python, pip, with_python

PACKAGES = ("moto[s3]==5.2.5", "Flask==3.1.3", "flask-cors==6.0.5", "Werkzeug==3.1.9", "boto3==1.44.8")
VERSION = "1"
"""Counted up when PACKAGES change."""


def moto_server() -> Path:
    """Return the program, and install it if it is not there. Raises CannotInstall."""
    return installed(folder("moto", with_python(VERSION)), "moto_server", _install, "--help")


def _install(home: Path) -> str:
    pip(own_python(home), *PACKAGES)
    return f'#!/bin/sh\nexec "{home}/venv/bin/moto_server" "$@"\n'


if __name__ == "__main__":
    sys.stdout.write(f"{moto_server()}\n")
