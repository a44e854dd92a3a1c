"""A real node: containerd, kubelet, kube-proxy and CoreDNS with an API server, in namespaces of their own.

Several may run on one machine. Killing one process ends a node with all its containers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.kubernetes.cluster import cgroups, image_contents, node_files, node_inside, pki, programs
from tests.kubernetes.cluster.client import Client
from tests.kubernetes.cluster.clusters import Cluster, run_folder
from tests.kubernetes.cluster.control_plane import DEFAULTS, Settings
from tests.kubernetes.cluster.errors import ClusterError, MissingError
from tests.kubernetes.cluster.gpus import H100, RESOURCE, Gpu, gpu_labels
from tests.kubernetes.cluster.images import Image, write_archive, write_layer
from tests.kubernetes.cluster.processes import Processes, wait_until

NAME = "node"
API_PORT = 6443
START_SECONDS = 240.0
NEEDED = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
    "ip": "iproute2",
    "iptables": "iptables",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
}
"""Programs, and the Debian packages that have them."""
PLUGIN = "bridge"
"""One of the CNI plugins, which are in one package."""
STORAGE_CLASS = "node"
VOLUMES = 8
VOLUME_SIZE = "100Gi"

_NAMESPACES = ("--net", "--mount", "--pid", "--ipc", "--uts")


class Node:
    """One real node. `real_node` makes it."""

    def __init__(self, folder: Path, cluster: Cluster, init: int, pids: dict[str, int]) -> None:
        self.cluster = cluster
        self.name = NAME
        self.folder = folder
        self.start_seconds = 0.0
        self._init = init
        self._pids = pids
        self.processes = Processes(folder / "log")

    def enter(self, *command: str, timeout: float = 60.0) -> str:
        """Run a command in the node's namespaces, and return its output. Raises `ClusterError`."""
        inside = ["nsenter", "-t", str(self._init), *_NAMESPACES, f"--wdns={os.getcwd()}", *command]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode:
            raise ClusterError(f"{' '.join(command)}: {done.stderr[-4000:]}")
        return done.stdout

    def signal(self, program: str, number: int) -> None:
        """Send a signal to one of the node's programs, such as SIGSTOP to "kubelet"."""
        self.enter("sh", "-c", f"kill -{number} {self._pids[program]}")

    def forward(self, host: str, port: int) -> int:
        """Return a port of the machine's loopback whose connections go to an address in the node."""
        return forward(self.processes, self._init, host, port)

    def add_images(self, archive: Path) -> None:
        """Import the images of an archive of `images.write_archive`, for all pods."""
        self.ctr("images", "import", str(archive))

    def ctr(self, *arguments: str) -> str:
        """Run containerd's own client in the namespace of Kubernetes' images and containers."""
        address = str(node_files.containerd_socket(self.folder))
        return self.enter("ctr", "-a", address, "-n", "k8s.io", *arguments, timeout=600.0)

    def add_gpus(self, count: int, gpu: Gpu = H100, resource: str = RESOURCE) -> None:
        """Offer fake GPUs by labels and a device plugin, and wait until the node counts them."""
        plugins = self.folder / "var-lib-kubelet" / "device-plugins"
        module = "tests.kubernetes.cluster.device_plugin"
        self.processes.start(
            "device-plugin", [sys.executable, "-m", module, str(plugins), str(count), resource]
        )
        client = self.cluster.client
        client.patch(f"/api/v1/nodes/{self.name}", {"metadata": {"labels": gpu_labels(gpu, count)}})

        def counted() -> bool:
            allocatable = client.get(f"/api/v1/nodes/{self.name}")["status"]["allocatable"]
            return bool(allocatable.get(resource) == str(count))

        wait_until(counted, f"the node has {count} {resource}", check=self.processes.check)


