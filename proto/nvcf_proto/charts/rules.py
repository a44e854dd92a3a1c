"""The rules for a rendered chart as a whole. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from nvcf_proto.charts import pods
from nvcf_proto.charts.objects import (
    Object,
    containers,
    group_version,
    is_small,
    items,
    kind_of,
    label_of,
    member,
    name_of,
    pod_path,
    pod_template,
    replicas,
    text,
)
from nvcf_proto.charts.policy import ALLOWED, LEFT_OUT, Policy
from nvcf_proto.errors import ContractError

MOST_OBJECTS = 300
MOST_REASONS = 20
GPU_RESOURCES = ("nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/pgpu")
_KEPT_METADATA = ("name", "labels", "annotations")
# Labels and annotations that the platform, Kubernetes or Helm act on.
_RESERVED = ("nvcf.nvidia.io", "kubernetes.io", "k8s.io", "helm.sh")
_ALLOWED_LABELS = ("app.kubernetes.io/", "helm.sh/chart")
_HOOK = "helm.sh/hook"


@dataclass(frozen=True)
class Target:
    """What a chart is installed for: its entry point, its namespace, and the GPUs of the instance type.

    None: not checked. `taken` are kinds and names of the platform's own objects in the namespace.
    """

    service: str | None = None
    port: int | None = None
    namespace: str | None = None
    gpus: int | None = None
    taken: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True)
class CheckedChart:
    """The objects to install, in the chart's order, and what was left out or is unusual, for people."""

    objects: tuple[Object, ...]
    notes: tuple[str, ...] = ()


class ChartRefused(ContractError):
    """A chart breaks the rules. `reasons` are sentences: object, field, and the way out."""

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        more = len(self.reasons) - MOST_REASONS
        shown = [*self.reasons[:MOST_REASONS], *([f"and {more} more"] if more > 0 else [])]
        super().__init__("\n".join(shown))


def check_chart(objects: Sequence[object], policy: Policy, target: Target) -> CheckedChart:
    """Return what to install of a rendered chart. Raises ChartRefused with all reasons."""
    if not is_small(list(objects)):
        raise ChartRefused(["the chart renders too many or too deeply nested values: make it smaller"])
    wanted: list[Object] = []
    notes: list[str] = []
    reasons: list[str] = []
    for each in objects:
        if not isinstance(each, dict):
            reasons.append("the chart renders a document that is no object: see `helm template`")
        elif (why := _left_out(each, policy)) is not None:
            notes.append(f"{label_of(each)} is left out: {why}")
        else:
            wanted.append(_as_json(each))
    if len(wanted) > MOST_OBJECTS:
        reasons.append(f"the chart has {len(wanted)} objects, more than {MOST_OBJECTS}: make it smaller")
        raise ChartRefused(reasons)
    for each in wanted:
        reasons += (f"{label_of(each)}: {reason}" for reason in _problems(each, policy, target))
    reasons += _of_all(wanted, target)
    if reasons:
        raise ChartRefused(reasons)
    return CheckedChart(tuple(_cleaned(each, policy) for each in wanted), tuple(notes))


def _as_json(obj: Object) -> Object:
    """Return a copy without what YAML has and JSON has not, such as shared parts and dates."""
    try:
        copied: Object = msgspec.json.decode(msgspec.json.encode(obj))
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise ChartRefused([f"{label_of(obj)} cannot be written as JSON: {error}"]) from error
    return copied


def _left_out(obj: Object, policy: Policy) -> str | None:
    group, version = group_version(obj)
    if (group, version, kind_of(obj)) in policy.extra_types:
        return None
    if member(obj, "metadata", "annotations", _HOOK) is not None:
        return "hooks of Helm do not run"
    return LEFT_OUT.get((group, kind_of(obj)))


def _problems(obj: Object, policy: Policy, target: Target) -> Iterator[str]:
    group, version = group_version(obj)
    kind = kind_of(obj)
    if not policy.allows(group, version, kind):
        usual = ", ".join(sorted(each for kinds in ALLOWED.values() for each in kinds))
        yield (
            f"kind {kind or 'missing'} of {text(obj.get('apiVersion')) or 'no apiVersion'} is not allowed: "
            f"remove it, or name it in the deployment's helmValidationPolicy.extraKubernetesTypes if the "
            f"cluster has it; always allowed are {usual}"
        )
    if not name_of(obj):
        yield "metadata.name is missing: give it a name (generateName is not supported)"
    namespace = member(obj, "metadata", "namespace")
    if namespace is not None and target.namespace is not None and namespace != target.namespace:
        yield (
            f"metadata.namespace is {str(namespace)[:63]!r}: leave it out, each instance has a namespace "
            "of its own"
        )
    if (group, kind) == ("", "Service") and policy.objects:
        yield from _of_service(obj)
    is_claim = (group, kind) == ("", "PersistentVolumeClaim")
    if is_claim and policy.objects and member(obj, "spec", "volumeName"):
        yield "spec.volumeName names a volume of the cluster: remove it"
    path = pod_path(obj)
    if path is not None and kind in ALLOWED.get(group, ()):
        yield from _of_pods(obj, path, policy)


