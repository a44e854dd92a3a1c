"""`MiniService` (`nvca.nvcf.nvidia.io/v1alpha1`): a Helm function's instance. Cluster scope."""

from enum import StrEnum
from typing import Annotated, Literal

from msgspec import Meta, field

from nvcf_agent.kubernetes.crds.schema import UNCHANGED, Members, Time, kept, rule
from nvcf_proto.models import Record
from nvcf_proto.models.record import Count, Text


class MiniServicePhase(StrEnum):
    """Phase of an instance. The first is that of an instance that nobody has seen yet."""

    NEW = ""
    CACHING = "CachingInProgress"
    INSTALLING = "Installing"
    INSTALLED = "Installed"
    STARTING = "Starting"
    RUNNING = "Running"
    COMPLETED = "Completed"
    INSTALL_FAILED = "InstallFailed"
    FAILED = "Failed"


ENDS = frozenset((MiniServicePhase.COMPLETED, MiniServicePhase.INSTALL_FAILED, MiniServicePhase.FAILED))

_FINAL = rule("!(oldSelf in ['Completed', 'InstallFailed', 'Failed']) || self == oldSelf", "has ended")
_Namespace = Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z", max_length=63)]


class HelmChartConfig(Record, frozen=True, kw_only=True):
    """The chart, and where its service is. This agent keeps registries' logins in a Secret."""

    url: Text
    service_name: Text = ""
    service_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    values: Members | None = None
    auth_config: Members | None = None


class WorkloadConfig(Record, frozen=True, kw_only=True):
    """What the chart's author says of it, in the chart's ConfigMap nvcf-workload-config."""

    feature_flags: dict[str, bool] = field(default_factory=dict)


class MiniServiceSpec(Record, frozen=True, kw_only=True):
    """The instance's namespace, the request that it is of, and its chart."""

    namespace: Annotated[_Namespace, kept(UNCHANGED)]
    icms_request_name: Annotated[Text, kept(UNCHANGED)]
    helm_chart_config: HelmChartConfig
    workload_config: WorkloadConfig | None = None


class RenderedResources(Record, frozen=True, kw_only=True):
    """How many objects of one kind the chart has."""

    gvk: Text = ""
    count: Count = 0


class RenderedDetails(Record, frozen=True, kw_only=True):
    """The rendered chart."""

    hash: Text = ""
    resources: tuple[RenderedResources, ...] = ()


class Condition(Record, frozen=True, kw_only=True):
    """A condition, as Kubernetes has them."""

    type: Text
    status: Literal["True", "False", "Unknown"]
    observed_generation: Annotated[int, Meta(ge=0)] | None = None
    last_transition_time: Time
    reason: Annotated[str, Meta(min_length=1, max_length=1024)]
    message: Annotated[str, Meta(max_length=32768)] = ""


class MiniServiceFailure(Record, frozen=True, kw_only=True):
    """[ext] Why an instance failed, in the words of reports."""

    cause: Text
    category: Text
    text: Annotated[str, Meta(max_length=32768)]


_BY_TYPE = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}


class MiniServiceStatus(Record, frozen=True, kw_only=True):
    """What has become of an instance."""

    phase: Annotated[MiniServicePhase, kept(_FINAL)] = MiniServicePhase.NEW
    last_phase_transition_time: Time | None = None
    rendered_details: RenderedDetails | None = None
    conditions: Annotated[tuple[Condition, ...], Meta(extra_json_schema=_BY_TYPE)] = ()
    observed_generation: Count = 0
    revision: Count = 0
    failure: MiniServiceFailure | None = None
