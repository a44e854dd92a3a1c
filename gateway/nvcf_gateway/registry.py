"""Mirrors of the key-value buckets that hold the platform's records, with indexes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from nvcf_broker.connection import BrokerClient
from nvcf_broker.errors import KeyExistsError, RevisionConflictError
from nvcf_broker.kv import KvMirror
from nvcf_gateway.errors import SetupError
from nvcf_proto import models
from nvcf_proto.compute import CLUSTERS_BUCKET, REGISTERED_CLUSTERS_BUCKET, Cluster, RegisteredCluster
from nvcf_proto.errors import InvalidRecord
from nvcf_proto.models import (
    ApiKey,
    Deployment,
    Function,
    FunctionVersion,
    Instance,
    InstanceState,
    Record,
    RegistryCredential,
    SecretSet,
    Task,
    TaskResults,
    TelemetryEndpoint,
    VersionStatus,
)
from nvcf_proto.models.deployments import deployment_id
from nvcf_proto.models.status import version_status
from nvcf_proto.streams import MAX_QUEUED_REQUESTS

R = TypeVar("R", bound=Record)
V = TypeVar("V")


class VersionIndex:
    """Which versions of a function are deployed, and their instances."""

    def __init__(self) -> None:
        self._function_of: dict[str, str] = {}
        self._deployed: dict[str, dict[str, Deployment]] = {}
        self._running: dict[str, dict[str, Instance]] = {}
        self._instances: dict[str, dict[str, Instance]] = {}
        self._by_request: dict[str, str] = {}
        self._by_instance: dict[str, dict[str, str]] = {}
        self._deployments: dict[str, str] = {}
        self.ended = asyncio.Event()
        """Set whenever a deployment or a running instance ends."""

    def deployment_changed(self, version_id: str, deployment: Deployment | None) -> None:
        """Apply a change of the deployments bucket."""
        before = self._deployed.get(self._function_of.get(version_id, ""), {}).get(version_id)
        if before is not None:
            self._deployments.pop(deployment_id(before), None)
        if deployment is not None:
            self._function_of[version_id] = deployment.function_id
            _set(self._deployed, deployment.function_id, version_id, deployment)
            self._deployments[deployment_id(deployment)] = version_id
        elif (function_id := self._function_of.pop(version_id, None)) is not None:
            _set(self._deployed, function_id, version_id, None)
            self.ended.set()

    def instance_changed(self, key: str, instance: Instance | None) -> None:
        """Apply a change of the instances bucket; `key` is `VERSION.REQUEST`."""
        version_id, _, request_id = key.partition(".")
        running = instance is not None and instance.state is InstanceState.RUNNING
        if not running:
            self.ended.set()
        before = self._instances.get(version_id, {}).get(request_id)
        if before is not None and (instance is None or instance.id != before.id):
            _set(self._by_instance, version_id, before.id, None)
        if instance is None:
            self._by_request.pop(request_id, None)
        else:
            self._by_request[request_id] = key
            _set(self._by_instance, version_id, instance.id, request_id)
        _set(self._instances, version_id, request_id, instance)
        _set(self._running, version_id, request_id, instance if running else None)

    def key_of_request(self, request_id: str) -> str | None:
        """Return the key of a request's record."""
        return self._by_request.get(request_id)

    def instance(self, version_id: str, instance_id: str) -> Instance | None:
        """Return the record of an instance by the id that its agent gave to it."""
        request_id = self._by_instance.get(version_id, {}).get(instance_id, "")
        return self._instances.get(version_id, {}).get(request_id)

    def instances(self, version_id: str) -> list[Instance]:
        """Return the records of a version's instances."""
        return list(self._instances.get(version_id, {}).values())

    def deployed(self, function_id: str) -> list[str]:
        """Return the ids of the function's deployed versions."""
        return sorted(self._deployed.get(function_id, ()))

    def version_of(self, deployment_id: str) -> str | None:
        """Return the version that a deployment is of."""
        return self._deployments.get(deployment_id)

    def is_deployed(self, version_id: str) -> bool:
        """Return whether the version is deployed."""
        return version_id in self._function_of

    def is_running(self, version_id: str) -> bool:
        """Return whether at least one instance of the version is ready."""
        return version_id in self._running


def _set(index: dict[str, dict[str, V]], key: str, name: str, value: V | None) -> None:
    """Set `name` below `key`, or remove it for None; a key with nothing below it goes as well."""
    if value is not None:
        index.setdefault(key, {})[name] = value
    elif key in index:
        index[key].pop(name, None)
        if not index[key]:
            del index[key]


