"""Where a deployment can run, by the cluster groups that the control plane lists. Pure."""

import re
from collections.abc import Iterable

from nvcf_cli.api import Json, objects
from nvcf_cli.scale import PROCESS, Scale

_COUNT = re.compile(r"_(\d+)x$")


def instance_types(groups: Iterable[Json]) -> dict[str, set[str]]:
    """Return the names of all instance types by GPU."""
    kinds: dict[str, set[str]] = {}
    for gpu in (gpu for group in groups for gpu in objects(group, "gpus")):
        types = {str(each.get("name")) for each in objects(gpu, "instanceTypes")}
        kinds.setdefault(str(gpu.get("name")), set()).update(types)
    return kinds


def usual_type(scale: Scale, groups: Iterable[Json] | None, *, is_image: bool) -> str:
    """Return the instance type of a deployment that names none.

    A file runs as a process. An image gets a type with as many GPUs as wanted, by the name's end, such as
    `_2x`. Where no such type is known, `process` is as good as any.
    """
    known = sorted(instance_types(groups or ()).get(scale.gpu, ()))
    if not is_image and (PROCESS in known or not known):
        return PROCESS
    wanted = str(max(1, scale.gpus_per_instance))
    fitting = [name for name in known if (found := _COUNT.search(name)) and found[1] == wanted]
    others = [name for name in known if name != PROCESS]
    return next(iter(fitting or others), PROCESS)


def no_place(scale: Scale, groups: Iterable[Json] | None) -> str | None:
    """Return why no cluster that there is now can run it; None if one may, or if nobody knows."""
    if groups is None:
        return None
    kinds = instance_types(groups)
    later = "calls wait until there is one"
    if not kinds:
        return f"there is no cluster now: {later}"
    if scale.gpu not in kinds:
        return f"no cluster has the GPU {scale.gpu} now, only {', '.join(sorted(kinds))}: {later}"
    if scale.instance_type not in kinds[scale.gpu]:
        known = ", ".join(sorted(kinds[scale.gpu]))
        wanted = f"the instance type {scale.instance_type} for {scale.gpu}"
        return f"no cluster has {wanted} now, only {known}: {later}"
    return None
