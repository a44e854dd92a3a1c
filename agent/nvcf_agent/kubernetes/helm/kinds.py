"""Kinds of the objects that charts have. Pure."""

from nvcf_agent.kubernetes.client.api import Object
from nvcf_agent.kubernetes.client.kinds import CONFIG_MAP, POD, SECRET, SERVICE, Kind
from nvcf_proto.charts.objects import group_version, kind_of, name_of

VOLUME_CLAIM = Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
DEPLOYMENT = Kind("apps", "v1", "deployments", "Deployment")
REPLICA_SET = Kind("apps", "v1", "replicasets", "ReplicaSet")
STATEFUL_SET = Kind("apps", "v1", "statefulsets", "StatefulSet")
JOB = Kind("batch", "v1", "jobs", "Job")
CRON_JOB = Kind("batch", "v1", "cronjobs", "CronJob")

INSTALLED = (
    CONFIG_MAP, SECRET, VOLUME_CLAIM, SERVICE, DEPLOYMENT, REPLICA_SET, STATEFUL_SET, JOB, CRON_JOB, POD,
)  # fmt: skip
"""In the order in which they are installed: what pods need comes before them."""
WORKLOADS = (DEPLOYMENT, REPLICA_SET, STATEFUL_SET, JOB, CRON_JOB)

Ref = tuple[Kind, str]
"""An object of a chart: kind and name."""


class Kinds:
    """All kinds that charts may have here. `extra` are those that the cluster's operator allows besides."""

    def __init__(self, extra: tuple[Kind, ...] = ()) -> None:
        self.ordered = INSTALLED + extra
        self._by_type = {(each.group, each.kind): each for each in self.ordered}

    def ref(self, obj: Object) -> Ref:
        """Return which object it is. Raises KeyError for a kind that no chart may have."""
        return self._by_type[group_version(obj)[0], kind_of(obj)], name_of(obj)

    def rank(self, obj: Object) -> int:
        """Return the place of an object in the order of installation."""
        return self.ordered.index(self.ref(obj)[0])
