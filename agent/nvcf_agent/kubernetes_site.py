"""The agent of a Kubernetes cluster: instances are pods or MiniServices, its state is ICMSRequests."""

import argparse
import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import aiohttp

from nvcf_agent.accounts import AccountTelemetry
from nvcf_agent.agent import Agent
from nvcf_agent.backends.environment import InstanceSpec, WorkerTelemetry
from nvcf_agent.control_plane import ControlPlane
from nvcf_agent.icms.client import IcmsClient, agent_version
from nvcf_agent.icms.identity import Identity
from nvcf_agent.kubernetes.backends import fetch_settings, helm_settings, make_backend
from nvcf_agent.kubernetes.client.api import Api
from nvcf_agent.kubernetes.client.lease import LeaseTimes
from nvcf_agent.kubernetes.events import CREATION, EventRecorder
from nvcf_agent.kubernetes.flags import Flag
from nvcf_agent.kubernetes.health import Health, State, answering
from nvcf_agent.kubernetes.helm.fetch import Fetcher
from nvcf_agent.kubernetes.key_set import publish_keys
from nvcf_agent.kubernetes.leadership import Leadership, no_trace_of_a_leader
from nvcf_agent.kubernetes.nodes.inventory import ClusterInventory
from nvcf_agent.kubernetes.nodes.static import parse_static
from nvcf_agent.kubernetes.nodes.watch import NodeWatch
from nvcf_agent.kubernetes.pods.variables import SECRETS
from nvcf_agent.kubernetes.reflection import Reflection
from nvcf_agent.kubernetes.secret_objects import SecretObjects, of_chart, of_pods
from nvcf_agent.kubernetes.settings import Settings, read_settings, until_changed
from nvcf_agent.kubernetes.store import RequestStore
from nvcf_agent.kubernetes.worker_modes import WorkerModes
from nvcf_agent.options import POD_READY_SECONDS, attributes
from nvcf_agent.requests import Requests
from nvcf_agent.secrets import GatewaySecrets, InstanceSecrets
from nvcf_agent.serving import Ready, connector
from nvcf_agent.state.persisted_state import PersistedState
from nvcf_agent.telemetry import AgentTelemetry
from nvcf_agent.timings import Timings
from nvcf_otel.setup import Telemetry
from nvcf_proto.icms.reports import MaintenanceMode

_log = logging.getLogger(__name__)

_FIRST_NODES_SECONDS = 30.0
_SLACK_SECONDS = 300.0


async def read(options: argparse.Namespace) -> Settings:
    """Return the settings of the cluster's agent. Raises `AgentError`."""
    async with await Api.open(options.kubeconfig) as api:
        return await read_settings(api, options)


async def serve(
    options: argparse.Namespace, settings: Settings, telemetry: Telemetry, stop: asyncio.Event
) -> None:
    """Run the agent, once it has the lease, until `stop` is set. Raises `AgentError` and `BrokerError`."""
    identity = Identity(options.key_file or options.token_file)
    await identity.current()
    health = Health()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(answering(options.health, health))
        # The lease has connections of its own, so that its renewals wait for nothing.
        lease_api = await stack.enter_async_context(await Api.open(options.kubeconfig))
        name, system = settings.object_name, options.system_namespace
        leadership = Leadership(
            lease_api,
            system,
            _process_name(),
            _lease_times(options.time_scale),
            lambda: no_trace_of_a_leader(
                lease_api, None if name is None else (system, name), settings.requests_namespace
            ),
        )
        api = await stack.enter_async_context(await Api.open(options.kubeconfig))
        api.leads = lambda: leadership.is_held
        health.state = State.STANDBY
        if not await _until(leadership.acquire(), stop):
            return
        stack.push_async_callback(leadership.close)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        icms = IcmsClient(session, settings.icms, settings.cluster_id, identity)
        site = await _make_site(options, settings, api, icms, session, stack)
        connect = connector(settings.nats, settings.cluster_id, identity, telemetry)
        ready = Ready(site.control_plane, telemetry, options.metrics)

        def on_stalled(stalled: bool) -> None:
            health.state = State.STALLED if stalled else State.WORKING
            site.control_plane.set_stalled(stalled)

        def on_ready() -> None:
            health.state = State.WORKING
            ready.tell()

        health.state = State.STARTING
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(each) for each in site.beside()]
            await site.watch.start(_FIRST_NODES_SECONDS)
            await site.agent.adopt()
            beside.append(group.create_task(site.store.run()))
            beside.append(group.create_task(site.reflect()))
            beside.append(group.create_task(leadership.keep(on_stalled)))
            beside.append(group.create_task(_stop_when_changed(api, options, settings, stop)))
            await site.control_plane.run(connect, stop, on_ready)
            for each in beside:
                each.cancel()


