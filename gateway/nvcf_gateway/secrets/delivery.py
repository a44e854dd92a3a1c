"""Hand secrets to instances, as NVIDIA's secret store does: `GET /v1/PATH` with a token for that path."""

from __future__ import annotations

import time
from dataclasses import replace
from urllib.parse import unquote

from aiohttp import web
from msgspec import field

from nvcf_gateway.access.agent_identity import Agent, AgentAccess, calling_agent
from nvcf_gateway.access.task_access import TaskAccess
from nvcf_gateway.access.worker_access import RevokedWorkerToken, WorkerAccess
from nvcf_gateway.access.worker_tokens import InvalidWorkerToken
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response, timestamp
from nvcf_gateway.http.routing import Route, path_id
from nvcf_gateway.registry import Registry
from nvcf_gateway.secrets.store import NO_SECRETS, SecretStore
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.icms.messages import InstanceId
from nvcf_proto.models import FunctionVersion
from nvcf_proto.models.record import Id, Record
from nvcf_proto.models.secrets import task_owner, telemetry_owner, version_owner
from nvcf_proto.secrets import (
    ESS_NAMESPACE,
    ESS_NAMESPACE_HEADER,
    ESS_PREFIX,
    ESS_TOKEN_HEADER,
    function_secrets_path,
    task_secrets_path,
    telemetry_secrets_path,
)
from nvcf_proto.tokens import WorkerClaims


class SecretTokenRequest(Record, frozen=True, forbid_unknown_fields=True):
    """The instance whose secrets an agent asks for: of a function version, or of a task."""

    instance_id: InstanceId
    function_id: Id | None = None
    version_id: Id | None = field(name="functionVersionId", default=None)
    task_id: Id | None = None

    def __post_init__(self) -> None:
        of_version = self.function_id is not None and self.version_id is not None
        if of_version == (self.task_id is not None):
            raise InvalidRecord("functionVersionId", "give functionId and functionVersionId, or taskId")


def secret_paths(registry: Registry, version: FunctionVersion) -> list[str]:
    """Return the paths of what an instance of the version needs: its own, then those of its telemetry."""
    chosen = version.telemetries.by_type().values() if version.telemetries else ()
    found = [registry.telemetries.get(each) for each in dict.fromkeys(chosen)]
    own = [each.id for each in found if each is not None and each.nca_id == version.nca_id]
    return [
        function_secrets_path(version.function_id, version.id),
        *(telemetry_secrets_path(version.nca_id, each) for each in own),
    ]


def _token_answer(token: str, expires: float, paths: list[str]) -> web.StreamResponse:
    answer = {"token": token, "expiration": timestamp(expires), "secretPaths": paths}
    return json_response(200, answer, headers=[("Cache-Control", "no-store")])


