"""Orders of the autoscaler: each becomes one creation message (protocol.md, section 6.3)."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from nats.aio.client import Client
from nats.aio.msg import Msg

from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import JetStream, Requester
from nvcf_gateway.access.task_access import TaskAccess
from nvcf_gateway.access.worker_access import WorkerAccess
from nvcf_gateway.background import BackgroundTasks
from nvcf_gateway.clusters.creation import OrderedInstance, WorkerAddresses, creation_message
from nvcf_gateway.clusters.installation import InstallationImages
from nvcf_gateway.clusters.launch import Access, artifacts_digest
from nvcf_gateway.clusters.task_creation import OrderedTask, task_message
from nvcf_gateway.errors import GatewayError, HttpProblem
from nvcf_gateway.registry import Registry
from nvcf_gateway.secrets.delivery import secret_paths
from nvcf_gateway.secrets.registry_logins import account_k8s_secrets
from nvcf_gateway.secrets.store import SecretStore
from nvcf_otel.byoo import plan
from nvcf_proto.compute import RegisteredCluster
from nvcf_proto.errors import ContractError
from nvcf_proto.icms.messages import CreationMessage, InstanceOrder
from nvcf_proto.icms.names import ORDER_SUBJECT
from nvcf_proto.models import ArtifactType, FunctionVersion, InstanceState
from nvcf_proto.models.deployments import specifications_of
from nvcf_proto.models.secrets import version_owner

_log = logging.getLogger(__name__)

QUEUE_GROUP = "nvcf-gateways"
AT_ONCE = 64
"""Orders that are worked on at the same time; more wait."""
MOST_WAITING = 4096
"""Orders beyond these are refused; the autoscaler orders again."""
LONGEST_ERROR = 1000
_OVER = (InstanceState.COMPLETED, InstanceState.FAILED)


class OrderRefused(GatewayError):
    """The order cannot be carried out; the text says why."""


class Orders:
    """Publishes creation messages. Any gateway can; the broker gives each order to one of them."""

    def __init__(
        self,
        registry: Registry,
        workers: WorkerAccess,
        tasks: TaskAccess,
        secrets: SecretStore,
        requests: Requester,
        background: BackgroundTasks,
        addresses: Callable[[], WorkerAddresses],
        sidecars: InstallationImages,
    ) -> None:
        self._registry = registry
        self._sidecars = sidecars
        self._workers = workers
        self._tasks = tasks
        self._secrets = secrets
        self._jetstream = JetStream(requests)
        self._background = background
        self._addresses = addresses
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def start(self, client: Client) -> None:
        """Take orders on the control plane's connection."""
        await client.subscribe(ORDER_SUBJECT, queue=QUEUE_GROUP, cb=self._on_order)

    async def _on_order(self, message: Msg) -> None:
        if self._waiting >= MOST_WAITING:
            await message.respond(b'{"error": "too many orders wait"}')
            return
        self._waiting += 1
        self._background.spawn(self._answer(message), "order of an instance")

    async def _answer(self, message: Msg) -> None:
        try:
            async with self._slots:
                answer = await self._carried_out(message.data)
            await message.respond(answer)
        finally:
            self._waiting -= 1

    async def _carried_out(self, body: bytes) -> bytes:
        try:
            order = InstanceOrder.from_json(body)
            created = await self.compose(order, time.time())
            await self._jetstream.publish(
                created.subject(order.cluster_id),
                created.to_json(),
                {"Nats-Msg-Id": f"create-{order.request_id}-{order.attempt}"},
                action="cannot publish the creation message",
            )
        except (ContractError, OrderRefused, ValueError, BrokerError) as error:
            _log.warning("an instance is not ordered: %s", error)
            return json.dumps({"error": str(error)[:LONGEST_ERROR]}).encode()
        return b"{}"

    async def compose(self, order: InstanceOrder, now: float) -> CreationMessage:
        """Return the message of an order. Raises OrderRefused and InvalidRecord."""
        registry = self._registry
        cluster = registry.registered_clusters.get(order.cluster_id)
        if cluster is None or cluster.evicted:
            raise OrderRefused(f"there is no cluster {order.cluster_id}")
        if order.task_id is not None:
            return await self._compose_task(order, order.task_id, cluster, now)
        version = registry.versions.get(order.function_version_id)
        deployment = registry.deployments.get(order.function_version_id)
        if version is None or deployment is None:
            raise OrderRefused(f"version {order.function_version_id} is not deployed")
        spec = specifications_of(deployment).get(order.gpu_specification_id)
        if spec is None:
            raise OrderRefused(f"version {version.id} has no specification {order.gpu_specification_id}")
        record = registry.instances.get(f"{version.id}.{order.request_id}")
        if record is not None and record.state in _OVER:
            raise OrderRefused(f"request {order.request_id} is closed")
        wanted = OrderedInstance(
            order,
            version,
            deployment,
            spec,
            cluster,
            self._addresses(),
            self._workers.first_token(version, order.request_id, now),
            plan(version.telemetries, registry.telemetries.get, version.nca_id).endpoints,
            now,
            None if version.process is not None else await self._access(version, order, now),
        )
        return creation_message(wanted)

    async def _compose_task(
        self, order: InstanceOrder, task_id: str, cluster: RegisteredCluster, now: float
    ) -> CreationMessage:
        task = self._registry.tasks.get(task_id)
        if task is None or task.request_id != order.request_id:
            raise OrderRefused(f"task {task_id} has no order {order.request_id}")
        record = self._registry.instances.get(task.instance_key)
        if task.status.is_over or (record is not None and record.state in _OVER):
            raise OrderRefused(f"request {order.request_id} is closed")
        token = self._tasks.token(task, now)
        access = None
        if task.container_image is not None:
            files = bool(task.models or task.resources)
            access = await self._registry_access(task.nca_id, artifacts=files, charts=False)
        return task_message(OrderedTask(order, task, cluster, self._addresses(), token, now, access))

    async def _access(self, version: FunctionVersion, order: InstanceOrder, now: float) -> Access:
        """Return what an image or a chart may read. Raises OrderRefused if it cannot be opened."""
        registry, store = self._registry, self._secrets
        files = artifacts_digest(version) is not None
        access = await self._registry_access(version.nca_id, artifacts=files, charts=True)
        paths = secret_paths(registry, version)
        own = version.has_secrets or bool(store.names(version_owner(version.id)))
        token = ""
        if own or len(paths) > 1:
            token = self._workers.first_secrets_token(version, order.request_id, paths, now)
        return replace(access, secrets_token=token, has_secrets=own)

    async def _registry_access(self, account: str, *, artifacts: bool, charts: bool) -> Access:
        """Return the account's logins of registries, and the installation's images. Raises OrderRefused."""

        async def logins(*kinds: ArtifactType) -> str:
            return await account_k8s_secrets(self._registry, self._secrets, account, *kinds)

        try:
            return Access(
                await logins(ArtifactType.CONTAINER),
                await logins(ArtifactType.HELM) if charts else "",
                self._addresses().http,
                artifacts=await logins(ArtifactType.MODEL, ArtifactType.RESOURCE) if artifacts else "",
                sidecars=await self._sidecars.variables(),
            )
        except HttpProblem as error:
            raise OrderRefused(f"the account's registry credentials: {error}") from error
