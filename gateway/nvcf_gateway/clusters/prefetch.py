"""Images that nodes of a cluster are to have before the first call (protocol.md, section 6.5). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from nvcf_gateway.clusters.creation import instance_type_of
from nvcf_gateway.management.backends import permits
from nvcf_proto.compute import Cluster, RegisteredCluster
from nvcf_proto.models import Deployment, FunctionVersion

MOST_IMAGES = 200


@dataclass(frozen=True, order=True)
class WantedImage:
    """An image of an account, and the value of the instance type whose nodes may run it."""

    account: str
    image: str
    instance_type_value: str


def wanted_images(
    cluster: RegisteredCluster,
    live: Cluster,
    deployments: Iterable[Deployment],
    version_of: Callable[[str], FunctionVersion | None],
) -> list[WantedImage]:
    """Return what deployments with `prefetch` may start in a cluster, at most MOST_IMAGES."""
    found = set()
    for deployment in deployments:
        for spec in deployment.specifications:
            if not spec.prefetch or not permits(spec, live):
                continue
            version = version_of(deployment.version_id)
            if version is not None and version.container_image and live.serves(version.nca_id):
                value = instance_type_of(cluster, spec).value
                found.add(WantedImage(version.nca_id, version.container_image, value))
    return fair_part(found, MOST_IMAGES)


def fair_part(images: Iterable[WantedImage], most: int) -> list[WantedImage]:
    """Return at most `most` images: of each account as many as of others, unless it has fewer."""
    by_account = groupby(sorted(images), key=attrgetter("account"))
    numbered = (each for _, own in by_account for each in enumerate(own))
    return [image for _, image in sorted(numbered)[:most]]
