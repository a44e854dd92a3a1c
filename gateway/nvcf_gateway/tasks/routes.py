"""Handlers of `/v1/nvct/…`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import msgspec
from aiohttp import web

from nvcf_broker.errors import BrokerError
from nvcf_gateway.access.authorization import Authenticator, Caller
from nvcf_gateway.errors import HttpProblem
from nvcf_gateway.http.bodies import read_record
from nvcf_gateway.http.responses import json_response
from nvcf_gateway.http.routing import Handler, Route, path_id
from nvcf_gateway.management.deployment_bodies import AnyObject
from nvcf_gateway.management.resources import authorized, unavailable
from nvcf_gateway.management.routes import with_problems
from nvcf_gateway.management.secret_bodies import SecretsChange, values_of
from nvcf_gateway.registry import Registry
from nvcf_gateway.results.idempotency_keys import HEADER as IDEMPOTENCY_HEADER
from nvcf_gateway.results.idempotency_keys import Fingerprint, IdempotencyKeys, checked_key
from nvcf_gateway.secrets.owners import Owner
from nvcf_gateway.secrets.store import SecretStore
from nvcf_gateway.tasks.bodies import MAX_BODY, TaskCreation, new_task, read_creation, read_several
from nvcf_gateway.tasks.listing import page_of, read_query
from nvcf_gateway.tasks.shown import event_shown, result_shown, task_shown
from nvcf_gateway.tasks.store import TaskStore
from nvcf_proto import tasks
from nvcf_proto.ids import new_id
from nvcf_proto.models import Scope, Task, TaskStatus

BASE = "/v1/nvct"
_NAMESPACE = "tasks"


class TaskRoutes:
    """Handlers of tasks. Any replica may take any call."""

    def __init__(
        self,
        authenticator: Authenticator,
        registry: Registry,
        store: TaskStore,
        secrets: SecretStore,
        keys: IdempotencyKeys,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._authenticator = authenticator
        self._registry = registry
        self._store = store
        self._secrets = secrets
        self._keys = keys
        self._clock = clock

    def routes(self) -> list[Route]:
        """Return the routes, each also below the caller's account."""
        one = "/tasks/{task_id}"
        own: list[Route] = [
            ("POST", "/tasks", self.create),
            ("POST", "/tasks/bulk", self.create_several),
            ("GET", "/tasks", self.list_all),
            ("GET", one, self.get),
            ("DELETE", one, self.delete),
            ("POST", f"{one}/cancel", self.cancel),
            ("GET", f"{one}/events", self.events),
            ("GET", f"{one}/results", self.results),
            ("PUT", "/secrets/tasks/{task_id}", self.put_secrets),
        ]
        return [
            (method, prefix + path, with_problems(handler))
            for method, path, plain in own
            for prefix, handler in (
                (BASE, plain),
                (f"{BASE}/accounts/{{nca_id}}", self._of_account(plain)),
            )
        ]

    def _of_account(self, handler: Handler) -> Handler:
        """Return a handler for callers of the path's account; others get 404."""

        async def checked(request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
            caller = self._authenticator.caller(request.headers)
            if unquote(values["nca_id"]) != caller.nca_id:
                raise HttpProblem(404, f"Account '{unquote(values['nca_id'])[:128]}': Not found")
            return await handler(request, values)

        return checked

    async def create(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST /tasks: submit a task. With an Idempotency-Key [ext] a repeated call submits none."""
        caller = self._submitter(request)
        members = (await read_record(request, AnyObject, MAX_BODY)).members
        wanted = read_creation(members)
        key = checked_key(request.headers.get(IDEMPOTENCY_HEADER))
        task_id = new_id() if key is None else await self._claimed(caller, key, members)
        if task_id not in self._registry.tasks:
            self._store.require_room(caller.nca_id, 1)
        return json_response(200, {"task": self._shown(await self._submit(wanted, task_id, caller))})

    async def create_several(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST /tasks/bulk: submit the tasks of a list, after all of them were checked."""
        caller = self._submitter(request)
        if IDEMPOTENCY_HEADER in request.headers:
            raise HttpProblem(400, f"header {IDEMPOTENCY_HEADER}: only for POST {BASE}/tasks")
        wanted = read_several((await read_record(request, AnyObject, MAX_BODY)).members)
        self._store.require_room(caller.nca_id, len(wanted))
        made = [new_task(each, new_id(), caller.nca_id, caller.subject, self._clock()) for each in wanted]
        for task in made:
            self._store.check_clusters(task)
        for number, (each, task) in enumerate(zip(wanted, made, strict=True)):
            try:
                await self._store.create(task, values_of(each.secrets), caller.subject)
            except HttpProblem as problem:
                detail = f"{problem}; of the tasks, the first {number} were submitted"
                there = [submitted.id for submitted in made[:number]]
                raise HttpProblem(problem.status, detail, submitted=there) from None
        return json_response(200, {"tasks": [self._shown(task) for task in made]})

    async def list_all(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /tasks[?status=&name=&tag=&limit=&cursor=]: list the account's tasks, newest first."""
        caller = authorized(self._authenticator, request, Scope.LIST)
        caller.require_unlimited("list tasks")
        query = read_query(request.query)
        page = page_of(self._registry.task_index.of(caller.nca_id, self._registry.tasks), query)
        answer: dict[str, Any] = {"tasks": [self._shown(each) for each in page.tasks], "limit": query.limit}
        return json_response(200, answer if page.cursor is None else answer | {"cursor": page.cursor})

    async def get(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /tasks/{id}."""
        return json_response(200, {"task": self._shown(self._task(request, values, Scope.LIST))})

    async def delete(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle DELETE /tasks/{id}: remove a task that is over."""
        task = self._task(request, values, Scope.DEPLOY)
        if not task.status.is_over:
            raise HttpProblem(409, f"task {task.id} is {task.status}: cancel it first")
        await self._store.delete(task, self._authenticator.caller(request.headers).subject)
        return web.Response(status=204)

    async def cancel(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle POST /tasks/{id}/cancel: end a task; its process gets its grace period."""
        task = self._task(request, values, Scope.DEPLOY)
        by, now = self._authenticator.caller(request.headers).subject, self._clock()
        changed = await self._store.change(
            task.id, lambda record: tasks.ended(record, TaskStatus.CANCELED, f"by {by}", now)
        )
        if changed is None:
            raise _missing(task.id, task.nca_id)
        if changed.status is not TaskStatus.CANCELED:
            raise HttpProblem(409, f"task {task.id} is {changed.status} already")
        return json_response(200, {"task": self._shown(changed)})

    async def events(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /tasks/{id}/events: list what has happened, newest first."""
        task = self._task(request, values, Scope.LIST)
        found = [event_shown(each, task.id) for each in reversed(task.events)]
        return json_response(200, {"events": found})

    async def results(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle GET /tasks/{id}/results: list what the task has reported, newest first."""
        task = self._task(request, values, Scope.LIST)
        known = self._registry.task_results.get(task.id)
        found = () if known is None else known.results
        return json_response(200, {"results": [result_shown(each, task.id) for each in reversed(found)]})

    async def put_secrets(self, request: web.BaseRequest, values: dict[str, str]) -> web.StreamResponse:
        """Handle PUT /secrets/tasks/{id}: add secrets, replace those of the same name."""
        task = self._task(request, values, Scope.MANAGE)
        wanted = values_of((await read_record(request, SecretsChange, MAX_BODY)).secrets)
        by = self._authenticator.caller(request.headers).subject
        await self._secrets.merge(Owner.task(task), wanted, by)
        await self._store.change(task.id, lambda record: record.replace(has_secrets=True))
        return web.Response(status=204)

    def _submitter(self, request: web.BaseRequest) -> Caller:
        """Return a caller that may submit tasks: it brings code, and takes GPUs."""
        caller = authorized(self._authenticator, request, Scope.MANAGE)
        caller.require(Scope.DEPLOY)
        caller.require_unlimited("submit tasks")
        return caller

    async def _submit(self, wanted: TaskCreation, task_id: str, caller: Caller) -> Task:
        task = new_task(wanted, task_id, caller.nca_id, caller.subject, self._clock())
        self._store.check_clusters(task)
        return await self._store.create(task, values_of(wanted.secrets), caller.subject)

    async def _claimed(self, caller: Caller, key: str, members: dict[str, Any]) -> str:
        """Return the id of the task that a key stands for. Raises HttpProblem 422 and 503.

        Whoever repeats the call makes the task, should the first gateway have died before.
        """
        body = hashlib.sha256(msgspec.json.encode(members, order="sorted")).hexdigest()
        fingerprint = Fingerprint(f"POST {BASE}/tasks", body)
        try:
            claim = await self._keys.claim(caller.nca_id, _NAMESPACE, _NAMESPACE, key, fingerprint)
        except BrokerError as error:
            raise unavailable(error) from None
        return claim.request_id

    def _task(self, request: web.BaseRequest, values: dict[str, str], scope: Scope) -> Task:
        """Return the task of a path, for a caller with `scope`. Raises HttpProblem 401, 403 and 404."""
        caller = authorized(self._authenticator, request, scope)
        caller.require_unlimited("use tasks")
        task_id = path_id(values, "task_id")
        task = self._registry.tasks.get(task_id)
        # Nobody learns which ids exist in other accounts.
        if task is None or task.nca_id != caller.nca_id:
            raise _missing(task_id, caller.nca_id)
        return task

    def _shown(self, task: Task) -> dict[str, Any]:
        cluster = self._registry.registered_clusters.get(task.cluster_id or "")
        instance = self._registry.instances.get(task.instance_key) if task.request_id else None
        names = self._secrets.names(Owner.task(task).key)
        name = task.cluster_id if cluster is None else cluster.name
        return task_shown(task, name, instance, names)


def _missing(task_id: str, account: str) -> HttpProblem:
    return HttpProblem(404, f"Task id '{task_id}': Not found in account '{account}'")