class TaskIndex:
    """Tasks by account, and how many bytes their records and those of their results take."""

    def __init__(self) -> None:
        self._accounts: dict[str, dict[str, int]] = {}
        self._account_of: dict[str, str] = {}
        self._results: dict[str, int] = {}
        self.size = 0

    def changed(self, key: str, task: Task | None) -> None:
        """Apply a change of the tasks bucket."""
        account = self._account_of.pop(key, None)
        if account is not None:
            self.size -= self._accounts[account].get(key, 0)
            _set(self._accounts, account, key, None)
        if task is not None:
            size = len(task.to_json())
            self._account_of[key] = task.nca_id
            _set(self._accounts, task.nca_id, key, size)
            self.size += size

    def results_changed(self, key: str, results: TaskResults | None) -> None:
        """Apply a change of the bucket of results."""
        self.size -= self._results.pop(key, 0)
        if results is not None:
            self._results[key] = size = len(results.to_json())
            self.size += size

    def count(self, account: str) -> int:
        """Return how many tasks an account has."""
        return len(self._accounts.get(account, ()))

    def of(self, account: str, tasks: KvMirror[Task]) -> list[Task]:
        """Return the tasks of an account."""
        known = map(tasks.get, self._accounts.get(account, ()))
        return [each for each in known if each is not None]


class Registry:
    """Mirrors of all buckets; reads never wait, writes go through the mirrors."""

    def __init__(self, client: BrokerClient, replicas: int) -> None:
        mirrors: list[KvMirror[Any]] = []

        def mirror(
            bucket: str, kind: type[R], on_change: Callable[[str, R | None], None] | None = None
        ) -> KvMirror[R]:
            made = KvMirror(
                client, bucket, kind.from_json, kind.to_json, on_change=on_change, replicas=replicas
            )
            mirrors.append(made)
            return made

        self._mirrors = mirrors
        self.index = VersionIndex()
        self.functions = mirror(models.FUNCTIONS_BUCKET, Function)
        self.versions = mirror(models.VERSIONS_BUCKET, FunctionVersion)
        self.deployments = mirror(models.DEPLOYMENTS_BUCKET, Deployment, self.index.deployment_changed)
        self.instances = mirror(models.INSTANCES_BUCKET, Instance, self.index.instance_changed)
        self.keys = mirror(models.API_KEYS_BUCKET, ApiKey)
        self.clusters = mirror(CLUSTERS_BUCKET, Cluster)
        self.registered_clusters = mirror(REGISTERED_CLUSTERS_BUCKET, RegisteredCluster)
        self.telemetries = mirror(models.TELEMETRIES_BUCKET, TelemetryEndpoint)
        self.secrets = mirror(models.SECRETS_BUCKET, SecretSet)
        self.registries = mirror(models.REGISTRIES_BUCKET, RegistryCredential)
        self.task_index = TaskIndex()
        self.tasks = mirror(models.TASKS_BUCKET, Task, self.task_index.changed)
        self.task_results = mirror(models.TASK_RESULTS_BUCKET, TaskResults, self.task_index.results_changed)

    async def start(self, stack: AsyncExitStack) -> None:
        """Follow all buckets until `stack` is closed; return when each has been read once."""
        for mirror in self._mirrors:
            await stack.enter_async_context(mirror)
        await asyncio.gather(*(mirror.ready() for mirror in self._mirrors))

    async def bootstrap_keys(self, path: Path) -> None:
        """Create the API keys of a file (JSON list of records, hashes only) that do not exist yet.

        Keys that exist get the scopes that the file has beyond theirs.
        """
        for record in await asyncio.to_thread(_read_keys, path):
            entry = self.keys.entry(record.id)
            if entry is not None and _lacks_scopes(entry.value, record):
                with contextlib.suppress(RevisionConflictError):
                    more = entry.value.replace(scopes=record.scopes)
                    await self.keys.update(record.id, more, entry.revision)
            elif entry is None:
                with contextlib.suppress(KeyExistsError):
                    await self.keys.create(record.id, record)

    def queue_depth(self, version_id: str) -> int:
        """Return how many requests of a version may be queued."""
        deployment = self.deployments.get(version_id)
        return (deployment and deployment.max_queue_depth) or MAX_QUEUED_REQUESTS

    def instances_of(self, version_id: str) -> list[Instance]:
        """Return the records of a version's instances, oldest first."""
        # A list of all versions must not search all instances for each of them.
        return sorted(
            self.index.instances(version_id), key=lambda instance: (instance.created_at, instance.id)
        )

    def versions_of(self, function_id: str) -> list[FunctionVersion]:
        """Return a function's versions, oldest first."""
        found = [version for version in self.versions.values() if version.function_id == function_id]
        return sorted(found, key=lambda version: (version.created_at, version.id))

    def status_of(self, version: FunctionVersion) -> VersionStatus:
        """Return the version's status now."""
        return version_status(self.deployments.get(version.id), self.instances_of(version.id))


def _lacks_scopes(key: ApiKey, wanted: ApiKey) -> bool:
    """Return whether a key of a bootstrap file may less than the file says, and is still that key."""
    same = key.secret_hash == wanted.secret_hash and key.revoked_at is None
    return same and set(key.scopes) < set(wanted.scopes)


def _read_keys(path: Path) -> list[ApiKey]:
    try:
        values = json.loads(path.read_bytes())
        return [ApiKey.from_dict(value, f"[{index}]") for index, value in enumerate(values)]
    except (OSError, ValueError, TypeError, AttributeError, InvalidRecord) as error:
        raise SetupError(f"cannot read the bootstrap keys {path}: {error}") from error
