"""The definitions of the custom resources, as they are applied to a cluster. Pure."""

from typing import Any

from nvcf_agent.kubernetes.client.kinds import ICMS_REQUEST, MINI_SERVICE, NVCF_BACKEND, Kind
from nvcf_agent.kubernetes.crds import icms_request
from nvcf_agent.kubernetes.crds.icms_request import RequestState
from nvcf_agent.kubernetes.crds.mini_service import MiniServiceSpec, MiniServiceStatus
from nvcf_agent.kubernetes.crds.nvcf_backend import BackendSpec, BackendStatus
from nvcf_agent.kubernetes.crds.schema import Schema, structural

Definition = dict[str, Any]


def definitions() -> list[Definition]:
    """Return all definitions."""
    return [
        _definition(
            NVCF_BACKEND,
            structural(BackendSpec, defaults=True),
            structural(BackendStatus),
            [
                _column("Age", ".metadata.creationTimestamp", kind="date"),
                _column("Version", ".status.version"),
                _column("Health", ".status.agentStatus"),
                _column("Cluster", ".spec.clusterConfig.clusterName"),
                _column("Kubernetes", ".status.kubernetesVersion", wide=True),
            ],
        ),
        _definition(
            ICMS_REQUEST,
            icms_request.spec_schema(),
            structural(RequestState),
            [
                _column("Phase", ".status.phase"),
                _column("Status", ".status.requestStatus"),
                _column("GPU", ".spec.creationMsgInfo.instanceTypeName"),
                _column("Account", ".spec.ncaId", wide=True),
                _column("Version", ".spec.functionDetails.functionVersionId", wide=True),
                _column("Error", ".status.lastReconcileError", wide=True),
                _column("Age", ".metadata.creationTimestamp", kind="date"),
            ],
        ),
        _definition(
            MINI_SERVICE,
            structural(MiniServiceSpec, defaults=True),
            structural(MiniServiceStatus),
            [
                _column("Phase", ".status.phase"),
                _column("Revision", ".status.revision", kind="integer"),
                _column("Namespace", ".spec.namespace"),
                _column("Request", ".spec.icmsRequestName", wide=True),
                _column("Chart", ".spec.helmChartConfig.url", wide=True),
                _column("Problem", '.status.conditions[?(@.status=="False")].message', wide=True),
                _column("Age", ".metadata.creationTimestamp", kind="date"),
            ],
        ),
    ]


def _definition(kind: Kind, spec: Schema, status: Schema, columns: list[Schema]) -> Definition:
    names = {"kind": kind.kind, "listKind": f"{kind.kind}List", "plural": kind.plural}
    root = {"type": "object", "required": ["spec"], "properties": {"spec": spec, "status": status}}
    version = {
        "name": kind.version,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": columns,
        "schema": {"openAPIV3Schema": root},
        "subresources": {"status": {}},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "names": names | {"singular": kind.kind.lower()},
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [version],
        },
    }


def _column(name: str, path: str, *, kind: str = "string", wide: bool = False) -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path}
    return column | {"priority": 1} if wide else column
