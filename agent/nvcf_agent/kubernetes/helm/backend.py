"""Runs instances of Helm functions, each as a MiniService. The API server is the only state."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field

from nvcf_agent.backends.environment import InstanceSpec
from nvcf_agent.backends.interface import NO_SECRETS, Running, Secrets
from nvcf_agent.errors import AgentError, StartError, Unsupported
from nvcf_agent.kubernetes.client.api import Api, Object
from nvcf_agent.kubernetes.client.errors import ApiError
from nvcf_agent.kubernetes.client.informer import Informer
from nvcf_agent.kubernetes.client.kinds import MINI_SERVICE, POD, SECRET
from nvcf_agent.kubernetes.crds.mini_service import MiniServicePhase, MiniServiceStatus
from nvcf_agent.kubernetes.event_queue import EventQueue
from nvcf_agent.kubernetes.helm import miniservice as phases
from nvcf_agent.kubernetes.helm import names, records
from nvcf_agent.kubernetes.helm.chart import ChartRenderer, parse_chart
from nvcf_agent.kubernetes.helm.command import Helm
from nvcf_agent.kubernetes.helm.install import Installer
from nvcf_agent.kubernetes.helm.names import MINI_SERVICE_LABEL
from nvcf_agent.kubernetes.helm.reconciler import Reconciler, grace_of
from nvcf_agent.kubernetes.helm.settings import HelmSettings
from nvcf_agent.kubernetes.pods import status as pod_status
from nvcf_agent.kubernetes.pods import texts
from nvcf_agent.kubernetes.pods.collector import with_secrets
from nvcf_agent.kubernetes.pods.names import INSTANCE_ID
from nvcf_agent.kubernetes.pods.settings import PodSettings
from nvcf_agent.state.events import Ended, Event, Observed, Ready
from nvcf_agent.state.managed_instance import Category
from nvcf_agent.timings import growing_pause
from nvcf_proto.charts.objects import name_of
from nvcf_proto.icms.causes import Cause
from nvcf_proto.icms.messages import CreationMessage
from nvcf_proto.icms.names import Workload

_log = logging.getLogger(__name__)

_SYNC_SECONDS = 60.0
# Pods wake their MiniService; other objects are looked at this often.
_SOON_SECONDS = 2.0
_LATER_SECONDS = 15.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_STEPS_AT_ONCE = 16
_INSTALLS_AT_ONCE = 8
_STREAMING = "STREAMING"


@dataclass
class _Keeper:
    """What looks after one MiniService. `written` is the newest state of it, perhaps before the informer."""

    instance_id: str
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when none of its pods is left."""
    written: Object | None = None
    events: tuple[Event, ...] = ()
    task: asyncio.Task[None] | None = None