@contextlib.contextmanager
def real_node(settings: Settings = DEFAULTS, failed: Callable[[], bool] = bool) -> Iterator[Node]:
    """Run a cluster with one real node. Logs are kept if `failed()` says so at the end.

    Raises `MissingError` with what to install where the machine cannot run one.
    """
    plugins = check_machine()
    found = programs.find(programs.CONTROL_PLANE) | programs.find(programs.NODE)
    tools = programs.find(programs.TOOLS)
    cgroup = f"nvcf-test-{secrets.token_hex(4)}"
    with run_folder("node", failed) as folder, contextlib.ExitStack() as cleanup:
        cgroups.make(cgroup)
        cleanup.callback(cgroups.remove, cgroup)
        began = time.monotonic()
        _write_system_images(folder)
        settings = dataclasses.replace(settings, address=node_files.ADDRESS, port=API_PORT, node=NAME)
        given = {
            "cgroup": cgroup,
            "plugins": str(plugins),
            "programs": {name: str(path) for name, path in found.items()},
            "control_plane": dataclasses.asdict(settings),
        }
        (folder / node_inside.SETTINGS).write_text(json.dumps(given))
        outside = Processes(folder / "log")
        cleanup.callback(outside.stop)
        inside = [sys.executable, "-m", "tests.kubernetes.cluster.node_inside", str(folder)]
        unshare = ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "--kill-child", *inside]
        keeper = outside.start("node", unshare)
        init = _child_of(keeper)
        cleanup.callback(_end, init)
        pids = _wait_until_ready(folder, outside)
        port = forward(outside, init, "127.0.0.1", API_PORT)
        kubeconfig = folder / "machine.kubeconfig"
        pki.write_kubeconfig(folder / "pki", "admin", f"https://127.0.0.1:{port}", kubeconfig)
        node = Node(folder, Cluster(kubeconfig, tools), init, pids)
        cleanup.callback(node.processes.stop)
        _add_storage(node.cluster.client, folder)
        node.start_seconds = time.monotonic() - began
        yield node


def check_machine() -> Path:
    """Return the folder of the CNI plugins. Raises `MissingError` with all that the machine lacks."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise MissingError("a real node needs root on Linux: containers, mounts and namespaces are made")
    packages = {package for program, package in NEEDED.items() if shutil.which(program) is None}
    plugins = next((folder for folder in node_files.PLUGIN_FOLDERS if (folder / PLUGIN).exists()), None)
    if plugins is None:
        packages.add("containernetworking-plugins")
    if not image_contents.BUSYBOX.exists():
        packages.add("busybox-static")
    if packages or plugins is None:
        raise MissingError(f"a real node needs: apt-get install {' '.join(sorted(packages))}")
    command = ["unshare", *_NAMESPACES, "--fork", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if tried.returncode:
        raise MissingError(
            f"a real node needs namespaces, which this machine refuses: {tried.stderr.strip()}"
        )
    return plugins


def forward(processes: Processes, process: int, host: str, port: int) -> int:
    """Pass connections to a free port of the machine on into the network of a process. Returns the port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        descriptor, free = listening.fileno(), int(listening.getsockname()[1])
        relay = [sys.executable, "-m", "tests.kubernetes.cluster.relay", str(descriptor), host, str(port)]
        command = ["nsenter", "-t", str(process), "--net", *relay]
        processes.start(f"relay-{free}", command, descriptors=(descriptor,))
    return free


def _write_system_images(folder: Path) -> None:
    layer = write_layer(folder / "busybox.layer", image_contents.system())
    pause = Image(node_files.PAUSE_IMAGE, [layer], entrypoint=["/bin/busybox", "sleep", str(2**31 - 1)])
    busybox = Image("registry.local/busybox:1", [layer], command=["/bin/sh"])
    write_archive(folder / node_inside.ARCHIVE, [pause, busybox])


def _wait_until_ready(folder: Path, outside: Processes) -> dict[str, int]:
    ready, failed = folder / node_inside.READY, folder / node_inside.FAILED
    try:
        outside.wait(lambda: ready.exists() or failed.exists(), "the real node is ready", START_SECONDS)
    except ClusterError as error:
        raise ClusterError(failed.read_text() if failed.exists() else str(error)) from error
    if failed.exists():
        raise ClusterError(failed.read_text())
    pids: dict[str, int] = json.loads(ready.read_text())
    return pids


def _add_storage(client: Client, folder: Path) -> None:
    """Make volumes in folders of the node, and the default class that claims find them by."""
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": STORAGE_CLASS, "annotations": default},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }
    client.create("/apis/storage.k8s.io/v1/storageclasses", storage_class)
    for index in range(VOLUMES):
        path = folder / "volumes" / str(index)
        path.mkdir(parents=True)
        path.chmod(0o777)
        spec = {
            "capacity": {"storage": VOLUME_SIZE},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": STORAGE_CLASS,
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(path)},
        }
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"volume-{index}"},
            "spec": spec,
        }
        client.create("/api/v1/persistentvolumes", volume)


def _child_of(process: int) -> int:
    children = Path(f"/proc/{process}/task/{process}/children")
    wait_until(children.read_text, "the namespaces are made")
    (child,) = children.read_text().split()
    return int(child)


def _end(init: int) -> None:
    """Kill the first process of the namespaces, and wait until all that ran there has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(init, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{init}").exists(), "the processes of the node have ended")
