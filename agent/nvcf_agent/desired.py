"""What the deployments ask this cluster for. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nvcf_proto.models import Deployment, DeploymentSpecification, FunctionVersion, ProcessSource


@dataclass(frozen=True, order=True)
class Slot:
    """Place for one instance: what of the GPU specification its process depends on."""

    gpu: str = "CPU"
    instance_type: str = "process"
    concurrency: int = 1


@dataclass(frozen=True)
class Wanted:
    """A version that shall run here, with one slot for each of its instances."""

    version: FunctionVersion
    source: ProcessSource
    slots: tuple[Slot, ...]


def wanted_versions(
    deployments: Iterable[Deployment], versions: Mapping[str, FunctionVersion], cluster: str
) -> dict[str, Wanted]:
    """The versions that this cluster has to run, by id.

    A deployment whose version is not known (yet), or is not made of a process, asks for nothing here.
    """
    wanted = {}
    for deployment in deployments:
        version = versions.get(deployment.version_id)
        if version is None or version.process is None:
            continue
        slots = tuple(
            Slot(each.gpu, each.instance_type, each.max_request_concurrency)
            for each in deployment.specifications
            if _is_for(each, cluster)
            for _ in range(each.min_instances)
        )
        wanted[version.id] = Wanted(version, version.process, slots)
    return wanted


def _is_for(specification: DeploymentSpecification, cluster: str) -> bool:
    return not specification.clusters or cluster in specification.clusters