class SecretDelivery:
    """Handlers of `/v1/…` and of the tokens that agents fetch for it.

    A worker gets a token for its version's secrets over gRPC (`RequestSecretCredentials`). Only an agent gets
    one for the secrets of telemetry endpoints too: the function must not read them. An agent gets it for
    instances of its own cluster.
    """

    def __init__(
        self, agents: AgentAccess, registry: Registry, workers: WorkerAccess, store: SecretStore
    ) -> None:
        self._agents = agents
        self._registry = registry
        self._workers = workers
        self._store = store
        self._tasks = TaskAccess(workers.tokens, registry)

    def routes(self) -> list[Route]:
        """Return the routes."""
        function = function_secrets_path("{function_id}", "{version_id}")
        telemetry = telemetry_secrets_path("{nca_id}", "{telemetry_id}")
        return [
            ("GET", ESS_PREFIX + function, self.of_version),
            ("GET", ESS_PREFIX + telemetry, self.of_telemetry),
            ("GET", ESS_PREFIX + task_secrets_path("{task_id}"), self.of_task),
            ("POST", "/v2/nvcf/agents/secret-credentials", self.token),
        ]

    async def token(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST /v2/nvcf/agents/secret-credentials: return a token for the secrets of an instance."""
        agent = calling_agent(self._agents, request.headers)
        wanted = await read_record(request, SecretTokenRequest)
        if wanted.task_id is not None:
            return self._token_of_task(agent, wanted.instance_id, wanted.task_id)
        version = self._registry.versions.get(wanted.version_id or "")
        if version is None or version.function_id != wanted.function_id:
            raise HttpProblem(404, f"function {wanted.function_id} has no version {wanted.version_id}")
        instance = self._registry.index.instance(version.id, wanted.instance_id)
        if instance is None or instance.cluster_id != agent.cluster.id or agent.cluster.evicted:
            raise HttpProblem(404, f"cluster {agent.cluster.id} has no instance {wanted.instance_id}")
        paths = secret_paths(self._registry, version)
        claims = WorkerClaims(wanted.instance_id, version.function_id, version.id, version.nca_id, 0.0)
        claims = replace(claims, request_id=instance.request_id)
        token, expires = self._workers.issue_for_secrets(claims, paths, time.time())
        return _token_answer(token, expires, paths)

    def _token_of_task(self, agent: Agent, instance_id: str, task_id: str) -> web.StreamResponse:
        task = self._registry.tasks.get(task_id)
        instance = None if task is None else self._registry.instances.get(task.instance_key)
        known = instance is not None and instance.id == instance_id
        there = known and instance is not None and instance.cluster_id == agent.cluster.id
        if task is None or not there or agent.cluster.evicted:
            raise HttpProblem(404, f"cluster {agent.cluster.id} has no instance {instance_id}")
        token, expires = self._tasks.for_secrets(task, instance_id, time.time())
        return _token_answer(token, expires, [task_secrets_path(task.id)])

    async def of_task(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v1/tasks/{id}/secrets: return the secrets of a task."""
        task_id = path_id(values, "task_id")
        self._check(request, task_secrets_path(task_id))
        task = self._registry.tasks.get(task_id)
        if task is None:
            raise HttpProblem(404, f"no task {task_id}")
        return await self._answer(request, task_owner(task_id), expected=task.has_secrets)

    async def of_version(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v1/functions/{id}/versions/{vid}: return the secrets of a function version."""
        function_id, version_id = path_id(values, "function_id"), path_id(values, "version_id")
        self._check(request, function_secrets_path(function_id, version_id))
        version = self._registry.versions.get(version_id)
        if version is None or version.function_id != function_id:
            raise HttpProblem(404, f"function {function_id} has no version {version_id}")
        return await self._answer(request, version_owner(version_id), expected=version.has_secrets)

    async def of_telemetry(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /v1/accounts/{account}/telemetries/{id}: return the secret of a telemetry endpoint."""
        nca_id, telemetry_id = unquote(values["nca_id"]), path_id(values, "telemetry_id")
        self._check(request, telemetry_secrets_path(nca_id, telemetry_id))
        endpoint = self._registry.telemetries.get(telemetry_id)
        if endpoint is None or endpoint.nca_id != nca_id:
            raise HttpProblem(404, f"no telemetry endpoint {telemetry_id}")
        return await self._answer(request, telemetry_owner(telemetry_id), expected=False)

    def _check(self, request: web.BaseRequest, path: str) -> None:
        """Raise HttpProblem 400, 401 and 403 unless the request carries a token for exactly this path."""
        token = request.headers.get(ESS_TOKEN_HEADER)
        if not token:
            raise HttpProblem(401, f"header {ESS_TOKEN_HEADER} is missing")
        if request.headers.get(ESS_NAMESPACE_HEADER) != ESS_NAMESPACE:
            raise HttpProblem(400, f"header {ESS_NAMESPACE_HEADER} must be {ESS_NAMESPACE}")
        try:
            paths = self._workers.verify_for_secrets(token, time.time())
        except RevokedWorkerToken as error:
            raise HttpProblem(403, str(error)) from None
        except InvalidWorkerToken:
            raise HttpProblem(401, "not a valid token for secrets, or an expired one") from None
        if path not in paths:
            raise HttpProblem(403, "the token is for the secrets of something else")

    async def _answer(self, request: web.BaseRequest, key: str, *, expected: bool) -> web.StreamResponse:
        tag, known = self._store.tag(key), request.headers.get("If-None-Match")
        # Who asks may have had secrets before.
        self._store.require_known(key, expected=expected or known not in (None, NO_SECRETS))
        headers = [("ETag", tag), ("Cache-Control", "no-store")]
        if known == tag:
            return web.Response(status=304, headers=headers)
        found = self._store.mirror.get(key)
        changed = {} if found is None else {"created_time": timestamp(found.updated_at)}
        # In the form of Vault's key-value store, version 2: NVIDIA's agent for secrets takes `.Data.data`.
        answer = {"data": {"data": await self._store.values(key), "metadata": changed}}
        return json_response(200, answer, headers=headers)
