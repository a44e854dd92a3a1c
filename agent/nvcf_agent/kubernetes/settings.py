"""The settings of an agent: its NVCFBackend with the overrides in it, and the command line, which wins."""

import argparse
import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nvcf_agent.errors import AgentError
from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.kinds import CONFIG_MAP, NVCF_BACKEND
from nvcf_agent.kubernetes.crds.nvcf_backend import BackendSettings
from nvcf_agent.kubernetes.flags import Flag, enabled
from nvcf_agent.kubernetes.nodes.static import KEY
from nvcf_agent.kubernetes.pods.settings import PRIVATE_RANGES, Network
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.names import is_cluster_id

_log = logging.getLogger(__name__)

STATIC_CONFIG_MAP = "nvca-config"
DEFAULT_PROVIDER = "NCP"
_PROVIDERS = frozenset(("ON-PREM", "AWS", "GCP", "OCI", "AZURE", "DGX-CLOUD", "NCP"))
_NANOSECONDS = 1e9
_LOOK_SECONDS = 30.0


@dataclass(frozen=True)
class Settings:
    """What the agent is to do, and for which cluster.

    `static` is the text of a list of GPUs, which then counts instead of the labels of nodes.
    `degraded_seconds`: how long an instance may be not ready again before it is replaced.
    """

    cluster_id: str
    icms: str
    nats: str
    backend: BackendSettings = field(default_factory=BackendSettings)
    object_name: str | None = None
    requests_namespace: str = "nvcf-backend"
    flags: frozenset[str] = frozenset()
    static: str | None = None
    worker_image: str = ""
    collector_image: str = ""
    degraded_seconds: float | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    network: Network = field(default_factory=Network)

    @property
    def provider(self) -> str:
        """The first part of names of instance types."""
        name = self.backend.cluster_config.cloud_provider.upper()
        return name if name in _PROVIDERS else DEFAULT_PROVIDER

    def has(self, flag: Flag) -> bool:
        """Return whether a feature flag is on."""
        return flag in self.flags


async def read_settings(api: Api, options: argparse.Namespace) -> Settings:
    """Return the settings of now. Raises `AgentError`, also `ApiError`."""
    found = await _object(api, options)
    backend = parse_backend(found) if found is not None else BackendSettings()
    written = backend.cluster_config.gpu_discovery
    text: str | None = None
    if written is not None and written.static is not None:
        text = written.static.gpu_config
        if not text:
            name = written.static.config_map_name or STATIC_CONFIG_MAP
            config = await api.get(CONFIG_MAP, name, options.system_namespace)
            text = ((config or {}).get("data") or {}).get(KEY)
        if not text:
            raise AgentError(
                f"static GPU discovery: neither gpuConfig nor key {KEY} of a ConfigMap says anything"
            )
    return settings_of(options, backend, found["metadata"]["name"] if found is not None else None, text)


async def _object(api: Api, options: argparse.Namespace) -> Object | None:
    namespace, name = options.system_namespace, options.backend_object
    if name:
        found = await api.get(NVCF_BACKEND, name, namespace)
        if found is None:
            raise AgentError(f"there is no NVCFBackend {name} in namespace {namespace}")
        return found
    listed = (await api.list(NVCF_BACKEND, namespace)).items
    if len(listed) > 1:
        names = ", ".join(sorted(each["metadata"]["name"] for each in listed))
        raise AgentError(
            f"namespace {namespace} has several NVCFBackends ({names}): name one, --backend-object"
        )
    return listed[0] if listed else None


def parse_backend(found: Object) -> BackendSettings:
    """Return the settings of an NVCFBackend. Raises `AgentError`. Pure."""
    spec: dict[str, Any] = dict(found.get("spec") or {})
    overrides = spec.pop("overrides", None) or {}
    try:
        return BackendSettings.from_dict(merged(spec, overrides))
    except InvalidRecord as error:
        raise AgentError(f"NVCFBackend {found['metadata']['name']}: {error}") from error


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with what `over` says; an empty value there says nothing. Pure."""
    found = dict(base)
    for name, value in over.items():
        if value in ("", None, [], {}, 0):
            continue
        both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = merged(found[name], value) if both else value
    return found


def settings_of(
    options: argparse.Namespace, backend: BackendSettings, name: str | None, static: str | None
) -> Settings:
    """Return the settings of a command line and an NVCFBackend. Raises `AgentError`. Pure."""
    cluster, agent = backend.cluster_config, backend.agent_config
    flags = enabled((*backend.feature_gate.values, *options.feature_gates.split(",")))
    settings = Settings(
        cluster_id=options.cluster_id or cluster.cluster_id,
        icms=options.icms or backend.icms_config.icms_service_url,
        nats=options.nats or agent.nats_url or "",
        backend=backend,
        object_name=name,
        requests_namespace=options.requests_namespace or cluster.requests_namespace,
        flags=flags,
        static=static,
        worker_image=options.worker_image or "",
        collector_image=options.collector_image or "",
        degraded_seconds=agent.worker_degradation_period / _NANOSECONDS or None,
        attributes=dict.fromkeys(cluster.attributes, "true"),
        network=_network(options, cluster.k8s_cluster_network_cidrs, Flag.API_ACCESS in flags),
    )
    needed = (
        ("--cluster-id", "the NVCFBackend's spec.clusterConfig.clusterID", settings.cluster_id),
        ("--icms", "the NVCFBackend's spec.icmsConfig.icmsServiceURL", settings.icms),
        ("--nats", "the NVCFBackend's spec.agentConfig.natsURL", settings.nats),
        ("--worker-image", "NVCF_WORKER_IMAGE", settings.worker_image),
    )
    missing = [f"{flag} (or {other})" for flag, other, value in needed if not value]
    if missing:
        raise AgentError(f"missing: {', '.join(missing)}")
    if not is_cluster_id(settings.cluster_id):
        raise AgentError(f"{settings.cluster_id!r} is no id of a cluster")
    return settings


def _network(options: argparse.Namespace, own: Sequence[str], api_access: bool) -> Network:
    """Return whom function pods may reach. `own` are the cluster's own address ranges."""

    def labels(namespace: str | None) -> dict[str, str]:
        return {"kubernetes.io/metadata.name": namespace} if namespace else {}

    return Network(
        enabled=options.network_policies,
        private=(*PRIVATE_RANGES, *own),
        control_plane=tuple(options.control_plane_range),
        control_plane_namespaces=labels(options.control_plane_namespace),
        monitoring=labels(options.monitoring_namespace),
        api_server=tuple(options.api_server_range),
        api_access=api_access,
    )


async def until_changed(api: Api, options: argparse.Namespace, settings: Settings) -> None:
    """Return when the settings in the cluster are others than these."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            found = await read_settings(api, options)
        except AgentError as error:
            _log.info("the settings cannot be read, and stay as they are: %s", error)
            continue
        if found != settings:
            _log.warning("the settings have changed: the agent starts anew")
            return
