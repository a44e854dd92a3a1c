"""Whether the clusters that a deployment may use can run its version. Pure.

A cluster's backend starts instances as processes of its machine, or as containers. What a backend cannot do
is refused when the version is deployed, so that no setting is silently left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from nvcf_proto.compute import Cluster
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import DeploymentSpecification, FunctionVersion

PROCESS = "process"
"""The backend that runs `process` and nothing else; every other one runs containers and charts."""
CONTAINERS = "kubernetes"


def check_version(version: FunctionVersion) -> None:
    """Raise InvalidRecord if a version has settings that contradict each other for every backend."""
    if version.process is None:
        return
    for name in _container_settings(version):
        raise InvalidRecord(
            name,
            f"the version's {name} needs the backend {CONTAINERS!r}, but its process needs the backend "
            f"{PROCESS!r}: create a version with containerImage, or without {name}",
        )


def check_clusters(
    version: FunctionVersion,
    specifications: Sequence[DeploymentSpecification],
    clusters: Iterable[Cluster],
) -> None:
    """Raise InvalidRecord if no known cluster that a specification permits can run the version.

    A specification whose clusters are all unknown yet is no error: its instances wait for one. Clusters that
    the version's account may not use are unknown to it.
    """
    known = [each for each in clusters if each.serves(version.nca_id)]
    for index, specification in enumerate(specifications):
        _check_settings(version, specification, f"deploymentSpecifications[{index}]")
    for index, specification in enumerate(specifications):
        permitted = [each for each in known if permits(specification, each)]
        backends = {each.backend for each in permitted}
        if version.process is not None:
            wanted, needed_by, runs = PROCESS, "process", PROCESS in backends
        else:
            wanted, runs = CONTAINERS, bool(backends - {PROCESS})
            needed_by = next(_container_settings(version))
        if backends and not runs:
            names = ", ".join(sorted(each.label for each in permitted))
            raise InvalidRecord(
                needed_by,
                f"needs a cluster of the backend {wanted!r}; deploymentSpecifications[{index}] permits "
                f"{names}, of the backend {', '.join(sorted(backends))}",
            )


def _check_settings(version: FunctionVersion, specification: DeploymentSpecification, path: str) -> None:
    settings = {
        "configuration": specification.configuration,
        "helmValidationPolicy": specification.helm_validation_policy,
    }
    for name, value in settings.items():
        if value is not None and version.helm_chart is None:
            raise InvalidRecord(f"{path}.{name}", "only for versions with helmChart")
    if specification.prefetch and version.container_image is None:
        raise InvalidRecord(f"{path}.prefetch", "only for versions with containerImage")


def permits(specification: DeploymentSpecification, cluster: Cluster) -> bool:
    """Return whether the specification's names permit a cluster, whatever its state and capacity."""
    return (
        (not specification.places or not {cluster.id, cluster.label}.isdisjoint(specification.places))
        and (not specification.regions or cluster.region in specification.regions)
        and specification.group in (None, cluster.group_name)
    )


def _container_settings(version: FunctionVersion) -> Iterator[str]:
    """Yield the names of the settings that only a container's backend can honour."""
    settings = {
        "containerImage": version.container_image,
        "helmChart": version.helm_chart,
        "models": any(model.uri for model in version.models),
        "resources": version.resources,
        "containerArgs": version.container_args,
        "containerEnvironment": version.container_environment,
        "health": version.health,
        "healthUri": version.health_uri,
        "inferencePort": version.inference_port,
        "utilsContainerImage": version.utils_container_image,
    }
    return (name for name, value in settings.items() if value)
