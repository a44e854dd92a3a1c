"""The command line of the agent on Kubernetes: what it does not take from its NVCFBackend."""

import argparse
import os
from ipaddress import ip_network
from pathlib import Path

from nvcf_agent.kubernetes.client.kinds import Kind
from nvcf_proto.charts.policy import PolicyName

DEFAULT_DATA = Path("/var/lib/nvcf-agent")
DEFAULT_SYSTEM_NAMESPACE = "nvca-system"


def _address_range(text: str) -> str:
    return str(ip_network(text))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that only this backend has."""
    add = parser.add_argument_group("with --backend kubernetes").add_argument
    text = "name of the NVCFBackend with the settings [default: the only one in the system namespace]"
    add("--backend-object", metavar="NAME", help=text)
    text = "namespace of the NVCFBackend and of the agent's lease "
    text += f"[default: POD_NAMESPACE, else {DEFAULT_SYSTEM_NAMESPACE}]"
    namespace = os.environ.get("POD_NAMESPACE") or DEFAULT_SYSTEM_NAMESPACE
    add("--system-namespace", default=namespace, metavar="NAMESPACE", help=text)
    text = "namespace of requests and function pods [default: as the NVCFBackend says, else nvcf-backend]"
    add("--requests-namespace", metavar="NAMESPACE", help=text)
    text = "how to reach the API server [default: the pod's service account]"
    add("--kubeconfig", metavar="FILE", help=text)
    text = "answer /livez and /readyz here [default: off]"
    add("--health", metavar="HOST:PORT", help=text)
    text = "image of the worker, beside functions that bring none [default: NVCF_WORKER_IMAGE]"
    add("--worker-image", default=os.environ.get("NVCF_WORKER_IMAGE"), metavar="IMAGE", help=text)
    add("--collector-image", metavar="IMAGE", help="image of the OpenTelemetry Collector (contrib)")
    text = "run Helm functions, if there is a program helm"
    add("--helm-functions", action=argparse.BooleanOptionalAction, default=True, help=text)
    text = "policy for charts: Default, or Unrestricted for deployments that ask for it [%(default)s]"
    add("--helm-policy", default=PolicyName.DEFAULT, choices=[each.value for each in PolicyName], help=text)
    text = "kind that charts may have besides; PLURAL is its name in URLs; repeatable"
    add("--helm-extra-kind", action="append", type=extra_kind, default=[],
        metavar="GROUP/VERSION/KIND/PLURAL", help=text)  # fmt: skip
    text = (
        "HOST or HOST:PORT of charts that may have a private address; with http:// it has no TLS; repeatable"
    )
    add("--helm-host", action="append", default=[], metavar="HOST", help=text)
    add(
        "--helm-skip-checks",
        action="store_true",
        help="install what could leave the function's namespace, too",
    )
    text = "namespace of the control plane, if it is in this cluster: function pods may reach it"
    add("--control-plane-namespace", metavar="NAMESPACE", help=text)
    text = "private addresses of the control plane that function pods may reach; repeatable"
    add("--control-plane-range", action="append", default=[], type=_address_range, metavar="CIDR", help=text)
    text = (
        "addresses of the API server, closed to function pods without the flag "
        "AllowWorkloadKubernetesAPIAccess; private ones are closed anyway; repeatable"
    )
    add("--api-server-range", action="append", default=[], type=_address_range, metavar="CIDR", help=text)
    text = "namespace whose pods may scrape the metrics of function pods"
    add("--monitoring-namespace", metavar="NAMESPACE", help=text)
    text = "make no network policies for function pods: something else keeps them apart"
    add("--no-network-policies", action="store_false", dest="network_policies", help=text)
    text = "feature flags beside those of the NVCFBackend; -NAME turns one off"
    add("--feature-gates", default="", metavar="NAME,-NAME", help=text)


def extra_kind(text: str) -> Kind:
    """Return a kind from GROUP/VERSION/KIND/PLURAL. Raises ArgumentTypeError."""
    parts = text.split("/")
    if len(parts) != 4 or not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r}: expected GROUP/VERSION/KIND/PLURAL")
    group, version, kind, plural = parts
    return Kind(group, version, plural, kind)
