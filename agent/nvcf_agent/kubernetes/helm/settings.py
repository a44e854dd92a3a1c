"""What an installation decides about Helm functions."""

from dataclasses import dataclass, field

from nvcf_agent.kubernetes.client.kinds import Kind
from nvcf_agent.kubernetes.helm.fetch import FetchSettings
from nvcf_agent.kubernetes.pods.observe import Limits
from nvcf_proto.charts.policy import Policy

PENDING_SECONDS = 10_800.0


@dataclass(frozen=True)
class HelmSettings:
    """Settings of all Helm functions of one cluster.

    `policy` is the cluster's, `extra_kinds` are the kinds of its `extra_types`. `service_account` is the
    agent's own, `NAMESPACE/NAME`: in each namespace that it makes, it gets the rights of the ClusterRole
    `role`. Empty: it has them everywhere. Times are in seconds: `pending` for an instance to become ready,
    `install` for its chart to be fetched and its objects to be taken by the API server, `cleanup` for a
    namespace to go before it counts as stuck.
    """

    policy: Policy = field(default_factory=Policy)
    extra_kinds: tuple[Kind, ...] = ()
    fetch: FetchSettings = field(default_factory=FetchSettings)
    service_account: str = ""
    role: str = "nvcf-agent-miniservice"
    pending: float = PENDING_SECONDS
    install: float = 1800.0
    cleanup: float = 300.0
    limits: Limits = field(default_factory=lambda: Limits(unscheduled=PENDING_SECONDS))
