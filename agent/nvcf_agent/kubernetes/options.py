"""The command line of the agent on Kubernetes: what it does not take from its NVCFBackend."""

import argparse
import os
from pathlib import Path

DEFAULT_DATA = Path("/var/lib/nvcf-agent")
DEFAULT_SYSTEM_NAMESPACE = "nvca-system"


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
    text = "feature flags beside those of the NVCFBackend; -NAME turns one off"
    add("--feature-gates", default="", metavar="NAME,-NAME", help=text)
