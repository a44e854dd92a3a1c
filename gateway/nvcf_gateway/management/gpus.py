"""Management API: which GPUs there are, and which an account may use at most."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from aiohttp import web

from nvcf_gateway.access.authorization import Authenticator
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import Route
from nvcf_gateway.management.backends import permits
from nvcf_gateway.management.resources import authorized
from nvcf_gateway.registry import Registry
from nvcf_proto.compute import Cluster
from nvcf_proto.models import Deployment, DeploymentSpecification, Scope


def supported_gpus(clusters: Iterable[Cluster]) -> list[dict[str, str]]:
    """Return each GPU of each group once."""
    found = {(pool.gpu, each.group_name) for each in clusters for pool in each.pools}
    return [{"gpu": gpu, "backend": group} for gpu, group in sorted(found)]


def cluster_groups(clusters: Iterable[Cluster], nca_id: str) -> list[dict[str, Any]]:
    """Return the groups with their GPUs, instance types and clusters, as an account sees them."""
    groups: dict[tuple[str, str], list[Cluster]] = {}
    for each in sorted(clusters, key=lambda one: (one.label, one.id)):
        groups.setdefault((each.group_name, _group_id(each)), []).append(each)
    return [
        {
            "id": group_id,
            "name": name,
            "ncaId": members[0].nca_id or nca_id,
            "authorizedNcaIds": _authorized(members, nca_id),
            "gpus": _gpus(members),
            "clusters": [{"id": each.id, "name": each.label, "region": each.region} for each in members],
        }
        for (name, group_id), members in sorted(groups.items())
    ]


def _group_id(cluster: Cluster) -> str:
    return cluster.group_id or str(uuid5(NAMESPACE_URL, f"nvcf-cluster-group:{cluster.group_name}"))


def _authorized(members: Iterable[Cluster], nca_id: str) -> list[str]:
    """Return the accounts that may use a group. Its owner sees all of them, another account only itself."""
    found = {account for each in members for account in each.authorized_nca_ids}
    if "*" in found:
        return ["*"]
    return sorted(found) if all(each.nca_id == nca_id for each in members) else [nca_id]


def _gpus(clusters: Iterable[Cluster]) -> list[dict[str, Any]]:
    types: dict[str, set[str]] = {}
    for each in clusters:
        for pool in each.pools:
            types.setdefault(pool.gpu, set()).add(pool.instance_type)
    return [
        {"name": gpu, "instanceTypes": [{"name": name} for name in sorted(names)]}
        for gpu, names in sorted(types.items())
    ]


def gpu_usage(deployments: Iterable[Deployment], clusters: Iterable[Cluster]) -> list[dict[str, Any]]:
    """Return the least and most instances of each kind, in total and by cluster that may hold them."""
    known = sorted(clusters, key=lambda each: (each.label, each.id))
    kinds: dict[tuple[str, str], list[DeploymentSpecification]] = {}
    for deployment in deployments:
        for spec in deployment.specifications:
            kinds.setdefault((spec.gpu, spec.instance_type), []).append(spec)
    return [
        {
            "gpu": gpu,
            "instanceType": instance_type,
            **_bounds(specifications),
            "placements": [
                {
                    "clusterId": each.id,
                    "cluster": each.label,
                    "clusterGroup": each.group_name,
                    "region": each.region,
                    **_bounds(permitted),
                }
                for each in known
                if any((pool.gpu, pool.instance_type) == (gpu, instance_type) for pool in each.pools)
                and (permitted := [spec for spec in specifications if permits(spec, each)])
            ],
        }
        for (gpu, instance_type), specifications in sorted(kinds.items())
    ]


def _bounds(specifications: Iterable[DeploymentSpecification]) -> dict[str, int]:
    found = list(specifications)
    return {
        "currentMaxUsage": sum(each.max_instances for each in found),
        "currentMinUsage": sum(each.min_instances for each in found),
    }


class Gpus:
    """Handlers of `/v2/nvcf/supportedGpus`, `/v2/nvcf/clusterGroups` and `/v2/nvcf/usage/gpus`."""

    def __init__(self, authenticator: Authenticator, registry: Registry) -> None:
        self._authenticator = authenticator
        self._registry = registry

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            ("GET", "/v2/nvcf/supportedGpus", self.supported),
            ("GET", "/v2/nvcf/clusterGroups", self.groups),
            ("GET", "/v2/nvcf/usage/gpus", self.usage),
        ]

    async def supported(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET: list the GPUs of all groups."""
        caller = authorized(self._authenticator, request, Scope.LIST)
        return json_response(200, supported_gpus(self._usable(caller.nca_id)))

    async def groups(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET: list the cluster groups."""
        caller = authorized(self._authenticator, request, Scope.LIST)
        found = cluster_groups(self._usable(caller.nca_id), caller.nca_id)
        return json_response(200, {"clusterGroups": found})

    async def usage(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET: return what the account's deployments may use."""
        caller = authorized(self._authenticator, request, Scope.LIST)
        own = [
            deployment
            for deployment in self._registry.deployments.values()
            if (version := self._registry.versions.get(deployment.version_id)) is not None
            and version.nca_id == caller.nca_id
            and caller.key.covers(version.function_id)
        ]
        return json_response(200, {"gpus": gpu_usage(own, self._usable(caller.nca_id))})

    def _usable(self, nca_id: str) -> list[Cluster]:
        return [each for each in self._registry.clusters.values() if each.serves(nca_id)]
