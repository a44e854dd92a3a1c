"""Build a gateway process from its parts, and run it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial

from nvcf_broker.connection import BrokerClient
from nvcf_broker.errors import BrokerError
from nvcf_broker.jetstream import JetStream
from nvcf_broker.requests import ReplyInbox
from nvcf_gateway.access.agent_identity import AgentAccess
from nvcf_gateway.access.authorization import Authenticator, Authorizer
from nvcf_gateway.access.broker_callout import answer_callouts
from nvcf_gateway.access.revocations import Revocations
from nvcf_gateway.access.signed_tokens import DashboardTokens, SignedUrls
from nvcf_gateway.access.signing_keys import SigningKeys
from nvcf_gateway.access.task_access import TaskAccess
from nvcf_gateway.access.worker_access import WorkerAccess
from nvcf_gateway.access.worker_tokens import WorkerTokens
from nvcf_gateway.background import BackgroundTasks, connect, end_task
from nvcf_gateway.clusters.creation import WorkerAddresses
from nvcf_gateway.clusters.installation import InstallationImages, parse_images
from nvcf_gateway.clusters.service import Clusters
from nvcf_gateway.config import GatewayConfig
from nvcf_gateway.dashboard.routes import dashboard_routes
from nvcf_gateway.durability import Durability
from nvcf_gateway.errors import SetupError
from nvcf_gateway.exchange.attach import Attach, InlineReplies
from nvcf_gateway.exchange.pending import Pending, PendingRequests
from nvcf_gateway.http.body_budget import BodyBudget
from nvcf_gateway.http.routing import Route
from nvcf_gateway.http.serving import serve_http
from nvcf_gateway.http.spool_budget import SpoolBudget, spool_total
from nvcf_gateway.invocation.idempotent import IdempotentCalls
from nvcf_gateway.invocation.invoke import Invoker
from nvcf_gateway.invocation.leaving import drain, end_waits
from nvcf_gateway.invocation.republish import Republisher
from nvcf_gateway.invocation.waiting import CallRunner
from nvcf_gateway.invocation.worker_watch import watch_workers
from nvcf_gateway.management.deployments import Deployments
from nvcf_gateway.management.events import EventLog
from nvcf_gateway.management.functions import Management
from nvcf_gateway.management.queues import QueueDetails
from nvcf_gateway.management.routes import management_routes
from nvcf_gateway.objects.assets import Assets
from nvcf_gateway.objects.large_results import LargeResults
from nvcf_gateway.openapi import serve_document
from nvcf_gateway.queue.cleanup import Cleanup
from nvcf_gateway.queue.demand import Demand
from nvcf_gateway.queue.regional_buckets import RegionalBuckets
from nvcf_gateway.queue.request_queue import RequestQueue
from nvcf_gateway.quotas.asset_index import AssetIndex
from nvcf_gateway.quotas.kept_answers import KeptAnswers
from nvcf_gateway.quotas.limits import Quota, parse_limits
from nvcf_gateway.quotas.usage import Usage
from nvcf_gateway.ratelimit.limiter import RateLimiter
from nvcf_gateway.ratelimit.shared import SharedCounters
from nvcf_gateway.readiness import Probe, Readiness
from nvcf_gateway.registry import Registry
from nvcf_gateway.results.dead_letters import MAX_DELIVERIES_SUBJECT, DeadLetters
from nvcf_gateway.results.dead_letters import QUEUE_GROUP as DEAD_LETTER_GROUP
from nvcf_gateway.results.fallback import QUEUE_GROUP as FALLBACK_GROUP
from nvcf_gateway.results.fallback import FallbackLookup
from nvcf_gateway.results.hand_backs import NAK_SUBJECT, HandBacks
from nvcf_gateway.results.idempotency_keys import IdempotencyKeys
from nvcf_gateway.results.service import start_retention
from nvcf_gateway.results.status import Poller
from nvcf_gateway.results.worker_query import WorkerQuery
from nvcf_gateway.rpc.authorization_service import AuthorizationService
from nvcf_gateway.rpc.server import check_token, new_server, serve
from nvcf_gateway.rpc.task_service import TaskWorkerService
from nvcf_gateway.rpc.worker_service import WorkerService
from nvcf_gateway.secrets.delivery import SecretDelivery
from nvcf_gateway.secrets.service import start_secrets
from nvcf_gateway.server import HttpServer
from nvcf_gateway.sessions.service import Sessions
from nvcf_gateway.stats.collector import SnapshotCollector
from nvcf_gateway.stats.queues import Queues
from nvcf_gateway.stats.routes import StatsRoute
from nvcf_gateway.tasks.routes import TaskRoutes
from nvcf_gateway.tasks.store import TaskStore, tasks_room
from nvcf_gateway.tasks.uploads import TaskUploads
from nvcf_gateway.telemetry.enqueue_span import EnqueueTelemetry
from nvcf_gateway.telemetry.http_span import HttpTelemetry
from nvcf_gateway.telemetry.metrics import GatewayMetrics, register_gauges
from nvcf_gateway.telemetry.sessions import SessionTelemetry
from nvcf_proto.budget import DEFAULT_DATA_BUDGET
from nvcf_proto.ids import new_id
from nvcf_proto.pb import nvcf_pb2_grpc, nvct_pb2_grpc
from nvcf_proto.stores import ASSETS, LARGE_RESULTS
from nvcf_proto.subjects import STARTED_SUBJECTS, fallback_subject

_log = logging.getLogger(__name__)

CALLERS_GRACE = 8.0
"""How long callers may wait of it, seconds; the rest is for their answers."""


@dataclass(frozen=True)
class RunningGateway:
    """A gateway that serves. Addresses are `host:port`."""

    gateway_id: str
    http: str
    grpc: str
    client: BrokerClient
    pending: PendingRequests
    drain: Callable[[], Awaitable[None]]
    """Serves on until callers have their answers, as far as the configured times allow."""
    sessions: str | None = None


def new_gateway_id() -> str:
    """Return an id for one process; it is part of subjects."""
    return new_id().replace("-", "")


@contextlib.asynccontextmanager
async def running_gateway(config: GatewayConfig, gateway_id: str) -> AsyncIterator[RunningGateway]:
    """Serve until the context is left; callers that wait then have `CALLERS_GRACE` seconds.

    Raises SetupError and BrokerError when the gateway cannot start.
    """
    async with AsyncExitStack() as stack:
        yield await _start(stack, config, gateway_id)


async def _start(stack: AsyncExitStack, config: GatewayConfig, gateway_id: str) -> RunningGateway:
    """Create all parts, from the broker up to the listeners. What has to be ended goes on `stack`."""
    images = parse_images(config.sidecar_images)
    sidecars = await asyncio.to_thread(InstallationImages, images, config.sidecar_registry_login)
    keys = await asyncio.to_thread(SigningKeys, config.signing_key)
    stack.push_async_callback(end_task, asyncio.create_task(keys.follow(), name="signing keys"))
    name, patience = f"gateway_{gateway_id}", config.nats_patience
    client = await connect(stack, config.nats, config.nats_credentials, name, patience=patience)
    control = client
    if (credentials := config.nats_control_credentials) is not None:
        control = await connect(stack, config.nats, credentials, f"{name}_control")
    config = replace(config, data_max=await _data_budget(client, config))
    registry = Registry(control, config.replicas)
    workers, agents = WorkerAccess(WorkerTokens(keys), registry), AgentAccess(registry)
    await registry.start(stack)
    if config.bootstrap_keys is not None:
        await registry.bootstrap_keys(config.bootstrap_keys)
    background = await stack.enter_async_context(BackgroundTasks())
    requests = ReplyInbox(client)
    await requests.start()
    control_requests = requests if control is client else ReplyInbox(control)
    if control is not client:
        await control_requests.start()
    shared = SharedCounters(client, requests, gateway_id)
    await shared.start(stack)
    limiter = RateLimiter(shared, background)
    # Ports are known only once the listeners are bound.
    http_address: list[str] = []
    grpc_address: list[str] = []
    scheme = "http" if config.tls_cert is None else "https"

    def attach_url() -> str:
        return config.attach_url or f"{scheme}://{http_address[0]}"

    def addresses() -> WorkerAddresses:
        grpc = config.worker_grpc or ("" if config.tls_cert is None else "https://") + grpc_address[0]
        return WorkerAddresses(config.public_url or attach_url(), grpc, config.worker_nats or config.nats)

    # What is kept in the broker.
    cleanup = Cleanup(requests, registry)
    stack.push_async_callback(end_task, asyncio.create_task(cleanup.run(), name="clean-up"))
    asset_index = AssetIndex(client, config.replicas)
    await stack.enter_async_context(asset_index.mirror)
    await asset_index.mirror.ready()
    kept = KeptAnswers(client, gateway_id, config.results_ttl, replicas=config.replicas)
    await stack.enter_async_context(kept.mirror)
    await kept.mirror.ready()
    stack.push_async_callback(end_task, asyncio.create_task(kept.run(), name="counts of kept answers"))
    spool_max = await asyncio.to_thread(spool_total, config.spool_directory, config.spool_max)
    limits = parse_limits(config.quotas, config.data_max or 0, spool_max)
    usage = Usage(requests, registry, limits, asset_index, kept)
    spool = SpoolBudget(spool_max, partial(limits.require_of, Quota.SPOOLED_BYTES))
    stack.push_async_callback(end_task, asyncio.create_task(usage.run(), name="use of quotas"))
    readiness = Readiness()
    durability = Durability(config.store_folder, background)
    probe = Probe(readiness, control, control_requests, config)
    queue = RequestQueue(client, requests, config, registry.queue_depth, readiness.refusal, usage.admit)
    idempotency_keys = IdempotencyKeys(requests, config)
    retention = await start_retention(client, requests, config, kept, durability, usage)
    try:
        await idempotency_keys.ensure()
    except BrokerError as error:
        raise SetupError(str(error)) from None
    urls = SignedUrls(lambda: keys.ring.mac_keys(), lambda: config.public_url or attach_url())
    ttl, max_bytes = config.results_ttl, config.results_max_bytes
    large_buckets = RegionalBuckets(
        client, requests, config, "large", ttl=ttl, store=LARGE_RESULTS, max_bytes=max_bytes
    )
    large = LargeResults(large_buckets, urls, config.large_body_bytes)
    asset_buckets = RegionalBuckets(client, requests, config, "assets", ttl=config.assets_ttl, store=ASSETS)
    dashboard_tokens = DashboardTokens(lambda: keys.ring.mac_keys())
    authenticator, authorizer = Authenticator(registry, dashboard_tokens), Authorizer(registry)
    revocations = Revocations(
        registry,
        lambda account: limits.of(account, Quota.CONNECTIONS),
        lambda account: usage.require(account, Quota.CONNECTIONS),
    )
    usage.of_this_gateway[Quota.CONNECTIONS] = revocations.open_of
    usage.of_this_gateway[Quota.SPOOLED_BYTES] = spool.used
    stack.push_async_callback(end_task, asyncio.create_task(revocations.follow(), name="revocations"))
    assets = Assets(
        authenticator, asset_buckets, urls, config.large_body_bytes, config.assets_ttl, asset_index, usage
    )

    # Calls.
    pending = PendingRequests()
    demand = Demand(control, gateway_id, registry.index, time.time)
    metrics = GatewayMetrics("http" if config.tls_cert is None else "https")
    http_telemetry, telemetry = HttpTelemetry(metrics), EnqueueTelemetry(metrics, config.region)
    session_telemetry = SessionTelemetry(http_telemetry, telemetry)
    register_gauges(metrics, demand.waiting, lambda: session_telemetry.active, session_telemetry.bytes)
    inline = InlineReplies(client, gateway_id, pending, background)
    runner = CallRunner(
        config, inline.subjects, attach_url, queue, pending, retention, background, demand, telemetry
    )
    query = WorkerQuery(config, inline.subjects, attach_url, requests, pending)
    poller = Poller(
        query, authenticator, authorizer, queue, retention, background, idempotency_keys, revocations
    )
    idempotent = IdempotentCalls(runner, retention, idempotency_keys, background, usage)
    invoker = Invoker(
        config,
        registry,
        authenticator,
        authorizer,
        runner,
        idempotent,
        poller,
        limiter,
        assets,
        large,
        BodyBudget(),
        spool,
        revocations,
    )
    fallback = FallbackLookup(
        config, inline.subjects, attach_url, registry, queue, pending, retention, background
    )
    await client.subscribe(fallback_subject("*"), queue=FALLBACK_GROUP, cb=fallback.on_query)

    # Everything else that is served over HTTP.
    secrets = await start_secrets(stack, config, registry, usage, control_requests)
    management = Management(authenticator, registry, queue, usage, secrets)
    deployments = Deployments(authenticator, registry, queue, management)
    queues = Queues(requests, config.regions)
    task_access = TaskAccess(workers.tokens, registry)
    task_store = TaskStore(registry, secrets, usage, await tasks_room(control_requests))
    stack.push_async_callback(end_task, asyncio.create_task(task_store.keep_tidy(), name="old tasks"))
    task_routes = TaskRoutes(authenticator, registry, task_store, secrets, idempotency_keys)
    clusters = Clusters(
        registry,
        authenticator,
        agents,
        workers,
        task_access,
        secrets,
        control,
        control_requests,
        client,
        background,
        addresses,
        sidecars,
        config.replicas,
    )
    collector = SnapshotCollector(client, gateway_id, demand.history, lambda: shared.members)
    await collector.start()
    routes = http_routes(
        [
            *management_routes(
                authenticator,
                registry,
                management,
                deployments,
                EventLog(control, control_requests),
                usage,
                secrets,
                QueueDetails(authenticator, registry, queues, queue, poller.tracked),
            ),
            *clusters.admin_routes(),
            *task_routes.routes(),
            *TaskUploads(task_access, assets, task_store.refresh).routes(),
            *SecretDelivery(agents, registry, workers, secrets).routes(),
        ],
        assets,
        large,
        StatsRoute(authenticator, registry, collector, queues),
        dashboard_routes(authenticator, dashboard_tokens, idempotency_keys.use_once)
        if config.dashboard
        else [],
    )
    http = HttpServer(
        invoker,
        poller,
        Attach(pending),
        lambda: client.is_connected,
        http_telemetry,
        routes,
        clusters.agent_routes(),
        readiness,
        durability,
    )

    # Subjects and listeners.
    stack.push_async_callback(end_task, asyncio.create_task(probe.run(), name="readiness probe"))
    stack.push_async_callback(end_task, asyncio.create_task(demand.report(), name="demand reports"))
    hand_backs = HandBacks(time.time())
    await client.subscribe(NAK_SUBJECT, cb=hand_backs.on_nak)
    await client.subscribe(STARTED_SUBJECTS, cb=hand_backs.on_started)
    dead_letters = DeadLetters(
        requests, queue, background, config.regions, registry.versions.keys, hand_backs
    )
    client.on_reconnect(dead_letters.missed.set)
    await client.subscribe(MAX_DELIVERIES_SUBJECT, queue=DEAD_LETTER_GROUP, cb=dead_letters.on_advisory)
    stack.push_async_callback(end_task, asyncio.create_task(dead_letters.sweep(), name="sweep of the queues"))
    await answer_callouts(client, config, workers, agents)
    answering = await watch_workers(stack, config, gateway_id, workers, agents, limits, usage)
    Republisher(client, requests, queue, pending, background, answering)
    await client.flush(timeout=5)
    grpc_server = new_server(
        lambda: client.is_connected, lambda token: check_token(token, workers.tokens, authenticator)
    )
    worker_service = WorkerService(config, registry, queue, workers, assets, large)
    nvcf_pb2_grpc.add_WorkerServicer_to_server(worker_service, grpc_server)
    task_service = TaskWorkerService(config.region, task_access, task_store)
    nvct_pb2_grpc.add_WorkerServicer_to_server(task_service, grpc_server)
    AuthorizationService(authenticator, authorizer, registry, limiter).add_to(grpc_server)
    grpc_address.append(await serve(stack, config, grpc_server))

    async def unserved(waiting: Pending) -> bool:
        if registry.index.is_running(waiting.version_id):
            return False
        return await queue.place(waiting.version_id, waiting.request_id, config.region) == "queued"

    ends = partial(end_waits, pending, unserved, CALLERS_GRACE)
    http_address.append(await serve_http(stack, config, http.handle, ends, lambda: readiness.stopping))
    await clusters.start(stack)
    sessions = None
    if config.sessions is not None or config.session_proxy is not None:
        sessions = Sessions(
            config,
            authenticator,
            authorizer,
            queue,
            client,
            requests,
            background,
            limiter,
            demand,
            session_telemetry,
            revocations,
        )
        await sessions.start(stack)
        http.sessions = sessions
    address = None if sessions is None else sessions.address
    served = lambda: sum(not each.detached for each in pending.all()) + session_telemetry.active  # noqa: E731
    ended = partial(drain, readiness, served, config.drain, config.grace)
    return RunningGateway(gateway_id, http_address[0], grpc_address[0], client, pending, ended, address)


def http_routes(
    management: list[Route], assets: Assets, large: LargeResults, stats: StatsRoute, dashboard: list[Route]
) -> list[Route]:
    """Return all routes besides those that the server adds for calls."""
    return [
        *management,
        *assets.routes(),
        *large.routes(),
        ("GET", "/v2/nvcf/figures", stats.get),
        ("GET", "/openapi.json", serve_document),
        *dashboard,
    ]


async def _data_budget(client: BrokerClient, config: GatewayConfig) -> int:
    """Return the bytes that tenants' data may take: the wanted ones, within the broker account's limit.

    The limit counts every copy, the returned bytes are those of one copy.
    """
    limit = (await JetStream(client).account_info()).limit
    room = DEFAULT_DATA_BUDGET if limit is None else limit // config.replicas
    return room if config.data_max is None else min(config.data_max, room)
