"""What the platform adds to the checked objects of a chart. Pure.

NVIDIA's agent does it in a webhook that sees every pod. Here the pod templates are changed before they are
applied: no webhook can be away, and what runs is what the templates say.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nvcf_agent.kubernetes.client.api import Object
from nvcf_agent.kubernetes.helm.names import MINI_SERVICE_LABEL
from nvcf_agent.kubernetes.pods.settings import GPU_TOLERATION
from nvcf_proto.charts.objects import containers, member, pod_template


@dataclass(frozen=True)
class Decoration:
    """What is added to all objects of one instance, and to all its pods."""

    mini_service: str
    namespace: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    affinity: Mapping[str, Any] | None = None
    tolerations: tuple[Mapping[str, Any], ...] = ()
    pull_secrets: tuple[str, ...] = ()


def decorate(objects: Iterable[Object], added: Decoration) -> list[Object]:
    """Return the objects with what the platform adds to them."""
    return [_decorated(copy.deepcopy(each), added) for each in objects]


def _decorated(obj: Object, added: Decoration) -> Object:
    metadata = obj["metadata"]
    metadata["namespace"] = added.namespace
    metadata["labels"] = (metadata.get("labels") or {}) | {MINI_SERVICE_LABEL: added.mini_service}
    template = pod_template(obj)
    spec = member(template, "spec")
    if template is not None and isinstance(spec, dict):
        about = template.setdefault("metadata", {})
        # Selectors are over labels that the chart has given.
        given = about.get("labels") or {}
        about["labels"] = {**added.labels, **given, MINI_SERVICE_LABEL: added.mini_service}
        about["annotations"] = {**(about.get("annotations") or {}), **added.annotations}
        _add_to_pod(spec, added)
    return obj


def _add_to_pod(spec: Object, added: Decoration) -> None:
    for _, container in containers(spec):
        given = container.get("env") or []
        kept = [
            each for each in given if not (isinstance(each, dict) and each.get("name") in added.variables)
        ]
        ours = [{"name": name, "value": value} for name, value in added.variables.items()]
        container["env"] = [*ours, *kept]
        # The last lines of a container that failed are then in the pod's status.
        container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    tolerations = [*(spec.get("tolerations") or []), GPU_TOLERATION, *added.tolerations]
    spec["tolerations"] = [each for n, each in enumerate(tolerations) if each not in tolerations[:n]]
    affinity = spec.get("affinity") or {}
    if added.affinity is not None and "nodeAffinity" not in affinity:
        spec["affinity"] = {**affinity, **added.affinity}
    if added.pull_secrets:
        given = spec.get("imagePullSecrets") or []
        spec["imagePullSecrets"] = [*given, *({"name": name} for name in added.pull_secrets)]