class HelmBackend:
    """Runs each instance as one MiniService, in a namespace of its own."""

    name = "kubernetes"
    restarts = False

    def __init__(
        self,
        api: Api,
        settings: HelmSettings,
        pods: PodSettings,
        helm: Helm,
        secrets: Secrets = NO_SECRETS,
    ) -> None:
        self._api = api
        self._pod_settings = pods
        self._settings = settings
        self._installer = Installer(api, settings, pods)
        self._renderer = ChartRenderer(helm, settings, pods)
        self._secrets = secrets
        self._reconciler = Reconciler(api, self._installer, self._renderer, settings, secrets)
        self._services = Informer(api, MINI_SERVICE, on_change=self._on_service)
        self._pods = Informer(
            api, POD, labels=MINI_SERVICE_LABEL, on_change=self._on_pod, trim=pod_status.trim
        )
        self._keepers: dict[str, _Keeper] = {}
        self._steps = asyncio.Semaphore(_STEPS_AT_ONCE)
        self._installs = asyncio.Semaphore(_INSTALLS_AT_ONCE)
        self._events = EventQueue()

    async def prepare(self, known: Collection[str]) -> None:
        """Begin to watch MiniServices, and remove those of no known instance. Raises `StartError`."""
        await self._renderer.helm.check()
        self._renderer.kube_version = await self._api.version()
        self._events.start(self._services.run(), "MiniServices")
        self._events.start(self._pods.run(), "pods of MiniServices")
        try:
            async with asyncio.timeout(_SYNC_SECONDS):
                await asyncio.gather(self._services.synced.wait(), self._pods.synced.wait())
        except TimeoutError:
            raise StartError("the API server did not list the MiniServices in time") from None
        kept = {names.mini_service_name(each) for each in known}
        there = list(self._services.objects.values())
        for each in there:
            if name_of(each) not in kept:
                _log.warning("removing MiniService %s: its instance is unknown", name_of(each))
                await self._ask_deletion(each, 0)
        kept |= {name_of(each) for each in there}
        listed = await self._api.list(SECRET, self._pod_settings.namespace, labels=MINI_SERVICE_LABEL)
        for secret in listed.items:
            if secret["metadata"]["labels"][MINI_SERVICE_LABEL] not in kept:
                await self._api.delete(SECRET, name_of(secret), self._pod_settings.namespace)

    async def create(self, spec: InstanceSpec) -> Running:
        """Store the order, then make the MiniService. The rest follows from these two."""
        body, record = _mini_service(await asyncio.to_thread(with_secrets, spec, self._pod_settings))
        name = name_of(body)
        try:
            await self._installer.keep(name, name, record)
            await self._api.create(MINI_SERVICE, body)
        except ApiError as error:
            if error.is_conflict:
                return _running(body)
            if error.is_final:
                raise Unsupported(f"the API server refuses the MiniService: {error}") from error
            raise StartError(f"the MiniService cannot be made: {error}") from error
        return _running(body)

    async def delete(self, instance_id: str, grace: float) -> None:
        """Delete an instance's MiniService, and wait until its pods are gone. Raises `AgentError`."""
        name = names.mini_service_name(instance_id)
        found = self._services.objects.get(("", name))
        if found is None:
            if await self._api.get(MINI_SERVICE, name) is None:
                return
            raise StartError(f"instance {instance_id} was made a moment ago: its deletion is tried again")
        keeper = self._keep(found)
        await self._ask_deletion(found, grace)
        try:
            async with asyncio.timeout(grace + self._settings.cleanup):
                await keeper.ended.wait()
        except TimeoutError:
            raise StartError(f"instance {instance_id} does not end: see its MiniService") from None

    async def _ask_deletion(self, found: Object, grace: float) -> None:
        name, metadata = name_of(found), found["metadata"]
        seconds = str(max(0, round(grace)))
        is_new = names.GRACE not in (metadata.get("annotations") or {})
        try:
            if is_new or "deletionTimestamp" not in metadata or grace_of(found) > grace:
                patch = {"metadata": {"annotations": {names.GRACE: seconds}}}
                await self._api.patch(MINI_SERVICE, name, None, patch)
            await self._api.delete(MINI_SERVICE, name, uid=metadata["uid"])
        except ApiError as error:
            if not error.is_missing:
                raise

    async def held_requests(self, instance_id: str, version_id: str, wall: float) -> tuple[str, ...]:
        """Return none: what a worker held comes back after the broker's ack wait."""
        return ()

    async def forget(self, instance_id: str) -> None:
        """Follow its secrets no more. What belongs to an instance goes with its MiniService."""
        await self._secrets.end(instance_id)

    async def list(self) -> list[Running]:
        """Return the instances that have pods, or will have."""
        return [
            _running(each)
            for each in self._services.objects.values()
            if (keeper := self._keepers.get(name_of(each))) is None or not keeper.ended.is_set()
        ]

    def watch(self) -> AsyncIterator[Event]:
        """Yield what happens to instances, to one consumer."""
        return self._events.read()

    async def close(self, grace: float) -> None:
        """Stop watching. MiniServices outlive the agent."""
        await self._events.close()
        tasks = [each.task for each in self._keepers.values() if each.task is not None]
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_service(self, old: Object | None, new: Object | None) -> None:
        obj = new or old
        if obj is not None:
            self._keep(obj).wake.set()

    def _on_pod(self, old: Object | None, new: Object | None) -> None:
        obj = new or old
        keeper = None if obj is None else self._keepers.get(obj["metadata"]["labels"][MINI_SERVICE_LABEL])
        if keeper is not None:
            keeper.wake.set()

    def _keep(self, obj: Object) -> _Keeper:
        """Return what looks after a MiniService, begun if it is new."""
        name = name_of(obj)
        keeper = self._keepers.get(name)
        if keeper is None or keeper.task is None or keeper.task.done():
            keeper = self._keepers[name] = _Keeper(names.instance_id_of(obj))
            keeper.task = asyncio.create_task(self._look_after(name, keeper), name=f"MiniService {name}")
        return keeper

    async def _look_after(self, name: str, keeper: _Keeper) -> None:
        failures = 0
        # Without the list of pods, all of them would seem to be deleted.
        await self._pods.synced.wait()
        while (obj := self._newest(name, keeper)) is not None:
            keeper.wake.clear()
            try:
                async with self._slot(obj):
                    pause = await self._step(obj, keeper)
                failures = 0
            except Exception as error:  # noqa: BLE001 - a mistake here may not leave an instance unwatched
                failures += 1
                known = isinstance(error, AgentError)
                _log.warning("MiniService %s waits: %s", name, error, exc_info=None if known else error)
                chance = random.random()  # noqa: S311 - only spreads tries
                pause = growing_pause(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, failures, chance)
                keeper.written = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await keeper.wake.wait()
        self._end(keeper)
        if self._keepers.get(name) is keeper:
            del self._keepers[name]

    def _slot(self, obj: Object) -> asyncio.Semaphore:
        """Return what bounds a step. Charts that come slowly do not hold up instances that run or end."""
        phase = MiniServiceStatus.from_dict(obj.get("status") or {}).phase
        is_install = phase is MiniServicePhase.INSTALLING and "deletionTimestamp" not in obj["metadata"]
        return self._installs if is_install else self._steps

    def _newest(self, name: str, keeper: _Keeper) -> Object | None:
        seen, written = self._services.objects.get(("", name)), keeper.written
        if seen is None or written is None:
            return seen
        return max(seen, written, key=lambda each: int(each["metadata"]["resourceVersion"]))

    async def _step(self, obj: Object, keeper: _Keeper) -> float:
        """Take a step, tell what is new, and return the seconds until the next one."""
        if "deletionTimestamp" in obj["metadata"]:
            left, has_pods = await self._reconciler.remove(obj)
            if not has_pods:
                self._end(keeper)
            keeper.written = left
            return _SOON_SECONDS
        pods = [each for each in self._pods.objects.values() if _belongs(each, name_of(obj))]
        keeper.written = after = await self._reconciler.advance(obj, pods)
        status = MiniServiceStatus.from_dict(after.get("status") or {})
        self._tell(keeper, status, pods)
        if after is not obj:
            return 0.0 if not phases.is_installed(status) else _SOON_SECONDS
        calm = phases.is_over(status) or isinstance(phases.event_of(keeper.instance_id, status), Ready)
        return _LATER_SECONDS if calm else _SOON_SECONDS

    def _tell(self, keeper: _Keeper, status: MiniServiceStatus, pods: Sequence[Object]) -> None:
        worker = next((each for each in pods if name_of(each) == names.UTILS), None)
        found: tuple[Event, ...] = (phases.event_of(keeper.instance_id, status),)
        if worker is not None:
            restarts = sum(map(pod_status.restarts, pods))
            ips = tuple(each for each in pod_status.addresses(worker) if each)
            why = texts.why_restarted(pods)
            found += (Observed(keeper.instance_id, pod_status.node_of(worker), ips, restarts, why),)
        for each in found:
            if each not in keeper.events:
                self._events.put(each)
        keeper.events = found

    def _end(self, keeper: _Keeper) -> None:
        if not keeper.ended.is_set():
            keeper.ended.set()
            text = "its MiniService was deleted"
            ended = Ended(keeper.instance_id, text, Category.LOST, Cause.NOT_FOUND, final=True)
            self._events.put(ended)