@dataclass
class _Site:
    """The parts of a running agent."""

    options: argparse.Namespace
    settings: Settings
    api: Api
    control_plane: ControlPlane
    agent: Agent
    watch: NodeWatch
    store: RequestStore
    events: EventRecorder

    def beside(self) -> list[Coroutine[Any, Any, None]]:
        """Return what runs all the time beside the agent, from before it begins."""
        control_plane = self.control_plane
        found = [self.watch.run(), self.events.run()]
        if self.options.token_file is not None:
            found.append(publish_keys(self.api, control_plane.client, control_plane.timings))
        return found

    async def reflect(self) -> None:
        """Keep the status of the NVCFBackend, once nodes and instances are known, until cancelled."""
        if (name := self.settings.object_name) is not None:
            namespace, kubernetes = self.options.system_namespace, self.control_plane.k8s_version or ""
            await Reflection(self.api, name, namespace, agent_version(), kubernetes, self.agent.usage).run()


async def _make_site(
    options: argparse.Namespace,
    settings: Settings,
    api: Api,
    icms: IcmsClient,
    session: aiohttp.ClientSession,
    stack: contextlib.AsyncExitStack,
) -> _Site:
    cluster, namespace = settings.cluster_id, settings.requests_namespace
    control_plane = ControlPlane(
        icms,
        cluster,
        Timings().scaled(options.time_scale),
        options.heartbeat,
        {**settings.attributes, **attributes(options)},
        maintenance=_maintenance(settings),
        k8s_version=await api.version(),
    )
    watch = NodeWatch(
        api,
        inventory_of(settings, options.cpu_slots),
        dynamic=settings.static is None,
        passthrough=settings.has(Flag.PASSTHROUGH),
    )
    events = EventRecorder(api, _process_name())
    store = RequestStore(
        api,
        namespace,
        on_deleted=lambda request_id: requests.remove(request_id),
        on_saved=events.record_saved,
    )
    requests = Requests(watch.inventory, PersistedState(store, cluster), control_plane.timings, options.grace)

    def say(spec: InstanceSpec, text: str) -> None:
        if (about := store.object_of(spec.order.request_id)) is not None:
            events.record(about, CREATION, text, warning=True)

    gateway = GatewaySecrets(session, icms)
    secrets = InstanceSecrets(gateway, SecretObjects(api, of_pods(namespace)))
    helm_secrets = InstanceSecrets(gateway, SecretObjects(api, of_chart))
    for each in (secrets, helm_secrets):
        await stack.enter_async_context(each)
    operators = WorkerTelemetry.of(
        os.environ, metrics=options.worker_metrics, passed_on=options.worker_telemetry
    )
    data = options.data.absolute()
    ready_seconds = options.max_ready_seconds or POD_READY_SECONDS
    backend = make_backend(
        api,
        settings,
        owner=store.object_of,
        resource=lambda gpu: watch.inventory.resource(gpu),
        nodes=lambda kind: watch.inventory.nodes_of(kind),
        secrets=secrets,
        grace=options.grace,
        ready_seconds=ready_seconds,
        modes=WorkerModes(Fetcher(fetch_settings(options)), say),
        helm=helm_settings(options, os.environ),
        helm_secrets=helm_secrets,
    )
    control_plane.on_prefetch = backend.prefetch
    agent = Agent(
        requests=requests,
        backend=backend,
        telemetry=AgentTelemetry(cluster),
        worker_telemetry=operators,
        accounts=AccountTelemetry(
            (options.telemetry_secrets or data / "telemetry-secrets").absolute(),
            operators,
            cluster,
            secrets.of_telemetries,
            data / "telemetry",
            SECRETS,
        ),
        # The backend gives up by itself, and knows why. This is for what it does not notice.
        ready_timeout=ready_seconds + _SLACK_SECONDS,
        keep_finished=options.keep_finished,
    )
    agent.telemetry.register_gpus(agent.usage)
    control_plane.bind(agent)
    watch.on_change = control_plane.replace_inventory
    return _Site(options, settings, api, control_plane, agent, watch, store, events)


def inventory_of(settings: Settings, cpu_slots: int) -> ClusterInventory:
    """Return the inventory without nodes. Raises `AgentError`."""
    return ClusterInventory(
        static=parse_static(settings.static) if settings.static is not None else (),
        provider=settings.provider,
        cpu_slots=cpu_slots,
        multi_node=settings.has(Flag.MULTI_NODE),
        enforced=settings.has(Flag.ENFORCE_FUNCTION_LIMITS),
    )


def _maintenance(settings: Settings) -> MaintenanceMode:
    if settings.has(Flag.CORDON_AND_DRAIN):
        return MaintenanceMode.CORDON_AND_DRAIN
    return MaintenanceMode.CORDON if settings.has(Flag.CORDON) else MaintenanceMode.NONE


async def _stop_when_changed(
    api: Api, options: argparse.Namespace, settings: Settings, stop: asyncio.Event
) -> None:
    await until_changed(api, options, settings)
    stop.set()


def _process_name() -> str:
    return f"{os.environ.get('POD_NAME') or socket.gethostname()}_{os.getpid()}"


def _lease_times(scale: float) -> LeaseTimes:
    usual = LeaseTimes()
    duration = max(2, round(usual.duration * scale))
    share = duration / usual.duration
    return LeaseTimes(duration, usual.give_up * share, usual.retry * share)


async def _until(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Do some work, and return whether it was done before `stop` was set."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.wait(tasks)
    if tasks[0].cancelled():
        return False
    tasks[0].result()
    return True
