"""Where the programs of the test cluster are: KUBEBUILDER_ASSETS, PATH, or the cache that a build fills.

A group of programs comes from one place, so that their versions fit together.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.kubernetes.cluster import build
from tests.kubernetes.cluster.errors import ClusterError

LEAST_ETCD = (3, 5)
LEAST_KUBERNETES = (1, 31)


@dataclass(frozen=True)
class Group:
    """Programs that are used together. `least` are the oldest usable versions."""

    names: tuple[str, ...]
    least: dict[str, tuple[int, int]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    """What has to be beside them."""


CONTROL_PLANE = Group(
    ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"),
    {"etcd": LEAST_ETCD, "kube-apiserver": LEAST_KUBERNETES},
)
NODE = Group(("kubelet", "kube-proxy", "coredns"), {"kubelet": LEAST_KUBERNETES})
KWOK = Group(("kwok",), files=(build.STAGES,))
TOOLS = Group(("kubectl", "helm"), {"helm": (4, 0)})
ALL = (CONTROL_PLANE, NODE, KWOK, TOOLS)

_VERSION_ARGUMENTS = {"helm": ("version", "--short")}


def find(group: Group) -> dict[str, Path]:
    """Return the programs of a group by name, built first where no place has them all.

    Raises `MissingError` with what to install where a build is needed and cannot be made.
    """
    for folder in _places(group):
        programs = {name: folder / name for name in group.names}
        complete = all(os.access(program, os.X_OK) for program in programs.values())
        if complete and all((folder / name).exists() for name in group.files) and _recent(group, programs):
            return programs
    made = build.tools() if group is TOOLS else build.programs()
    return {name: made / name for name in group.names}


def _places(group: Group) -> Iterator[Path]:
    """Yield the folders where a group may be, in order. The cache comes after them."""
    if assets := os.environ.get("KUBEBUILDER_ASSETS"):
        yield Path(assets)
    if first := shutil.which(group.names[0]):
        yield Path(first).parent


def _recent(group: Group, programs: dict[str, Path]) -> bool:
    return all(version(name, programs[name]) >= least for name, least in group.least.items())


def version(name: str, program: Path) -> tuple[int, int]:
    """Return the first two numbers of a program's version. Raises `ClusterError` if it does not say."""
    command = [str(program), *_VERSION_ARGUMENTS.get(name, ("--version",))]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    if found is None:
        raise ClusterError(f"{' '.join(command)} names no version")
    return int(found[1]), int(found[2])