def _mini_service(spec: InstanceSpec) -> tuple[Object, object]:
    """Return the MiniService of an instance, and the record of its order. Raises `Unsupported`. Pure."""
    order = spec.order
    _check(order, spec.index)
    chart = parse_chart(order)
    name = names.mini_service_name(spec.instance_id)
    service = {"serviceName": chart.service, "servicePort": chart.port}
    config = {"url": chart.url, **service, "values": dict(chart.values)}
    namespace = names.namespace_of(spec.instance_id)
    members = {"namespace": namespace, "icmsRequestName": namespace, "helmChartConfig": config}
    body = MINI_SERVICE.new(name, spec=members)
    body["metadata"] |= {"annotations": {INSTANCE_ID: spec.instance_id}, "finalizers": [names.FINALIZER]}
    return body, records.order_record(spec)


def _check(order: CreationMessage, index: int) -> None:
    if order.workload is not Workload.FUNCTION:
        raise Unsupported("this cluster runs Helm functions; the order is for a Helm task")
    if index:
        raise Unsupported("a request for a Helm function has one instance: order the others by themselves")
    if order.function_details is not None and order.function_details.function_type == _STREAMING:
        raise Unsupported("functions of the type STREAMING cannot be Helm charts: use a container image")


def _belongs(pod: Object, mini_service: str) -> bool:
    labels: dict[str, str] = pod["metadata"]["labels"]
    return labels.get(MINI_SERVICE_LABEL) == mini_service


def _running(obj: Object) -> Running:
    status = MiniServiceStatus.from_dict(obj.get("status") or {})
    instance_id = names.instance_id_of(obj)
    ready = isinstance(phases.event_of(instance_id, status), Ready)
    return Running(instance_id, f"kubectl -n {obj['spec']['namespace']} logs utils", ready=ready)
