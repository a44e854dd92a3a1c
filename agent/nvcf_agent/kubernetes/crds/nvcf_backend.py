"""`NVCFBackend` (`nvcf.nvidia.io/v1`): the settings of a cluster's agent, and what it says of itself.

Only what an agent of this project reads or writes has a type; members of NVIDIA's that it does not know are
kept as they are.
"""

from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta, field

from nvcf_agent.kubernetes.crds.schema import Anything, Members, Time, kept, rule
from nvcf_proto.models import Record
from nvcf_proto.models.record import Count, Text

_ONCE = rule("oldSelf == '' || self == oldSelf", "cannot be changed: a cluster has one identity")
_ONE_OF = rule("!(has(self.dynamic) && has(self.static))", "is either dynamic or static")
_Tolerations = Annotated[tuple[Members, ...], Meta(max_length=64)]


class AgentStatus(StrEnum):
    """How the agent is."""

    UNKNOWN = "Unknown"
    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"


class ImageConfig(Record, frozen=True, kw_only=True):
    """An image. A tag may be a digest, `sha256:…`."""

    repository: Text = ""
    tag: Text = ""
    pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    pull_secret_name: Text = ""


class AccountConfig(Record, frozen=True, kw_only=True):
    """The account that the cluster belongs to."""

    nca_id: Text = field(name="ncaID", default="")


class StaticDiscovery(Record, frozen=True, kw_only=True):
    """GPUs as they are written down: in `gpu_config`, or in key `gpus` of a ConfigMap."""

    allocated_gpu_capacity: Count = field(name="allocatedGPUCapacity", default=0)
    config_map_name: Text = ""
    gpu_config: Annotated[str, Meta(max_length=256 * 1024)] = field(name="gpuConfig", default="")


class GpuDiscovery(Record, frozen=True, kw_only=True):
    """Where the agent learns of GPUs: from the labels of nodes, or from a list."""

    dynamic: Members | None = None
    static: StaticDiscovery | None = None


class MiniServiceConfig(Record, frozen=True, kw_only=True):
    """Settings of Helm functions."""

    helm_reval_service_url: Text | None = field(name="helmReValServiceURL", default=None)
    cache_dir_size: Anything = None


class ClusterConfig(Record, frozen=True, kw_only=True):
    """The cluster, as it is registered, and the agent's namespaces."""

    cluster_id: Annotated[Text, kept(_ONCE)] = field(name="clusterID", default="")
    cluster_name: Text = ""
    cluster_group_name: Text = ""
    cluster_group_id: Text = field(name="clusterGroupID", default="")
    cloud_provider: Text = ""
    region: Text = ""
    gpu_discovery: Annotated[GpuDiscovery | None, kept(_ONE_OF)] = field(name="gpuDiscovery", default=None)
    mini_service: MiniServiceConfig | None = None
    description: Text = ""
    log_level: Text = ""
    requests_namespace: Text = "nvcf-backend"
    system_namespace: Text = "nvca-system"
    attributes: tuple[Text, ...] = ()
    k8s_cluster_network_cidrs: tuple[Text, ...] = field(name="k8sClusterNetworkCIDRs", default=())


class FeatureGate(Record, frozen=True, kw_only=True):
    """Feature flags by name; `-Name` turns one off."""

    values: Annotated[tuple[Text, ...], Meta(max_length=256)] = ()


class IcmsConfig(Record, frozen=True, kw_only=True):
    """Where the control plane is."""

    icms_service_url: Text = field(name="icmsServiceURL", default="")
    token_url: Text = field(name="tokenURL", default="")


class AgentConfig(Record, frozen=True, kw_only=True):
    """Settings of the agent and of what it starts. `worker_degradation_period` is in nanoseconds."""

    nats_url: Text | None = field(name="natsURL", default=None)
    priority_class_name: Text = ""
    node_selector_key: Text = ""
    node_selector_value: Text = ""
    additional_image_pull_secrets: tuple[Members, ...] = ()
    override_environment_vars: dict[str, str] = field(default_factory=dict)
    tolerations: _Tolerations = ()
    worker_degradation_period: Annotated[int, Meta(ge=0)] = 0


class BackendSettings(Record, frozen=True, kw_only=True):
    """Settings of a cluster's agent, in `spec` and again under `spec.overrides`, which wins."""

    version: Text = ""
    nvca_image_config: ImageConfig | None = None
    account_config: AccountConfig = AccountConfig()
    cluster_config: ClusterConfig = ClusterConfig()
    feature_gate: FeatureGate = FeatureGate()
    icms_config: IcmsConfig = IcmsConfig()
    agent_config: AgentConfig = AgentConfig()
    cluster_source: Literal["", "ngc-managed", "helm-managed", "self-hosted"] = "self-hosted"


class BackendSpec(BackendSettings, frozen=True, kw_only=True):
    """An object's `spec`."""

    overrides: Members | None = None


class GpuCount(Record, frozen=True, kw_only=True):
    """GPUs of one name."""

    capacity: Count = 0
    allocated: Count = 0
    available: Count = 0


class BackendStatus(Record, frozen=True, kw_only=True):
    """What the agent says of itself and of the cluster: an object's `status`."""

    version: Text = ""
    agent_status: AgentStatus = AgentStatus.UNKNOWN
    gpu_usage: dict[str, GpuCount] | None = None
    kubernetes_version: Text = ""
    last_updated: Time | None = None
    last_updated_agent_status: Time | None = None
