"""How strictly a chart is checked, and which kinds of objects it may have. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from nvcf_proto.errors import ContractError
from nvcf_proto.models.specifications import HelmValidationPolicy


class PolicyName(StrEnum):
    """The policies: of a cluster, and of a deployment that asks for one."""

    DEFAULT = "Default"
    UNRESTRICTED = "Unrestricted"


ExtraType = tuple[str, str, str]
"""Group, version and kind."""

ALLOWED: dict[str, frozenset[str]] = {
    "": frozenset(("Pod", "Service", "ConfigMap", "Secret", "PersistentVolumeClaim")),
    "apps": frozenset(("Deployment", "ReplicaSet", "StatefulSet")),
    "batch": frozenset(("Job", "CronJob")),
}
"""Kinds that a chart may have, by group."""

LEFT_OUT: dict[tuple[str, str], str] = {
    ("", "ServiceAccount"): "pods of functions run without an account at the API server",
    ("rbac.authorization.k8s.io", "Role"): "pods of functions have no rights at the API server",
    ("rbac.authorization.k8s.io", "RoleBinding"): "pods of functions have no rights at the API server",
    ("apiextensions.k8s.io", "CustomResourceDefinition"): "only the cluster's operator adds kinds",
}
"""Kinds that charts often have and that are not installed, by group and kind, and why."""


class PolicyUnavailable(ContractError):
    """A deployment asks for a policy that the cluster does not have."""


@dataclass(frozen=True)
class Policy:
    """How a chart is checked. `objects`: refuse what could leave the function's namespace."""

    name: PolicyName = PolicyName.DEFAULT
    extra_types: frozenset[ExtraType] = frozenset()
    objects: bool = True

    @property
    def is_unrestricted(self) -> bool:
        """Whether pods stay as the chart has them."""
        return self.name is PolicyName.UNRESTRICTED

    def allows(self, group: str, version: str, kind: str) -> bool:
        """Return whether a chart may have objects of a kind."""
        return kind in ALLOWED.get(group, ()) or (group, version, kind) in self.extra_types


def chosen_policy(cluster: Policy, wanted: HelmValidationPolicy | None) -> Policy:
    """Return the policy for a deployment in a cluster. Raises PolicyUnavailable.

    A cluster's Unrestricted policy holds only for deployments that ask for it.
    """
    name = PolicyName.DEFAULT if wanted is None else PolicyName(wanted.name)
    if name is PolicyName.UNRESTRICTED and not cluster.is_unrestricted:
        raise PolicyUnavailable(
            "helmValidationPolicy.name: this cluster has only the policy Default; deploy without "
            "Unrestricted, or name a cluster whose operator allows it"
        )
    extra = frozenset(
        (each.group, each.version, each.kind) for each in (wanted and wanted.extra_kubernetes_types) or ()
    )
    if missing := sorted(extra - cluster.extra_types):
        group, version, kind = missing[0]
        raise PolicyUnavailable(
            f"helmValidationPolicy.extraKubernetesTypes: this cluster does not allow {kind} of "
            f"{group}/{version}; ask its operator to add it to the agent's allowed types"
        )
    objects = cluster.objects and name is PolicyName.DEFAULT
    return Policy(name, extra, objects=objects)
