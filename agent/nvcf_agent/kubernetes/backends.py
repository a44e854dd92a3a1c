"""The backends of a cluster, made from its settings."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from nvcf_agent.backends.interface import Secrets
from nvcf_agent.kubernetes.backend import PodBackend
from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.composite import KubernetesBackend
from nvcf_agent.kubernetes.flags import Flag
from nvcf_agent.kubernetes.pods.observe import Limits
from nvcf_agent.kubernetes.pods.settings import PRIVATE_RANGES, Network, PodSettings
from nvcf_agent.kubernetes.settings import Settings
from nvcf_agent.kubernetes.watcher import PodWatcher
from nvcf_agent.state import order as orders
from nvcf_proto.icms.messages import CreationMessage


def make_backend(
    api: Api,
    settings: Settings,
    *,
    owner: Callable[[str], Object | None],
    resource: Callable[[str], str],
    secrets: Secrets,
    grace: float,
    ready_seconds: float,
) -> KubernetesBackend:
    """Return the backend of all functions.

    `owner` returns the object of a request's id, `resource` the name of the resource of a GPU's name.
    """

    async def owner_of(order: CreationMessage) -> Mapping[str, Any] | None:
        return owner(order.request_id)

    limits = replace(Limits(), never_ready=ready_seconds)
    if settings.degraded_seconds is not None:
        limits = replace(limits, not_ready_again=settings.degraded_seconds)
    if not settings.has(Flag.AUTO_PURGE):
        limits = replace(limits, never_ready=float("inf"), not_ready_again=float("inf"))
    pods = PodBackend(
        api,
        pod_settings(settings, grace, ready_seconds),
        owner=owner_of,
        gpu_resource=lambda order: resource(orders.gpu(order)),
        secrets=secrets,
        watcher=PodWatcher(api, settings.requests_namespace, limits),
    )
    return KubernetesBackend(pods, None)


def pod_settings(settings: Settings, grace: float, ready_seconds: float) -> PodSettings:
    """Return the settings of function pods. Pure."""
    cluster, agent = settings.backend.cluster_config, settings.backend.agent_config
    return PodSettings(
        worker_image=settings.worker_image,
        namespace=settings.requests_namespace,
        cluster_name=cluster.cluster_name,
        region=cluster.region,
        collector_image=settings.collector_image,
        pull_secrets=tuple(
            str(each["name"]) for each in agent.additional_image_pull_secrets if each.get("name")
        ),
        tolerations=agent.tolerations,
        variables=agent.override_environment_vars,
        grace=round(grace),
        ready_seconds=round(ready_seconds),
        network=Network(
            private=(*PRIVATE_RANGES, *cluster.k8s_cluster_network_cidrs),
            api_access=settings.has(Flag.API_ACCESS),
        ),
    )
