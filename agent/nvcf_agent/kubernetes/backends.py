"""The backends of a cluster, made from its settings."""

import argparse
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from nvcf_agent.backends.interface import NO_SECRETS, Secrets
from nvcf_agent.kubernetes.backend import PodBackend
from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.kinds import Kind
from nvcf_agent.kubernetes.composite import KubernetesBackend
from nvcf_agent.kubernetes.flags import Flag
from nvcf_agent.kubernetes.helm.backend import HelmBackend
from nvcf_agent.kubernetes.helm.command import Helm
from nvcf_agent.kubernetes.helm.fetch import FetchSettings
from nvcf_agent.kubernetes.helm.settings import HelmSettings
from nvcf_agent.kubernetes.pods.observe import Limits
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_agent.kubernetes.prefetch import Nodes
from nvcf_agent.kubernetes.settings import Settings
from nvcf_agent.kubernetes.watcher import PodWatcher
from nvcf_agent.kubernetes.worker_modes import WorkerModes
from nvcf_agent.state import order as orders
from nvcf_proto.charts.policy import Policy, PolicyName

_log = logging.getLogger(__name__)


def make_backend(
    api: Api,
    settings: Settings,
    *,
    owner: Callable[[str], Object | None],
    resource: Callable[[str], str],
    nodes: Nodes,
    secrets: Secrets,
    grace: float,
    ready_seconds: float,
    modes: WorkerModes | None = None,
    helm: HelmSettings | None = None,
    helm_secrets: Secrets = NO_SECRETS,
) -> KubernetesBackend:
    """Return the backend of all functions. Without `helm`, or without the program, it runs no charts.

    `owner` returns the object of a request's id, `resource` the name of the resource of a GPU's name,
    `nodes` the names of the nodes of an instance type's value.
    """
    limits = replace(Limits(), never_ready=ready_seconds)
    if settings.degraded_seconds is not None:
        limits = replace(limits, not_ready_again=settings.degraded_seconds)
    if not settings.has(Flag.AUTO_PURGE):
        limits = replace(limits, never_ready=float("inf"), not_ready_again=float("inf"))
    of_pods = pod_settings(settings, grace, ready_seconds)
    pods = PodBackend(
        api,
        of_pods,
        owner=owner,
        gpu_resource=lambda order: resource(orders.gpu(order)),
        nodes=nodes,
        secrets=secrets,
        watcher=PodWatcher(api, settings.requests_namespace, limits),
        modes=modes,
    )
    program = None if helm is None else Helm.find()
    if helm is None or program is None:
        _log.info("Helm functions are refused: %s", "switched off" if helm is None else "there is no helm")
        return KubernetesBackend(pods, None)
    helm = replace(helm, limits=replace(limits, unscheduled=helm.pending))
    return KubernetesBackend(pods, HelmBackend(api, helm, of_pods, program, helm_secrets))


def helm_settings(options: argparse.Namespace, environ: Mapping[str, str]) -> HelmSettings | None:
    """Return the settings of Helm functions; None if there are to be none. Pure."""
    if not options.helm_functions:
        return None
    kinds: list[Kind] = options.helm_extra_kind
    namespace, account = environ.get("POD_NAMESPACE"), environ.get("POD_SERVICE_ACCOUNT")
    return HelmSettings(
        policy=Policy(
            PolicyName(options.helm_policy),
            frozenset((each.group, each.version, each.kind) for each in kinds),
            objects=not options.helm_skip_checks,
        ),
        extra_kinds=tuple(kinds),
        fetch=fetch_settings(options),
        service_account=f"{namespace}/{account}" if namespace and account else "",
        role=environ.get("NVCF_MINISERVICE_ROLE") or HelmSettings.role,
    )


def fetch_settings(options: argparse.Namespace) -> FetchSettings:
    """Return which registries the agent may call. Pure."""
    plain = frozenset(host for each in options.helm_host if (host := each.removeprefix("http://")) != each)
    return FetchSettings(
        private=frozenset(each.removeprefix("http://") for each in options.helm_host), plain=plain
    )


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
        network=settings.network,
    )
