"""An API server with etcd, controllers and scheduler, on free ports and in a folder of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from nvcf_broker.process import free_port
from tests.kubernetes.cluster import pki
from tests.kubernetes.cluster.client import Client
from tests.kubernetes.cluster.processes import Processes

SERVICE_NETWORK = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
POD_NETWORK = "10.244.0.0/16"
ISSUER = "https://kubernetes.default.svc.cluster.local"
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Settings:
    """What differs between a control plane alone and one that has a real node."""

    address: str = LOOPBACK
    """Where nodes and pods reach the API server, beside the loopback."""
    port: int | None = None
    """Port of the API server; None: a free one."""
    node: str = "node"
    node_grace_seconds: int = 40
    """Time without a heartbeat until a node is lost."""


DEFAULTS = Settings()


class ControlPlane:
    """The processes of one control plane. Its state is thrown away with `folder`."""

    def __init__(self, programs: dict[str, Path], folder: Path, settings: Settings = DEFAULTS) -> None:
        self.settings = settings
        self.kubeconfig = folder / "admin.kubeconfig"
        self.processes = Processes(folder / "log")
        self.pki = folder / "pki"
        self.start_seconds = 0.0
        self._programs = programs
        self._folder = folder
        self._port = settings.port or free_port()

    @property
    def server(self) -> str:
        """URL of the API server on the loopback."""
        return f"https://{LOOPBACK}:{self._port}"

    def user(self, name: str) -> Path:
        """Return the kubeconfig file of one of the users of `pki.make`."""
        path = self._folder / f"{name}.kubeconfig"
        pki.write_kubeconfig(self.pki, name, self.server, path)
        return path

    def start(self) -> None:
        """Start, and wait until the API server is ready and the controllers work. Raises `ClusterError`."""
        began = time.monotonic()
        pki.make(self.pki, [SERVICE_ADDRESS, self.settings.address], self.settings.node)
        self.user("admin")
        client, run = Client(self.kubeconfig), self.processes.start
        etcd_url = f"http://{LOOPBACK}:{free_port()}"
        run("etcd", self._etcd(etcd_url))
        run("kube-apiserver", self._api_server(etcd_url))
        self.processes.wait(client.ready, "the API server is ready")
        run("kube-controller-manager", self._controller_manager())
        run("kube-scheduler", self._scheduler())
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self.processes.wait(lambda: client.find(account), "the controllers make the default service account")
        self.start_seconds = time.monotonic() - began

    def stop(self) -> None:
        """End all processes."""
        self.processes.stop()

    def _etcd(self, url: str) -> list[str]:
        peers = f"http://{LOOPBACK}:{free_port()}"
        options = {
            "name": "test",
            "data-dir": self._folder / "etcd",
            "listen-client-urls": url,
            "advertise-client-urls": url,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"test={peers}",
            "unsafe-no-fsync": "true",
        }
        return self._command("etcd", options)

    def _api_server(self, etcd: str) -> list[str]:
        pki = self.pki
        alone = self.settings.address == LOOPBACK
        options: dict[str, object] = {
            "etcd-servers": etcd,
            "bind-address": LOOPBACK if alone else "0.0.0.0",  # noqa: S104 - a network namespace of its own
            "advertise-address": self.settings.address,
            # Alone it has an address of the loopback, which an endpoint of a Service may not have.
            "endpoint-reconciler-type": "none" if alone else "lease",
            "secure-port": self._port,
            "service-cluster-ip-range": SERVICE_NETWORK,
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "client-ca-file": pki / "ca.crt",
            "tls-cert-file": pki / "apiserver.crt",
            "tls-private-key-file": pki / "apiserver.key",
            "kubelet-client-certificate": pki / "apiserver-to-kubelet.crt",
            "kubelet-client-key": pki / "apiserver-to-kubelet.key",
            "kubelet-certificate-authority": pki / "ca.crt",
            "kubelet-preferred-address-types": "InternalIP,Hostname",
            "service-account-issuer": ISSUER,
            "service-account-key-file": pki / "tokens.pub",
            "service-account-signing-key-file": pki / "tokens.key",
            "requestheader-client-ca-file": pki / "front.crt",
            "requestheader-allowed-names": "front-proxy-client",
            "requestheader-username-headers": "X-Remote-User",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "proxy-client-cert-file": pki / "front-client.crt",
            "proxy-client-key-file": pki / "front-client.key",
            "allow-privileged": "true",
            "profiling": "false",
        }
        return self._command("kube-apiserver", options)

    def _controller_manager(self) -> list[str]:
        options: dict[str, object] = {
            **self._controller_options("controller-manager"),
            "use-service-account-credentials": "true",
            "service-account-private-key-file": self.pki / "tokens.key",
            "root-ca-file": self.pki / "ca.crt",
            "cluster-signing-cert-file": self.pki / "ca.crt",
            "cluster-signing-key-file": self.pki / "ca.key",
            "allocate-node-cidrs": "true",
            "cluster-cidr": POD_NETWORK,
            "service-cluster-ip-range": SERVICE_NETWORK,
            "node-monitor-grace-period": f"{self.settings.node_grace_seconds}s",
        }
        return self._command("kube-controller-manager", options)

    def _scheduler(self) -> list[str]:
        return self._command("kube-scheduler", self._controller_options("scheduler"))

    def _controller_options(self, user: str) -> dict[str, object]:
        kubeconfig = self.user(user)
        return {
            "kubeconfig": kubeconfig,
            "authentication-kubeconfig": kubeconfig,
            "authorization-kubeconfig": kubeconfig,
            "leader-elect": "false",
            "secure-port": "0",
        }

    def _command(self, program: str, options: dict[str, object]) -> list[str]:
        return [str(self._programs[program]), *(f"--{name}={value}" for name, value in options.items())]
