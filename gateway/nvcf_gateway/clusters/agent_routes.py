"""The routes that agents call (protocol.md, section 6.5). Only 200 is success to them."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

from nvcf_broker.errors import BrokerError
from nvcf_gateway.access.agent_identity import (
    CLUSTER_HEADER,
    LONGEST_TOKEN,
    Agent,
    AgentAccess,
    AgentRefused,
    calling_agent,
    read_key_set,
)
from nvcf_gateway.clusters.call_rates import CallRates
from nvcf_gateway.clusters.cluster_records import (
    after_heartbeat,
    after_registration,
    registered,
    with_key_set,
)
from nvcf_gateway.clusters.instance_reports import OK, Decision
from nvcf_gateway.clusters.instances import InstanceRecords
from nvcf_gateway.clusters.prefetch import wanted_images
from nvcf_gateway.clusters.streams import ClusterQueues
from nvcf_gateway.errors import HttpProblem, broker_errors, invalid_field
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import Route
from nvcf_gateway.management.resources import stored, update
from nvcf_gateway.registry import Registry
from nvcf_proto.compute import Cluster, RegisteredCluster
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.reports import (
    Acknowledgement,
    Credentials,
    Heartbeat,
    HeartbeatAction,
    HeartbeatAnswer,
    Introspection,
    Jwks,
    KnownInstances,
    PrefetchImage,
    PrefetchImages,
    Registration,
    RegistrationAnswer,
    StatusReport,
)

_log = logging.getLogger(__name__)

MAX_REPORT = 2 * 1024 * 1024
"""A report may name all requests that an ended instance held."""
MAX_REGISTRATION = 1024 * 1024
HEARTBEATS_A_SECOND, HEARTBEATS_AT_ONCE = 10.0, 100.0
"""Of one cluster at one gateway, registrations included. An agent of ours sends one on each change."""
INTROSPECTIONS_A_SECOND, INTROSPECTIONS_AT_ONCE = 50.0, 200.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_INSTANCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class AgentRoutes:
    """Handlers of `/v1/nvca/clusters…`, `/v1/sirs…` and `/v1/si/clusters…`."""

    def __init__(
        self,
        registry: Registry,
        access: AgentAccess,
        queues: ClusterQueues,
        instances: InstanceRecords,
        logins: Callable[[str], Awaitable[str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._access = access
        self._queues = queues
        self._instances = instances
        self._logins = logins
        self._beats = CallRates(HEARTBEATS_A_SECOND, HEARTBEATS_AT_ONCE)
        self._introspections = CallRates(INTROSPECTIONS_A_SECOND, INTROSPECTIONS_AT_ONCE)
        self._clock = clock

    def routes(self) -> list[Route]:
        """Return methods, paths and handlers."""
        cluster = "/v1/nvca/clusters/{cluster_id}"
        return [
            ("PUT", f"{cluster}/register", self.register),
            ("GET", f"{cluster}/credentials", self.credentials),
            ("POST", f"{cluster}/heartbeat", self.heartbeat),
            ("PUT", f"{cluster}/jwks", self.put_jwks),
            ("GET", f"{cluster}/prefetch", self.prefetch),
            ("POST", "/v1/nvca/tokens/introspect", self.introspect),
            ("PUT", "/v1/sirs/{request_id}", self.acknowledge),
            ("POST", "/v1/sirs/{request_id}/{instance_id}", self.report),
            ("GET", "/v1/si/clusters/{cluster_id}/instances", self.instances),
        ]

    async def register(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT …/register: note what the cluster has, and give it its queues."""
        cluster = self._agent(request, values).cluster
        self._limit(cluster)
        body = await read_record(request, Registration, MAX_REGISTRATION)
        changed = await self._change(cluster.id, lambda record: registered(record, body))
        if not changed.evicted:
            with broker_errors():
                await self._queues.check(cluster.id)
            before = self._registry.clusters.get(changed.id)
            await self._put_live(after_registration(changed, body, before, self._clock()))
        answer = RegistrationAnswer(
            cluster_id=changed.id,
            cluster_group_id=changed.group_id,
            cluster_name=changed.name,
            region=changed.region,
        )
        return json_response(OK, answer.to_dict())

    async def credentials(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET …/credentials: there are none, the queues are in NATS."""
        self._agent(request, values)
        return json_response(OK, Credentials().to_dict())

    async def heartbeat(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST …/heartbeat: note what is free, and say whether the cluster may go on."""
        agent = self._agent(request, values)
        cluster = agent.cluster
        self._limit(cluster)
        body = await read_record(request, Heartbeat)
        if cluster.evicted:
            if agent.key_id and cluster.evicted_keys and agent.key_id not in cluster.evicted_keys:
                # The deletion is known from a backup that is older than this agent's registration.
                raise HttpProblem(401, "this key is not that of the cluster which was deleted")
            return json_response(OK, HeartbeatAnswer(HeartbeatAction.SELF_DESTRUCT).to_dict())
        await self._put_live(after_heartbeat(cluster, body, self._clock()))
        with broker_errors():
            lacking = await self._instances.heartbeat(cluster.id, body)
        try:
            await self._queues.check(cluster.id)
        except BrokerError as error:
            # The agent could do nothing about it; the next heartbeat tries again.
            _log.warning("the consumers of cluster %s are not looked after: %s", cluster.name, error)
        answer = HeartbeatAnswer(maintenance=cluster.maintenance, report_again=lacking)
        return json_response(OK, answer.to_dict())

    async def put_jwks(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT …/jwks: replace the key set that the tokens of the cluster's agent are checked with."""
        agent = self._agent(request, values)
        if agent.key_id and agent.expires_at is not None:
            # It was rotated, perhaps because it was stolen: it must not make another identity.
            raise HttpProblem(403, "this cluster key is being replaced: change the key set with the new one")
        body = await read_record(request, Jwks)
        try:
            read_key_set(body.jwks)
        except ValueError as error:
            raise invalid_field(InvalidRecord("jwks", str(error))) from None
        await self._change(agent.cluster.id, lambda record: with_key_set(record, body.jwks))
        return json_response(OK, {})

    async def introspect(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST /v1/nvca/tokens/introspect: say whose a projected token is. It needs no credential."""
        if self._introspections.wait(""):
            raise HttpProblem(429, "too many tokens to look at", headers={"Retry-After": "1"})
        token = (await read_record(request, Introspection)).token
        if len(token) > LONGEST_TOKEN:
            raise HttpProblem(431, f"the token is longer than {LONGEST_TOKEN} bytes")
        try:
            answer = self._access.introspect(token)
        except AgentRefused as refused:
            # RFC 7662: a token that is not good is no error.
            answer = {"active": False, "error": str(refused)}
        return json_response(OK, answer, headers=[("Cache-Control", "no-store")])

    async def acknowledge(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT /v1/sirs/{requestId}: the agent has taken a request on."""
        cluster = self._agent(request, values).cluster
        await read_record(request, Acknowledgement)
        request_id = _named(values, "request_id", _REQUEST_ID)
        with broker_errors():
            return _answer(await self._instances.acknowledge(request_id, cluster.id))

    async def report(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST /v1/sirs/{requestId}/{instanceId}: the state of an instance."""
        cluster = self._agent(request, values).cluster
        body = await read_record(request, StatusReport, MAX_REPORT)
        request_id = _named(values, "request_id", _REQUEST_ID)
        instance_id = _named(values, "instance_id", _INSTANCE_ID)
        with broker_errors():
            return _answer(await self._instances.report(request_id, instance_id, cluster.id, body))

    async def instances(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET …/instances: what the cluster should have, for its reconciliation."""
        cluster = self._agent(request, values).cluster
        return json_response(OK, KnownInstances(tuple(self._instances.known(cluster.id))).to_dict())

    async def prefetch(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET …/prefetch [ext]: the images that the cluster's nodes are to have."""
        cluster, registry = self._agent(request, values).cluster, self._registry
        live = registry.clusters.get(cluster.id)
        if cluster.evicted or live is None:
            return json_response(OK, PrefetchImages().to_dict())
        wanted = wanted_images(cluster, live, registry.deployments.values(), registry.versions.get)
        logins = {account: await self._logins(account) for account in {each.account for each in wanted}}
        images = (
            PrefetchImage(
                container_image=each.image,
                instance_type_value=each.instance_type_value,
                credentials=logins[each.account],
            )
            for each in wanted
        )
        return json_response(OK, PrefetchImages(tuple(images)).to_dict())

    def _agent(self, request: web.BaseRequest, values: dict[str, str]) -> Agent:
        """Return who calls. Raises HttpProblem 401, and 403 for another cluster's identity."""
        agent = calling_agent(self._access, request.headers)
        if values.get("cluster_id", agent.cluster.id) != agent.cluster.id:
            raise HttpProblem(403, f"the path names another cluster than {CLUSTER_HEADER}")
        return agent

    def _limit(self, cluster: RegisteredCluster) -> None:
        """Raise HttpProblem 429: each heartbeat and registration is written, and read by all others."""
        seconds = self._beats.wait(cluster.id)
        if seconds:
            _log.warning("the agent of cluster %s calls too often", cluster.name)
            detail = "too many heartbeats and registrations of this cluster"
            raise HttpProblem(429, detail, headers={"Retry-After": str(math.ceil(seconds))})

    async def _put_live(self, live: Cluster) -> None:
        await stored(self._registry.clusters.put(live.id, live))

    async def _change(
        self, cluster_id: str, change: Callable[[RegisteredCluster], RegisteredCluster]
    ) -> RegisteredCluster:
        changed = await update(self._registry.registered_clusters, cluster_id, change)
        if changed is None:
            raise HttpProblem(404, f"there is no cluster {cluster_id}")
        return changed


def _named(values: dict[str, str], name: str, form: re.Pattern[str]) -> str:
    """Return an id of the path. Raises HttpProblem 404: nothing can exist under another name."""
    text = values[name]
    if form.fullmatch(text) is None:
        raise HttpProblem(404, f"{text[:128]!r} is no id of a request or instance")
    return text


def _answer(decision: Decision) -> web.StreamResponse:
    if decision.status != OK:
        raise HttpProblem(decision.status, decision.detail)
    return json_response(OK, {})
