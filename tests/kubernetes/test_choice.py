"""Which programs and which cluster the tests take, and what they say where something is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kubernetes.cluster import build, clusters, node, programs
from tests.kubernetes.cluster.errors import MissingError


def fake_program(folder: Path, name: str, says: str) -> None:
    """Write a program that only says its version."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{says}'\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An environment that has no programs, and an empty cache. Returns a folder for fake programs."""
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "path"


def test_assets_come_before_path(nowhere: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in (nowhere, tmp_path / "assets"):
        for name, says in (("kubectl", "none"), ("helm", "v4.1.4")):
            fake_program(folder, name, says)
    assert programs.find(programs.TOOLS)["helm"] == nowhere / "helm"
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    assert programs.find(programs.TOOLS)["helm"] == tmp_path / "assets" / "helm"


@pytest.mark.parametrize(
    ("etcd", "usable"), [("etcd Version: 3.4.23", False), ("etcd Version: 3.5.11", True)]
)
def test_programs_are_taken_only_together_and_only_if_recent(nowhere: Path, etcd: str, usable: bool) -> None:
    for name in programs.CONTROL_PLANE.names[1:]:
        fake_program(nowhere, name, "Kubernetes v1.36.3")
    with pytest.raises(MissingError, match=r"no go on PATH: install Go 1\.26"):
        programs.find(programs.CONTROL_PLANE)
    fake_program(nowhere, "etcd", etcd)
    if usable:
        assert programs.find(programs.CONTROL_PLANE)["etcd"] == nowhere / "etcd"
    else:
        with pytest.raises(MissingError, match="KUBEBUILDER_ASSETS"):
            programs.find(programs.CONTROL_PLANE)
    assert not list(build.cache().glob("building-*"))


def test_old_go_is_named(nowhere: Path) -> None:
    fake_program(nowhere, "go", "go version go1.21.3 linux/amd64")
    with pytest.raises(MissingError, match="too old"):
        build.programs()


def test_a_named_cluster_is_used_only_with_consent(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_program(nowhere, "kubectl", "none")
    fake_program(nowhere, "helm", "v4.1.4")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(MissingError), clusters.api_server():
        pass
    monkeypatch.setenv(clusters.CONSENT, "yes")
    with clusters.api_server() as cluster:
        assert cluster.kubeconfig == tmp_path / "config"


def test_a_machine_without_programs_is_told_what_to_install(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "PLUGIN", "no-such-plugin")
    with pytest.raises(
        MissingError, match=r"root on Linux|apt-get install .*containerd containernetworking-plugins"
    ):
        node.check_machine()
