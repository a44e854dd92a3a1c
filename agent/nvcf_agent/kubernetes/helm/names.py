"""Names and labels of a MiniService's objects. Pure."""

from nvcf_agent.kubernetes.client.api import Object
from nvcf_agent.kubernetes.names import object_name

MINI_SERVICE_LABEL = "nvca.nvcf.nvidia.io/miniservice"
"""On every object of an instance: the name of its MiniService."""
INSTANCE_ID = "nvcf.nvidia.io/instance-id"
GRACE = "nvcf.nvidia.io/grace-seconds"
"""Annotation of a MiniService that is deleted: seconds for its requests to finish."""
FINALIZER = "nvca.finalizers.nvidia.io"
UTILS = "utils"
WORKLOAD_CONFIG = "nvcf-workload-config"
"""ConfigMap in which a chart says what it wants of the agent."""


def mini_service_name(instance_id: str) -> str:
    """Return the name of an instance's MiniService: `sr-…-miniservice`, as NVIDIA's agent calls it."""
    return object_name(namespace_of(instance_id), "miniservice")


def namespace_of(instance_id: str) -> str:
    """Return the namespace of an instance: `sr-…`, since a request has one instance."""
    return object_name(instance_id.partition("-")[2])


def order_secret(mini_service: str) -> str:
    """Return the name of the Secret with the order of a MiniService."""
    return mini_service


def rendered_secret(mini_service: str) -> str:
    """Return the name of the Secret with the installed objects of a MiniService."""
    return object_name(mini_service, "rendered")


def instance_id_of(mini_service: Object) -> str:
    """Return the id of the instance that a MiniService is; its name if nobody said."""
    metadata = mini_service["metadata"]
    found = (metadata.get("annotations") or {}).get(INSTANCE_ID) or metadata["name"]
    return str(found)
