"""Names and labels of a MiniService's objects. Pure."""

from nvcf_agent.kubernetes.client.api import Object
from nvcf_agent.kubernetes.names import object_name
from nvcf_agent.kubernetes.pods.names import instance_of, request_of
from nvcf_proto.charts.objects import name_of

MINI_SERVICE_LABEL = "nvca.nvcf.nvidia.io/miniservice"
"""On every object of an instance: the name of its MiniService."""
GRACE = "nvcf.nvidia.io/grace-seconds"
"""Annotation of a MiniService that is deleted: seconds for its requests to finish."""
FINALIZER = "nvca.finalizers.nvidia.io"
UTILS = "utils"
FUNCTION_SECRETS = "nvcf-secrets"
"""Secret with the function's secrets.json, for pods of the chart that mount it."""
ARTIFACTS = "nvcf-artifacts"
"""Secret with what `nvcf-worker fetch` needs to download the function's models and resources."""
COLLECTOR = "byoo-otel-collector"
"""Service of the collector in the worker's pod, by which the chart's pods reach it."""
TAKEN = frozenset(
    (("Secret", FUNCTION_SECRETS), ("Secret", ARTIFACTS), ("Pod", UTILS), ("Service", COLLECTOR))
)
"""Kinds and names that a chart's objects cannot have."""
WORKLOAD_CONFIG = "nvcf-workload-config"
"""ConfigMap in which a chart says what it wants of the agent."""


def mini_service_name(instance_id: str) -> str:
    """Return the name of an instance's MiniService: `sr-…-miniservice`, as NVIDIA's agent calls it."""
    return object_name(namespace_of(instance_id), "miniservice")


def namespace_of(instance_id: str) -> str:
    """Return the namespace of an instance: that of its request, which has one instance."""
    return request_of(instance_id)


def rendered_secret(mini_service: str) -> str:
    """Return the name of the Secret with installed objects; the one with the order is called as the
    MiniService.
    """
    return object_name(mini_service, "rendered")


def instance_id_of(mini_service: Object) -> str:
    """Return the id of the instance that a MiniService is; its name if nobody said."""
    found = instance_of(mini_service)
    return name_of(mini_service) if found is None else found.instance_id
