"""Configuration files of the real node's programs. Pure."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.kubernetes.cluster.control_plane import POD_NETWORK

ADDRESS = "10.77.0.1"
"""The node's address, in a network namespace of its own."""
POD_RANGE = "10.244.0.0/24"
DNS_DOMAIN = "cluster.local"
PAUSE_IMAGE = "registry.local/pause:1"
PLUGIN_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
"""Where distributions have the CNI plugins."""


def cni(state: Path) -> str:
    """Return the network of pods: a bridge, addresses of `POD_RANGE`, and mapped ports."""
    addresses = {
        "type": "host-local",
        "dataDir": str(state / "cni-addresses"),
        "ranges": [[{"subnet": POD_RANGE}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": addresses,
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, ports]})


def containerd(state: Path, plugins: Path, snapshotter: str) -> str:
    """Return containerd's configuration (its version 2, which 1.6 and 1.7 read)."""
    return f"""
version = 2
root = "{state}/containerd"
state = "{state}/containerd-run"
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
  address = "{containerd_socket(state)}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Root without CAP_SYS_RESOURCE may not lower oom_score_adj; runc would fail with an unrelated message.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{state}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"""


def containerd_socket(state: Path) -> Path:
    """Return where containerd listens."""
    return state / "containerd.sock"


def kubelet(state: Path, pki: Path, cgroup: str) -> str:
    """Return the kubelet's configuration."""
    nothing = {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"}
    return yaml.safe_dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "failSwapOn": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{cgroup}",
            "containerRuntimeEndpoint": f"unix://{containerd_socket(state)}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(pki / "kubelet-server.crt"),
            "tlsPrivateKeyFile": str(pki / "kubelet-server.key"),
            "clusterDomain": DNS_DOMAIN,
            "clusterDNS": [ADDRESS],
            "resolvConf": str(state / "resolv.conf"),
            # Tests of eviction ask for it; a full disk of the machine must not.
            "evictionHard": {**nothing, "nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%"},
            "imageGCHighThresholdPercent": 100,
            "enforceNodeAllocatable": ["pods"],
            "nodeStatusUpdateFrequency": "5s",
            "syncFrequency": "10s",
        }
    )


def kube_proxy(kubeconfig: Path, node: str) -> str:
    """Return kube-proxy's configuration. It leaves the machine's connection tracking alone."""
    return yaml.safe_dump(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": POD_NETWORK,
            "hostnameOverride": node,
            "clientConnection": {"kubeconfig": str(kubeconfig)},
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }
    )


def coredns(kubeconfig: Path) -> str:
    """Return the configuration of the names of services. It forwards nothing: pods see this cluster only."""
    return f"""
.:53 {{
    bind {ADDRESS}
    errors
    ready 127.0.0.1:8181
    kubernetes {DNS_DOMAIN} in-addr.arpa {{
        kubeconfig {kubeconfig}
        ttl 1
    }}
}}
"""
