"""Kinds of Kubernetes objects that the agent uses, and where the API server has them. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A kind of objects. `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The object's `apiVersion`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, part: str | None = None) -> str:
        """Return the path of the collection, of one object, or of a part of it such as `status`.

        Without a namespace, the collection of a namespaced kind is that of all namespaces.
        """
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        inside = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        tail = "".join(f"/{each}" for each in (name, part) if each)
        return f"{root}{inside}/{self.plural}{tail}"

    def new(
        self,
        name: str,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
        **members: Any,
    ) -> dict[str, Any]:
        """Return an object with these members."""
        given = {"name": name, "namespace": namespace, "labels": None if labels is None else dict(labels)}
        metadata = {key: value for key, value in given.items() if value is not None}
        return {"apiVersion": self.api_version, "kind": self.kind, "metadata": metadata, **members}


POD = Kind("", "v1", "pods", "Pod")
NODE = Kind("", "v1", "nodes", "Node", namespaced=False)
NAMESPACE = Kind("", "v1", "namespaces", "Namespace", namespaced=False)
SECRET = Kind("", "v1", "secrets", "Secret")
CONFIG_MAP = Kind("", "v1", "configmaps", "ConfigMap")
SERVICE = Kind("", "v1", "services", "Service")
SERVICE_ACCOUNT = Kind("", "v1", "serviceaccounts", "ServiceAccount")
RESOURCE_QUOTA = Kind("", "v1", "resourcequotas", "ResourceQuota")
EVENT = Kind("", "v1", "events", "Event")
LEASE = Kind("coordination.k8s.io", "v1", "leases", "Lease")
NETWORK_POLICY = Kind("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
ROLE_BINDING = Kind("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
ICMS_REQUEST = Kind("nvca.nvcf.nvidia.io", "v2beta1", "icmsrequests", "ICMSRequest")
MINI_SERVICE = Kind("nvca.nvcf.nvidia.io", "v1alpha1", "miniservices", "MiniService", namespaced=False)
NVCF_BACKEND = Kind("nvcf.nvidia.io", "v1", "nvcfbackends", "NVCFBackend")
