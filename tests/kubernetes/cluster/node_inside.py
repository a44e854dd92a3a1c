"""The real node from the inside: process 1 of its own network, mount, process, IPC and host-name namespaces.

`node` starts it, and ends everything here by killing it: containers, mounts, links and packet filters go with
the namespaces. usage: python -m tests.kubernetes.cluster.node_inside FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.kubernetes.cluster import node_files
from tests.kubernetes.cluster.client import Client
from tests.kubernetes.cluster.control_plane import ControlPlane, Settings
from tests.kubernetes.cluster.errors import ClusterError
from tests.kubernetes.cluster.kwok import NODES, is_ready
from tests.kubernetes.cluster.node_files import ADDRESS, containerd_socket

SETTINGS = "settings.json"
READY = "ready.json"
FAILED = "failed"
ARCHIVE = "system.tar"


def main(folder: Path) -> None:
    """Start the node, write `READY` or `FAILED`, and collect ended processes until killed."""
    settings = json.loads((folder / SETTINGS).read_text())
    try:
        _write(folder / READY, json.dumps(_start(folder, settings)))
    except (ClusterError, OSError, subprocess.SubprocessError) as error:
        _write(folder / FAILED, str(error))
        return
    while True:
        os.waitpid(-1, 0)


def _start(folder: Path, given: dict[str, Any]) -> dict[str, int]:
    """Start everything in order. Return the process ids by program, as they are in here."""
    settings = Settings(**given["control_plane"])
    found = {name: Path(path) for name, path in given["programs"].items()}
    _prepare_mounts(folder)
    _prepare_network(settings.node)
    control = ControlPlane(found, folder, settings)
    run = control.processes
    _start_containerd(control, folder, Path(given["plugins"]))
    control.start()
    client = Client(control.kubeconfig)
    kubelet_user, admin = control.user("kubelet"), control.kubeconfig
    texts = {
        "kubelet.yaml": node_files.kubelet(folder, control.pki, given["cgroup"]),
        "proxy.yaml": node_files.kube_proxy(control.user("proxy"), settings.node),
        "Corefile": node_files.coredns(admin),
        "resolv.conf": f"nameserver {ADDRESS}\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    kubelet = [
        f"--config={folder}/kubelet.yaml",
        f"--kubeconfig={kubelet_user}",
        f"--root-dir={folder}/kubelet",
    ]
    kubelet += [f"--hostname-override={settings.node}", f"--node-ip={ADDRESS}", "--v=2"]
    run.start("kubelet", [str(found["kubelet"]), *kubelet])
    run.start("kube-proxy", [str(found["kube-proxy"]), f"--config={folder}/proxy.yaml"])
    run.start("coredns", [str(found["coredns"]), "-conf", str(folder / "Corefile")])

    def ready() -> bool:
        node = client.find(f"{NODES}/{settings.node}")
        return node is not None and is_ready(node)

    run.wait(ready, "the node is ready")
    return run.pids()


def _start_containerd(control: ControlPlane, folder: Path, plugins: Path) -> None:
    (folder / "cni").mkdir()
    (folder / "cni" / "10-pods.conflist").write_text(node_files.cni(folder))
    configuration = folder / "containerd.toml"
    configuration.write_text(node_files.containerd(folder, plugins, _snapshotter(folder)))
    control.processes.start("containerd", ["containerd", "-c", str(configuration)])
    command = ["ctr", "-a", str(containerd_socket(folder)), "-n", "k8s.io"]
    said: list[str] = []

    def takes_calls() -> bool:
        done = subprocess.run([*command, "version"], capture_output=True, text=True, timeout=60, check=False)
        said[:] = [done.stderr]
        return done.returncode == 0

    control.processes.wait(takes_calls, "containerd takes calls")
    _run(*command, "images", "import", str(folder / ARCHIVE))


def _prepare_mounts(folder: Path) -> None:
    """Give the node its own /run, logs and /var/lib/kubelet.

    There device plugins meet the kubelet; kubelets that share /var/log/pods remove each other's logs.
    """
    # The kubelet wants shared mounts; they are shared within this namespace only.
    _run("mount", "--make-rprivate", "/")
    _run("mount", "--make-rshared", "/")
    _run("mount", "-t", "tmpfs", "tmpfs", "/run")
    Path("/run/lock").mkdir()
    own = {
        "/var/lib/kubelet": folder / "var-lib-kubelet",
        "/var/log/pods": folder / "log" / "pods",
        "/var/log/containers": folder / "log" / "containers",
    }
    for target, source in own.items():
        source.mkdir(parents=True, exist_ok=True)
        Path(target).mkdir(parents=True, exist_ok=True)
        _run("mount", "--bind", str(source), target)


def _prepare_network(name: str) -> None:
    """Give the node an address on a pair of virtual links, and a default route for the API server."""
    _run("hostname", name)
    for setting in ("ip_forward", "conf/all/route_localnet"):
        Path("/proc/sys/net/ipv4", setting).write_text("1")
    for command in (
        "link set lo up",
        "link add node0 type veth peer name node0p",
        "link set node0p up",
        "link set node0 up",
        f"addr add {ADDRESS}/24 dev node0",
        "route add default dev node0",
    ):
        _run("ip", *command.split())


def _snapshotter(folder: Path) -> str:
    """Return overlayfs, or where that cannot be mounted (a container's own overlay) the slow copying one."""
    parts = {name: folder / f"try-{name}" for name in ("lower", "upper", "work", "merged")}
    for path in parts.values():
        path.mkdir()
    options = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
    command = ["mount", "-t", "overlay", "overlay", "-o", options, str(parts["merged"])]
    if subprocess.run(command, capture_output=True, timeout=60, check=False).returncode:
        return "native"
    _run("umount", str(parts["merged"]))
    return "overlayfs"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")


def _write(path: Path, text: str) -> None:
    """Write a file that appears complete or not at all."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.rename(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
