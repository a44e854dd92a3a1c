"""Rendered objects, as JSON: their names, and the pod templates in them. Pure.

Objects come from charts, so nothing in them has the type that it should have. `member` and `items` read them
without an error; what has the wrong type counts as missing, and the API server refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]

MOST_VALUES = 200_000
"""Values in all objects of a chart together. Aliases in YAML can write more than memory holds."""
MAX_DEPTH = 64

_POD_PATHS: dict[str, tuple[str, ...]] = {
    "Pod": (),
    "Deployment": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}
CONTAINER_LISTS = ("initContainers", "containers", "ephemeralContainers")


def member(value: object, *path: str) -> Any:
    """Return what is at a path of members; None if it is missing."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value


def items(value: object, *path: str) -> list[Object]:
    """Return the objects of the list at a path; none if it is missing."""
    found = member(value, *path)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def text(value: object) -> str:
    """Return a value if it is a string, else an empty one."""
    return value if isinstance(value, str) else ""


def kind_of(obj: Object) -> str:
    """Return the object's kind."""
    return text(obj.get("kind"))


def group_version(obj: Object) -> tuple[str, str]:
    """Return the object's API group, empty for the core group, and version."""
    group, _, version = text(obj.get("apiVersion")).rpartition("/")
    return group, version


def name_of(obj: Object) -> str:
    """Return the object's name."""
    return text(member(obj, "metadata", "name"))


def label_of(obj: Object) -> str:
    """Return an object's kind and name, for people: `Deployment "web"`."""
    return f'{kind_of(obj) or "object"} "{name_of(obj)[:253]}"'


def pod_path(obj: Object) -> tuple[str, ...] | None:
    """Return where the object has its pod template: `metadata` and `spec`. None: it makes no pods."""
    return _POD_PATHS.get(kind_of(obj))


def pod_template(obj: Object) -> Object | None:
    """Return the pod template of an object; for a Pod that is the object itself."""
    path = pod_path(obj)
    found = None if path is None else member(obj, *path)
    return found if isinstance(found, dict) else None


def containers(spec: Object) -> Iterator[tuple[str, Object]]:
    """Yield the containers of a pod's `spec` with their paths below it: `containers[0]`."""
    for name in CONTAINER_LISTS:
        found = member(spec, name)
        for index, each in enumerate(found if isinstance(found, list) else ()):
            if isinstance(each, dict):
                yield f"{name}[{index}]", each


def replicas(obj: Object) -> int:
    """Return how many pods the object makes at the same time."""
    kind, spec = kind_of(obj), member(obj, "spec")
    if kind == "CronJob":
        spec = member(spec, "jobTemplate", "spec")
    found = member(spec, "parallelism" if kind in ("Job", "CronJob") else "replicas")
    if kind == "Pod" or isinstance(found, bool) or not isinstance(found, int):
        return 1
    return max(0, found)


def is_small(values: object) -> bool:
    """Return whether JSON values are few and not deep, counting each as often as it is written out."""
    level, left = [values], MOST_VALUES
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for each in level:
            nested = each if isinstance(each, list | tuple | set) else ()
            inner = each.values() if isinstance(each, dict) else nested
            left -= len(inner)
            if left < 0:
                return False
            below += inner
        if not below:
            return True
        level = below
    return False
