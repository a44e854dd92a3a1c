"""The administrator's routes of clusters and cluster groups (protocol.md, section 6.5)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from nvcf_broker.errors import KeyExistsError
from nvcf_gateway.access.authorization import Authenticator, Caller
from nvcf_gateway.clusters.cluster_records import administered, rotated
from nvcf_gateway.clusters.keys import ClusterKeys
from nvcf_gateway.clusters.registration import (
    ClusterChange,
    ClusterCreation,
    changed_cluster,
    cluster_id_of,
    deleted,
    is_shared,
    new_cluster,
)
from nvcf_gateway.clusters.streams import ClusterQueues
from nvcf_gateway.errors import HttpProblem, broker_errors
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import Handler, Route
from nvcf_gateway.management.resources import authorized, update
from nvcf_gateway.management.shown import shown
from nvcf_gateway.registry import Registry
from nvcf_proto.compute import Cluster, RegisteredCluster
from nvcf_proto.icms.reports import MaintenanceMode
from nvcf_proto.models import Scope

_log = logging.getLogger(__name__)

PREFIXES = ("/v1/accounts/{nca_id}", "/v1/si/accounts/{nca_id}")
MAX_BODY = 128 * 1024
MOST_GENERATIONS = 1000
_ONCE = [("Cache-Control", "no-store")]
_LIVE = ("pools", "heartbeatAt", "healthy", "cordoned", "draining")


class ClusterRoutes:
    """Handlers of `/v1/accounts/{ncaId}/clusters…`: for keys with the scope admin of that account."""

    def __init__(
        self, authenticator: Authenticator, registry: Registry, queues: ClusterQueues, keys: ClusterKeys
    ) -> None:
        self._authenticator = authenticator
        self._registry = registry
        self._queues = queues
        self._keys = keys

    def routes(self) -> list[Route]:
        """Return methods, paths and handlers."""
        found: list[Route] = []
        for prefix in PREFIXES:
            clusters, one = f"{prefix}/clusters", f"{prefix}/clusters/{{cluster_id}}"
            found += [
                ("POST", clusters, self.create),
                ("GET", clusters, self.list_all),
                ("GET", f"{prefix}/clusterGroups", self.groups),
                ("GET", one, self.get),
                ("PUT", one, self.change),
                ("DELETE", one, self.delete),
                ("POST", f"{one}/rotate", self.rotate),
                ("POST", f"{one}/cordon", self._maintained(MaintenanceMode.CORDON)),
                ("POST", f"{one}/drain", self._maintained(MaintenanceMode.CORDON_AND_DRAIN)),
                ("POST", f"{one}/uncordon", self._maintained(MaintenanceMode.NONE)),
            ]
        return found

    async def create(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST …/clusters[?ifExists=return]: register a cluster; its agent's key is in the answer."""
        caller = self._admin(request, values)
        account, by_operator = caller.nca_id, caller.key.allows(Scope.OPERATOR)
        if_exists = request.query.get("ifExists")
        if if_exists not in (None, "return"):
            raise HttpProblem(400, "ifExists: expected return", field="ifExists")
        wanted = await read_record(request, ClusterCreation, MAX_BODY)
        for generation in range(MOST_GENERATIONS):
            cluster_id = cluster_id_of(account, wanted.name, generation)
            existing = self._named(account, wanted.name) or self._registry.registered_clusters.get(cluster_id)
            if existing is None:
                cluster = new_cluster(cluster_id, account, wanted, time.time(), by_operator=by_operator)
                _check_right(caller, cluster)
                with broker_errors():
                    try:
                        await self._registry.registered_clusters.create(cluster_id, cluster)
                    except KeyExistsError:
                        # Another gateway, or another call, was faster.
                        await self._registry.registered_clusters.refresh(cluster_id)
                    else:
                        return await self._created(cluster)
                existing = self._registry.registered_clusters.get(cluster_id)
            if existing is not None and not existing.evicted and existing.name == wanted.name:
                return _existing(existing, if_exists == "return")
        raise HttpProblem(409, f"too many clusters were called {wanted.name}: choose another name")

    async def _created(self, cluster: RegisteredCluster) -> web.StreamResponse:
        with broker_errors():
            await self._queues.create(cluster.id)
        answer = _ids(cluster)
        if cluster.jwks is None:
            answer["clusterKey"] = await self._keys.create(cluster)
        _log.info("cluster %s of account %s is registered as %s", cluster.name, cluster.nca_id, cluster.id)
        return json_response(200, answer, headers=_ONCE)

    async def list_all(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET …/clusters: list the account's clusters, by name."""
        found = self._of(self._account(request, values))
        return json_response(200, {"clusters": [self._shown(each) for each in found]})

    async def groups(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET …/clusterGroups: list the groups of the account's clusters, by name."""
        account = self._account(request, values)
        groups: dict[str, dict[str, Any]] = {}
        for each in self._of(account):
            name = each.group or each.name
            group = groups.setdefault(
                each.group_id, {"id": each.group_id, "name": name, "ncaId": account, "clusters": []}
            )
            group["clusters"].append({"id": each.id, "name": each.name})
        ordered = sorted(groups.values(), key=lambda group: str(group["name"]))
        return json_response(200, {"clusterGroups": ordered})

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET …/clusters/{clusterId}."""
        return json_response(200, self._shown(self._own(request, values)))

    async def change(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT …/clusters/{clusterId}: replace what was said at its registration, but its name."""
        cluster = self._managed(request, values)
        wanted = await read_record(request, ClusterChange, MAX_BODY)
        _check_right(self._admin(request, values), changed_cluster(cluster, wanted))
        return await self._update(cluster, lambda record: changed_cluster(record, wanted))

    async def delete(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE …/clusters/{clusterId}: its agent ends everything at its next heartbeat."""
        cluster, now = self._managed(request, values), time.time()
        keys = self._keys.live(cluster.id)
        await update(
            self._registry.registered_clusters, cluster.id, lambda record: deleted(record, keys, now)
        )
        with broker_errors():
            await self._registry.clusters.delete(cluster.id)
            await self._queues.delete(cluster.id)
        _log.warning("cluster %s of account %s is deleted", cluster.name, cluster.nca_id)
        return json_response(200, _ids(cluster))

    async def rotate(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST …/rotate: make a new key for the agent; earlier ones are good for a while.

        A key set that the agent has put is dropped.
        """
        cluster = self._managed(request, values)
        answer = _ids(cluster) | {"clusterKey": await self._keys.create(cluster)}
        await update(self._registry.registered_clusters, cluster.id, rotated)
        return json_response(200, answer, headers=_ONCE)

    def _maintained(self, mode: MaintenanceMode) -> Handler:
        """Return the handler that lets a cluster take new instances, no new ones, or none at all."""

        async def handle(request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
            cluster = self._managed(request, values)
            return await self._update(cluster, lambda record: record.replace(maintenance=mode.value))

        return handle

    async def _update(
        self, cluster: RegisteredCluster, change: Callable[[RegisteredCluster], RegisteredCluster]
    ) -> web.StreamResponse:
        changed = await update(self._registry.registered_clusters, cluster.id, change)
        if changed is None or changed.evicted:
            raise _missing(cluster.id)

        def apply(live: Cluster) -> Cluster:
            # At once, because the next heartbeat may be minutes away. It says what the agent wishes itself.
            return administered(live, changed)

        await update(self._registry.clusters, cluster.id, apply)
        return json_response(200, self._shown(changed))

    def _admin(self, request: web.BaseRequest, values: dict[str, str]) -> Caller:
        caller = authorized(self._authenticator, request, Scope.ADMIN)
        caller.require_unlimited("administer clusters")
        if caller.nca_id != unquote(values["nca_id"]):
            raise HttpProblem(403, "the API key is of another account")
        return caller

    def _account(self, request: web.BaseRequest, values: dict[str, str]) -> str:
        return self._admin(request, values).nca_id

    def _managed(self, request: web.BaseRequest, values: dict[str, str]) -> RegisteredCluster:
        """Return the cluster if the caller may change it."""
        cluster = self._own(request, values)
        _check_right(self._admin(request, values), cluster)
        return cluster

    def _own(self, request: web.BaseRequest, values: dict[str, str]) -> RegisteredCluster:
        account, cluster_id = self._account(request, values), values["cluster_id"]
        cluster = self._registry.registered_clusters.get(cluster_id)
        if cluster is None or cluster.evicted or cluster.nca_id != account:
            raise _missing(cluster_id)
        return cluster

    def _of(self, account: str) -> list[RegisteredCluster]:
        own = (
            each
            for each in self._registry.registered_clusters.values()
            if each.nca_id == account and not each.evicted
        )
        return sorted(own, key=lambda each: each.name)

    def _named(self, account: str, name: str) -> RegisteredCluster | None:
        return next((each for each in self._of(account) if each.name == name), None)

    def _shown(self, cluster: RegisteredCluster) -> dict[str, Any]:
        members = shown(cluster, "createdAt")
        live = self._registry.clusters.get(cluster.id)
        if live is not None:
            state = shown(live, "heartbeatAt")
            members |= {name: state[name] for name in _LIVE}
        return members


def _check_right(caller: Caller, cluster: RegisteredCluster) -> None:
    """Raise HttpProblem 403 for a cluster that serves other accounts, unless the caller is an operator.

    Its agent receives their functions, with the tokens and secrets of these.
    """
    if is_shared(cluster) and not caller.key.allows(Scope.OPERATOR):
        scope, own = Scope.OPERATOR.value, caller.nca_id
        detail = f"a cluster for other accounts than {own} needs an API key with the scope '{scope}'"
        raise HttpProblem(403, detail)


def _missing(cluster_id: str) -> HttpProblem:
    return HttpProblem(404, f"there is no cluster {cluster_id[:128]}")


def _ids(cluster: RegisteredCluster) -> dict[str, Any]:
    return {"clusterId": cluster.id, "clusterGroupId": cluster.group_id, "clusterName": cluster.name}


def _existing(cluster: RegisteredCluster, accept: bool) -> web.StreamResponse:
    if accept:
        return json_response(200, _ids(cluster))
    raise HttpProblem(409, f"there is a cluster {cluster.name} already", **_ids(cluster))
