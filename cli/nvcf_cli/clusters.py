"""Clusters as the commands show them: what was registered, and what their agents last reported. Pure."""

from collections.abc import Iterable
from datetime import UTC, datetime

from nvcf_cli.api import Json
from nvcf_cli.errors import CliError
from nvcf_cli.screen import cell
from nvcf_proto.compute import HEARTBEAT_SECONDS, SILENT_AFTER_SECONDS
from nvcf_proto.icms.reports import MaintenanceMode

_MODES = {
    MaintenanceMode.CORDON.value: "cordoned",
    MaintenanceMode.CORDON_AND_DRAIN.value: "draining",
}


def joined(registered: Iterable[Json], live: Iterable[Json]) -> list[Json]:
    """Return one object for each cluster, by name; what its agent reported wins."""
    found: dict[str, Json] = {}
    for each in (*registered, *live):
        known = found.setdefault(str(each.get("clusterId")), {})
        known.update({name: value for name, value in each.items() if value is not None})
    return sorted(found.values(), key=name_of)


def name_of(cluster: Json) -> str:
    """Return the cluster's name, else its id."""
    return cell(cluster, "clusterName") or cell(cluster, "clusterId")


def find_cluster(clusters: Iterable[Json], wanted: str) -> Json:
    """Return the cluster with this name or id. Raises `CliError`, which lists the names, for none."""
    known = list(clusters)
    found = [each for each in known if wanted in (each.get("clusterName"), each.get("clusterId"))]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(sorted(cell(each, "clusterId") for each in found))
        raise CliError(f"{len(found)} clusters are called {wanted}: use one of the ids {ids}")
    names = ", ".join(sorted(map(name_of, known)))
    hint = f"there are: {names}" if names else "register one with nvcf cluster register NAME"
    raise CliError(f"there is no cluster {wanted}; {hint}")


def cluster_state(cluster: Json, now: float) -> str:
    """Return one word for a cluster's state; `now` is Unix time.

    `registered`: no agent has come yet. `silent`: its agent has stopped to report. `draining`, `cordoned`:
    an administrator's or its agent's wish. `unhealthy`: its agent says so. Else `live`.
    """
    heartbeat = _unix(cluster.get("heartbeatAt"))
    if heartbeat is None:
        return "registered"
    every = cluster.get("heartbeatSeconds")
    every = every if isinstance(every, int | float) else HEARTBEAT_SECONDS
    if now - heartbeat > max(SILENT_AFTER_SECONDS, 2 * every):
        return "silent"
    wish = _MODES.get(cell(cluster, "maintenance"))
    if cluster.get("draining") or wish == "draining":
        return "draining"
    if cluster.get("cordoned") or wish == "cordoned":
        return "cordoned"
    return "unhealthy" if cluster.get("healthy") is False else "live"


def _unix(value: object) -> float | None:
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return float(value) if isinstance(value, int | float) and value > 0 else None


def pools_text(cluster: Json) -> str:
    """Return what is free of each GPU, `L40S 3/4, CPU 256/256`.

    The pools of one GPU's instance types share its devices, so equal ones are shown once.
    """
    pools = [each for each in cluster.get("pools") or [] if isinstance(each, dict)]
    free = {
        (cell(each, "gpu"), cell(each, "instancesFree"), cell(each, "instancesTotal")): each for each in pools
    }
    several = len({gpu for gpu, *_ in free}) < len(free)
    texts = []
    for (gpu, left, total), pool in free.items():
        kind = f"{gpu} {cell(pool, 'instanceType')}" if several else gpu
        texts.append(f"{kind} {left}/{total}")
    return ", ".join(texts)


def types_text(cluster: Json) -> list[str]:
    """Return a line for each GPU with the instance types that a deployment can name."""
    types: dict[str, list[str]] = {}
    for gpu in cluster.get("gpus") or []:
        if isinstance(gpu, dict):
            listed = [cell(each, "name") for each in gpu.get("instanceTypes") or [] if isinstance(each, dict)]
            types.setdefault(cell(gpu, "name"), []).extend(listed)
    for pool in cluster.get("pools") or []:
        if isinstance(pool, dict) and not cluster.get("gpus"):
            types.setdefault(cell(pool, "gpu"), []).append(cell(pool, "instanceType"))
    return [f"{gpu}: {', '.join(listed)}" for gpu, listed in types.items()]
