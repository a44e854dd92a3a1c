"""Putting a gateway process together, and its life."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc
from aiohttp import web

from nvcf_broker.connection import BrokerClient, connect_broker
from nvcf_broker.requests import BrokerRequests
from nvcf_gateway.asking import WorkerDoor
from nvcf_gateway.attach import Attach, InlineReplies
from nvcf_gateway.auth import Authenticator, Authorizer
from nvcf_gateway.callout import QUEUE_GROUP, AuthCallout, load_account_seed
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.deployments import Deployments
from nvcf_gateway.errors import QueueError, SetupError
from nvcf_gateway.http import HttpDoor
from nvcf_gateway.invoke import Invoker
from nvcf_gateway.keeping import Keeping
from nvcf_gateway.management import Management
from nvcf_gateway.owner import TaskOwner
from nvcf_gateway.pending import PendingRequests
from nvcf_gateway.polling import Poller
from nvcf_gateway.queue import RequestQueue
from nvcf_gateway.registry import Registry
from nvcf_gateway.results import ResultStore
from nvcf_gateway.tracking import Tracking
from nvcf_gateway.waiting import Waiting
from nvcf_gateway.worker_service import WorkerService
from nvcf_gateway.worker_tokens import WorkerTokens, load_signing_key
from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2_grpc
from nvcf_proto.subjects import AUTH_CALLOUT_SUBJECT, inline_reply_subjects

_log = logging.getLogger(__name__)

SHUTDOWN_GRACE = 10.0


@dataclass(frozen=True)
class RunningGateway:
    """A gateway that serves. Addresses are `host:port`."""

    gateway_id: str
    http: str
    grpc: str
    client: BrokerClient
    pending: PendingRequests


@contextlib.asynccontextmanager
async def running_gateway(config: GatewayConfig) -> AsyncIterator[RunningGateway]:
    """Serve until the context is left; callers that wait then get `SHUTDOWN_GRACE` seconds.

    Raises SetupError and BrokerError when the gateway cannot start.
    """
    gateway_id = new_id().replace("-", "")
    async with AsyncExitStack() as stack:
        key = await asyncio.to_thread(load_signing_key, config.signing_key)
        tokens = WorkerTokens(key)
        client = await connect_broker(config.nats, config.nats_credentials, name=f"gateway_{gateway_id}")
        stack.push_async_callback(_close, client)
        registry = Registry(client, config.replicas)
        await registry.start(stack)
        if config.bootstrap_keys is not None:
            await registry.bootstrap_keys(config.bootstrap_keys)
        owner = await stack.enter_async_context(TaskOwner())
        requests = BrokerRequests(client)
        await requests.start()
        parts = await _parts(config, gateway_id, client, requests, registry, tokens, owner)
        replies = InlineReplies(parts.pending, owner)
        await client.subscribe(inline_reply_subjects(gateway_id), cb=replies.received)
        if config.callout_seed is not None:
            account = await asyncio.to_thread(load_account_seed, config.callout_seed)
            callout = AuthCallout(account, registry, tokens, config.regions)
            await client.subscribe(AUTH_CALLOUT_SUBJECT, queue=QUEUE_GROUP, cb=callout.asked)
        await client.flush(timeout=5)
        service = WorkerService(registry, parts.queue, tokens, config.region, config.regions)  # type: ignore[abstract] # the base answers UNIMPLEMENTED
        grpc_address = await _serve_grpc(stack, config, service)
        parts.http_address.append(await _serve_http(stack, config, parts.door))
        yield RunningGateway(gateway_id, parts.http_address[0], grpc_address, client, parts.pending)


@dataclass(frozen=True)
class _Parts:
    door: HttpDoor
    queue: RequestQueue
    pending: PendingRequests
    http_address: list[str]


async def _parts(
    config: GatewayConfig,
    gateway_id: str,
    client: BrokerClient,
    requests: BrokerRequests,
    registry: Registry,
    tokens: WorkerTokens,
    owner: TaskOwner,
) -> _Parts:
    http_address: list[str] = []

    def attach_url() -> str:
        # The port is known only once the listener is bound.
        return config.attach_url or f"http://{http_address[0]}"

    pending = PendingRequests()
    queue = RequestQueue(client, requests, config)
    tracking = Tracking(requests, config)
    results = {region: ResultStore(client, requests, config, region) for region in config.regions}
    try:
        await tracking.ensure()
        for store in results.values():
            await store.start()
    except QueueError as error:
        raise SetupError(str(error)) from None
    keeping = Keeping(config, requests, results[config.region], tracking)
    authenticator, authorizer = Authenticator(registry), Authorizer(registry)
    waiting = Waiting(config, gateway_id, attach_url, queue, pending, keeping, owner)
    invoker = Invoker(config, registry, authenticator, authorizer, waiting, keeping)
    worker_door = WorkerDoor(config, gateway_id, attach_url, requests, pending)
    poller = Poller(worker_door, authenticator, authorizer, queue, results, tracking, keeping, owner)
    management = Management(authenticator, registry, queue)
    deployments = Deployments(authenticator, registry, queue, management, tokens)
    door = HttpDoor(invoker, poller, Attach(pending), management, deployments, lambda: client.is_connected)
    return _Parts(door, queue, pending, http_address)


async def _serve_grpc(stack: AsyncExitStack, config: GatewayConfig, service: WorkerService) -> str:
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", 64 * 1024), ("grpc.so_reuseport", 0)]
    )
    nvcf_pb2_grpc.add_WorkerServicer_to_server(service, server)
    host, port = config.grpc
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise SetupError(
            f"cannot listen on {host}:{port} (gRPC): is the port taken? Choose --grpc"
        ) from error
    await server.start()
    stack.push_async_callback(server.stop, 1.0)
    return f"{host}:{bound}"


async def _serve_http(stack: AsyncExitStack, config: GatewayConfig, door: HttpDoor) -> str:
    server = web.Server(
        door.handle,
        handler_cancellation=True,
        access_log=None,
        # Bodies pass as they are.
        auto_decompress=False,
        keepalive_timeout=75.0,
        lingering_time=2.0,
        max_line_size=16 * 1024,
        max_field_size=16 * 1024,
    )
    runner = web.ServerRunner(server)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    host, port = config.http
    site = web.TCPSite(runner, host, port, backlog=1024, shutdown_timeout=SHUTDOWN_GRACE)
    try:
        await site.start()
    except OSError as error:
        raise SetupError(f"cannot listen on {host}:{port} (HTTP): {error.strerror}. Choose --http") from error
    return f"{host}:{runner.addresses[0][1]}"


async def _close(client: BrokerClient) -> None:
    with contextlib.suppress(Exception):  # closing a connection that is already gone
        async with asyncio.timeout(3):
            await client.drain()