def _of_pods(obj: Object, path: tuple[str, ...], policy: Policy) -> Iterator[str]:
    where = ".".join((*path, "spec"))
    spec = member(pod_template(obj), "spec")
    if not isinstance(spec, dict):
        yield f"{where} is missing: it needs a pod"
        return
    for field, reason in pods.problems(spec, policy):
        yield f"{where}.{field} {reason}"
    if policy.objects:
        for field, reason in _claims(obj):
            yield f"{field} {reason}"


def _claims(obj: Object) -> Iterator[tuple[str, str]]:
    for index, claim in enumerate(items(obj, "spec", "volumeClaimTemplates")):
        if member(claim, "spec", "volumeName"):
            path = f"spec.volumeClaimTemplates[{index}].spec.volumeName"
            yield path, "names a volume of the cluster: remove it"


def _of_service(obj: Object) -> Iterator[str]:
    kind = member(obj, "spec", "type")
    if kind not in (None, "ClusterIP"):
        yield f"spec.type is {str(kind)[:64]}: use ClusterIP; callers reach the function through the gateway"
    for name in ("externalIPs", "externalName", "loadBalancerIP"):
        if member(obj, "spec", name):
            yield f"spec.{name} takes an address outside of the namespace: remove it"


def _of_all(objects: Sequence[Object], target: Target) -> Iterator[str]:
    seen: set[tuple[str, str, str]] = set()
    for each in objects:
        key = (group_version(each)[0], kind_of(each), name_of(each))
        if key in seen and key[2]:
            yield f"{label_of(each)}: the chart has two of them: give one another name"
        if key[1:] in target.taken:
            yield f"{label_of(each)}: the platform makes an object of this name: give yours another name"
        seen.add(key)
    if target.service is not None:
        yield from _of_target(objects, target.service, target.port)
    asked = list(_gpus(objects))
    total = sum(count for _, count in asked)
    if target.gpus is not None and total > target.gpus:
        listed = ", ".join(f"{label}: {count}" for label, count in asked[:10])
        yield (
            f"the chart asks for {total} GPUs ({listed}), the deployment's instance type has {target.gpus}: "
            "deploy with a larger instance type, or lower replicas or limits"
        )


def _of_target(objects: Iterable[Object], name: str, port: int | None) -> Iterator[str]:
    services = {
        name_of(each): each for each in objects if (group_version(each)[0], kind_of(each)) == ("", "Service")
    }
    found = services.get(name)
    if found is None:
        there = ", ".join(sorted(services)) or "none"
        yield (
            f'Service "{name}", the function\'s helmChartServiceName, is not in the chart; its services: '
            f"{there}. Create a version that names one of them"
        )
        return
    ports = [each.get("port") for each in items(found, "spec", "ports")]
    if port is not None and port not in ports:
        there = ", ".join(str(each) for each in ports) or "none"
        yield (
            f'Service "{name}": spec.ports has no port {port}, the function\'s inferencePort; its ports: '
            f"{there}. Create a version with one of them"
        )


def _gpus(objects: Iterable[Object]) -> Iterator[tuple[str, int]]:
    for each in objects:
        spec = member(pod_template(each), "spec")
        if isinstance(spec, dict) and (count := replicas(each) * _gpus_of_pod(spec)):
            yield label_of(each), count


def _gpus_of_pod(spec: Object) -> int:
    together = first = 0
    for path, container in containers(spec):
        asked = sum(
            _count(
                member(container, "resources", "limits", each)
                or member(container, "resources", "requests", each)
            )
            for each in GPU_RESOURCES
        )
        if path.startswith("initContainers") and container.get("restartPolicy") != "Always":
            # It ends before the others start.
            first = max(first, asked)
        else:
            together += asked
    return max(first, together)


def _count(value: object) -> int:
    """Return a count of devices: 1 or "1". Anything else is refused by the API server."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _cleaned(obj: Object, policy: Policy) -> Object:
    """Return the object to install. Kinds that only the cluster's operator allows stay as they are."""
    metadata = member(obj, "metadata")
    obj["metadata"] = {name: metadata[name] for name in _KEPT_METADATA if name in metadata}
    obj.pop("status", None)
    if (*group_version(obj), kind_of(obj)) in policy.extra_types:
        return obj
    template = pod_template(obj)
    for each in (obj, template):
        if isinstance(each, dict):
            _without_reserved(each)
    spec = member(template, "spec")
    if isinstance(spec, dict) and not policy.is_unrestricted:
        pods.clear(spec)
    return obj


def _without_reserved(obj: Object) -> None:
    """Remove the labels and annotations with which a chart could steer Kubernetes or the platform."""
    for name in ("labels", "annotations"):
        found = member(obj, "metadata", name)
        if isinstance(found, dict):
            obj["metadata"][name] = {key: value for key, value in found.items() if not _is_reserved(str(key))}


def _is_reserved(key: str) -> bool:
    domain, slash, _ = key.partition("/")
    if not slash or key.startswith(_ALLOWED_LABELS):
        return False
    return any(domain == each or domain.endswith(f".{each}") for each in _RESERVED)
